"""A request on its way through the engine: what is read of it when it is submitted, and the answer so far."""

import logging
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from padt.data.collate import cut_patches
from padt.data.image import VIT_PATCH, ImageSource, open_image
from padt.data.processor import PaDTProcessor
from padt.errors import UserError
from padt.inference.answer_parser import AnswerGroup, AnswerParser
from padt.inference.engine.cache import SeenPicture, content_key
from padt.inference.engine.tickets import Ticket
from padt.inference.events import Reason, Times
from padt.inference.generation import TokenChooser
from padt.inference.grounding import frame_of
from padt.inference.requests import GenerationSettings, Request
from padt.inference.results import Frame, PredictedObject, Prediction
from padt.inference.stream import TextPieces
from padt.model.outputs import Trace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture of a request, read but not seen by the model.

    Attributes:
        key: of its content.
        frame: its size and grid.
        pixels: uint8 ``(vit_patches, 3, 14, 14)``; None where the model has seen this picture already.
        seen: what it has seen then.
    """

    key: bytes
    frame: Frame
    pixels: np.ndarray | None
    seen: SeenPicture | None = None

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Its grid as the vision tower takes it."""
        return (1, 2 * self.frame.grid[0], 2 * self.frame.grid[1])


def read_picture_once(
    processor: PaDTProcessor, source: ImageSource, known: Callable[[bytes], SeenPicture | None]
) -> Picture:
    """Open and resize a picture, unless it is known.

    Args:
        processor: with the resize policy.
        source: the picture. Encoded bytes are known before they are decoded, other sources after.
        known: what the model has seen of the picture of a key, if it has.

    Raises:
        ImageError: it cannot be used.
    """
    encoded = isinstance(source, bytes | bytearray | memoryview)
    key = content_key(b"file", bytes(source)) if isinstance(source, bytes | bytearray | memoryview) else b""
    if encoded and (seen := known(key)) is not None:
        return Picture(key, seen.frame, None, seen)
    image = open_image(source)
    if not encoded:
        key = content_key(b"pixels", repr(image.size).encode(), image.tobytes())
        if (seen := known(key)) is not None:
            return Picture(key, seen.frame, None, seen)
    resized = processor.resize(image)
    height, width = resized.shape[:2]
    return Picture(key, frame_of(image, height // VIT_PATCH, width // VIT_PATCH), cut_patches(resized))


@dataclass(frozen=True)
class Prompt:
    """A request in numbers.

    Attributes:
        ids: ``(n,)`` of the prompt.
        positions: ``(3, n)`` rotary positions.
        offset: what a token's position is ahead of the number of tokens before it.
        pictures: in the order of their places.
        prefix_length: tokens up to the end of the last picture; 0 without one.
        prefix_key: of the content of these tokens and pictures.
    """

    ids: Tensor
    positions: Tensor
    offset: int
    pictures: tuple[Picture, ...]
    prefix_length: int
    prefix_key: bytes

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Sizes and grids of the pictures."""
        return tuple(picture.frame for picture in self.pictures)

    @cached_property
    def patches(self) -> int:
        """Patches of all pictures."""
        return sum(frame.patches for frame in self.frames)


def read_prompt(model: Any, processor: PaDTProcessor, request: Request, pictures: Sequence[Picture]) -> Prompt:
    """Tokenise a request and place its tokens. Works on the CPU and calls no part of the model.

    Raises:
        UserError: turns and pictures do not match, or an earlier answer holds VRTs beyond the pictures.
    """
    row = processor.prompt_ids(request.prompt, [picture.frame.patches for picture in pictures])
    ids = torch.tensor(row)
    patches = sum(picture.frame.patches for picture in pictures)
    if int(ids.max()) >= processor.vrt_offset + patches:
        raise UserError(
            f"An earlier answer of the conversation names VRT {int(ids.max()) - processor.vrt_offset}, but the "
            f"request's pictures have {patches} patches: send the pictures that the answer was about."
        )
    grids = torch.tensor([picture.grid_thw for picture in pictures]) if pictures else None
    positions, offset = model.positions(ids[None], torch.ones_like(ids)[None], grids)
    places = (ids == processor.image_token_id).nonzero()
    prefix_length = int(places[-1]) + 1 if len(places) else 0
    key = content_key(ids[:prefix_length].numpy().tobytes(), *(picture.key for picture in pictures))
    return Prompt(ids, positions[:, 0], int(offset), tuple(pictures), prefix_length, key)


@dataclass(eq=False)
class Row:
    """A request in the engine.

    Attributes:
        ticket: what its client holds.
        prompt: what is asked.
        settings: how to answer.
        chooser: of its tokens.
        parser, pieces: readers of its answer.
        client: whose it is.
        submitted: time of the submission (``time.perf_counter``).
        times: where the time went so far.
        pictures: what the model has seen of its pictures; empty before the admission.
        slot: where its keys and values are; None before the admission.
        length: positions that these are.
        objects: found so far.
        pending: what was written and nobody has been told: closed groups and pieces of text, in order.
        prediction: the whole answer, once it is.
        reason: why it has ended, once it has.
        error: what went wrong.
    """

    ticket: Ticket
    prompt: Prompt
    settings: GenerationSettings
    chooser: TokenChooser
    parser: AnswerParser
    pieces: TextPieces
    client: str = ""
    submitted: float = field(default_factory=time.perf_counter)
    times: Times = field(default_factory=Times)
    pictures: tuple[SeenPicture, ...] = ()
    slot: int | None = None
    length: int = 0
    objects: list[PredictedObject] = field(default_factory=list)
    pending: list[AnswerGroup | str] = field(default_factory=list)
    prediction: Prediction | None = None
    reason: Reason | None = None
    error: Exception | None = None
    # Of the group that is being written the VRTs' states and normalizers, and the place of the first in the answer.
    _trace: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _trace_start: int = 0
    _traces: dict[AnswerGroup, Trace] = field(default_factory=dict)

    @property
    def last_token(self) -> int:
        """The answer's last id."""
        return self.parser.ids[-1]

    @property
    def prototypes(self) -> tuple[Tensor, ...]:
        """Tables of its pictures; VRTs run on over them."""
        return tuple(picture.prototypes for picture in self.pictures)

    def prototype(self, vrt: int) -> Tensor:
        """``(d,)`` vector of a VRT."""
        for table in self.prototypes:
            if vrt < len(table):
                return table[vrt]
            vrt -= len(table)
        raise IndexError(f"VRT {vrt} is beyond the request's patches")

    def fail(self, error: Exception) -> None:
        """End with an error, and without an answer; tensors in the error's frames are let go."""
        logger.error("A request has failed.", exc_info=error)
        traceback.clear_frames(error.__traceback__)
        self.reason, self.error, self.prediction = "error", error, None

    def take(self, token: int, state: Tensor, normalizer: Tensor) -> None:
        """Read the answer's next token.

        Args:
            token: its id.
            state: ``(d,)`` the final state that predicted it.
            normalizer: logarithm of the sum of ``exp(logit)`` at that place.
        """
        if token >= self.parser.vrt_offset:
            if not self.parser.in_group:
                self._trace, self._trace_start = [], len(self.parser.ids)
            self._trace.append((state, normalizer))
        # As in a stream, a group comes before the text that closes it.
        self._close(self.parser.feed(token))
        self._say(self.pieces.flush() if self.parser.ended else self.pieces.feed(token))
        if self.parser.ended:
            self.reason = "stop"
        elif len(self.parser.ids) >= self.settings.max_new_tokens:
            self.reason = "length"
            self._close(self.parser.finish())
            self._say(self.pieces.flush())

    def _close(self, groups: Iterable[AnswerGroup]) -> None:
        for group in groups:
            start, end = (place - self._trace_start for place in group.span)
            states, normalizers = zip(*self._trace[start:end], strict=True)
            # Copies: the states of a step are those of all its rows, and objects may wait.
            self._traces[group] = Trace(torch.stack(states), torch.stack(normalizers))
            self.pending.append(group)

    def _say(self, text: str) -> None:
        if text:
            self.pending.append(text)

    @property
    def waiting_groups(self) -> int:
        """Closed groups whose objects are not decoded."""
        return len(self._traces)

    def groups(self) -> Iterator[AnswerGroup]:
        """These groups, in order."""
        return (entry for entry in self.pending if isinstance(entry, AnswerGroup))

    def trace_of(self, group: AnswerGroup) -> Trace:
        """Trace of a closed group whose object is not decoded."""
        return self._traces[group]

    def forget_pending(self) -> None:
        """What was pending has been told."""
        self.pending.clear()
        self._traces.clear()
