"""What the engine keeps: keys and values of running answers in slots, and what it has seen of pictures, by content."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from transformers import Cache

from padt.inference.results import Frame
from padt.model.vision import ImageFeatures
from padt.pretrained.config import PaDTConfig


class SlotCache:
    """Keys and values of the running answers, one slot each, allocated once.

    The answers that run lie in the first slots without a gap, so that a pass reads a view and copies nothing. Positions
    that no answer has written are zero: what they hold is multiplied by a weight of zero, which does not help against
    another answer's NaN.

    Each layer has tensors of its own: a compiled step may write into a whole input, not into a part of one, without
    copying it.

    Attributes:
        layers: keys and values of each layer, ``(slots, heads, length, head_dim)`` each.
        slots, length: how many there are, and the positions of each.
    """

    def __init__(self, config: PaDTConfig, slots: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        text = config.text_config
        shape = (slots, text.num_key_value_heads, length, text.hidden_size // text.num_attention_heads)
        self.slots, self.length = slots, length
        self.layers = [
            (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(text.num_hidden_layers)
        ]

    @property
    def tensors(self) -> list[Tensor]:
        """Keys and values of all layers."""
        return [tensor for layer in self.layers for tensor in layer]

    def prefix(self, slot: int, length: int) -> Tensor:
        """A copy of the first positions of a slot, ``(2 layers, heads, length, head_dim)``."""
        return torch.stack([tensor[slot, :, :length] for tensor in self.tensors])

    def restore(self, slot: int, prefix: Tensor) -> None:
        """Write what ``prefix`` has given into the first positions of a slot."""
        for tensor, own in zip(self.tensors, prefix, strict=True):
            tensor[slot, :, : prefix.shape[2]] = own

    def move(self, source: int, target: int, length: int) -> None:
        """Bring the first ``length`` positions of a slot into another, which is clear, and clear it."""
        for tensor in self.tensors:
            tensor[target, :, :length] = tensor[source, :, :length]
        self.clear(source, length)

    def clear(self, slot: int, length: int) -> None:
        """Forget the first ``length`` positions of a slot."""
        for tensor in self.tensors:
            tensor[slot, :, :length] = 0


class SlotWindow(Cache):
    """The slots of one pass, as transformers' attention asks for them.

    A pass has one row for each slot, its new positions on the right: row ``i`` has ``counts[i]`` of them, which come
    after the ``starts[i]`` positions that its slot holds; what is left of them is padding and is not written.
    """

    def __init__(self, slots: SlotCache, first: int, starts: Sequence[int], counts: Sequence[int]) -> None:
        """Take slots ``first``, ``first + 1``, ..., one for each of ``starts``."""
        super().__init__(layers=[])
        device = slots.layers[0][0].device
        queries = max(counts)
        self._longest = max(start + count for start, count in zip(starts, counts, strict=True))
        self._layers, self._own = slots.layers, slice(first, first + len(starts))
        before, new = torch.tensor(starts, device=device), torch.tensor(counts, device=device)
        # Position in its slot of each query; below the start at padding.
        self._places = (before + new - queries)[:, None] + torch.arange(queries, device=device)
        self._rows = torch.arange(len(starts), device=device)[:, None].expand(-1, queries)
        self._written: Tensor | None = None
        if min(counts) < queries:
            self._written = self._places >= before[:, None]
            self._rows, self._places_written = self._rows[self._written], self._places[self._written]
        else:
            self._rows, self._places_written = self._rows.flatten(), self._places.flatten()

    def attention_mask(self) -> Tensor:
        """``(rows, 1, queries, longest)``, True where a query sees a position; padding sees the first one."""
        seen = torch.arange(self._longest, device=self._places.device)
        return (seen <= self._places.clamp(min=0)[..., None])[:, None]

    def update(  # noqa: D102
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        keys, values = (tensor[self._own, :, : self._longest] for tensor in self._layers[layer_idx])
        for cached, states in ((keys, key_states), (values, value_states)):
            new = states.transpose(1, 2)
            new = new.flatten(0, 1) if self._written is None else new[self._written]
            cached[self._rows, :, self._places_written] = new
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: D102
        return self._longest


@dataclass(frozen=True, eq=False)
class SeenPicture:
    """What the model has seen of one picture; equal to itself only.

    Attributes:
        frame: its size and grid.
        features: of this picture alone.
        prototypes: ``(patches, d)``.
    """

    frame: Frame
    features: ImageFeatures
    prototypes: Tensor

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        own = self.features
        return sum(tensor.nbytes for tensor in (own.merged, own.high_res, own.cos, own.sin, self.prototypes))


def split_features(features: ImageFeatures, prototypes: Tensor, frames: Sequence[Frame]) -> list[SeenPicture]:
    """Features of several pictures -> each picture's own, which do not keep the others' in memory."""
    patches = [rows.split(features.patch_counts) for rows in (features.merged, prototypes)]
    fine = [rows.split(features.vit_counts) for rows in (features.high_res, features.cos, features.sin)]
    found = []
    for frame, grid, *parts in zip(frames, features.grids, *patches, *fine, strict=True):
        merged, table, high_res, cos, sin = (part.clone() for part in parts)
        found.append(SeenPicture(frame, ImageFeatures(merged, high_res, cos, sin, [grid]), table))
    return found


def join_features(pictures: Sequence[SeenPicture]) -> tuple[ImageFeatures, Tensor]:
    """Features and prototypes of several pictures, one after the other."""
    all_features = [picture.features for picture in pictures]
    joined = ImageFeatures(
        merged=torch.cat([own.merged for own in all_features]),
        high_res=torch.cat([own.high_res for own in all_features]),
        cos=torch.cat([own.cos for own in all_features]),
        sin=torch.cat([own.sin for own in all_features]),
        grids=[grid for own in all_features for grid in own.grids],
    )
    return joined, torch.cat([picture.prototypes for picture in pictures])


def content_key(*parts: bytes) -> bytes:
    """A key of the content of these parts, in this order and with these borders."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class Sized(Protocol):
    """Something whose memory is known; tensors and :class:`SeenPicture` are."""

    @property
    def nbytes(self) -> int:
        """Bytes."""


Kept = TypeVar("Kept", bound=Sized)


class ContentCache:
    """Things by the content that they were made of, the least recently used forgotten first. Safe in threads.

    Attributes:
        capacity: bytes that may be held.
        nbytes: bytes that are held.
        hits, misses: look-ups so far, of pictures when they are submitted and of prefixes when they are admitted.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[tuple[type, bytes], Sized] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, kind: type[Kept], key: bytes, again: bool = False) -> Kept | None:
        """The thing of this kind and key, if it is held; ``again`` = the look-up was counted before."""
        with self._lock:
            found = self._entries.get((kind, key))
            self.hits += not again and found is not None
            self.misses += not again and found is None
            if found is None:
                return None
            self._entries.move_to_end((kind, key))
            assert isinstance(found, kind)
            return found

    def put(self, key: bytes, thing: Sized) -> bool:
        """Hold a thing; False where it alone is larger than the capacity."""
        with self._lock:
            old = self._entries.pop((type(thing), key), None)
            self.nbytes -= old.nbytes if old is not None else 0
            if thing.nbytes > self.capacity:
                return False
            self._entries[type(thing), key] = thing
            self.nbytes += thing.nbytes
            while self.nbytes > self.capacity:
                _, oldest = self._entries.popitem(last=False)
                self.nbytes -= oldest.nbytes
            return True

    def __contains__(self, entry: object) -> bool:
        """Whether a thing of this kind and key is held; does not count as use."""
        return entry in self._entries
