"""The decoding step in shapes of a short list, so that a compiler sees each of them once.

Rows are padded to the next power of two, and positions too. On a GPU the default is torch's own compiler with CUDA
graphs: the kernels of a step are fused, recorded once for each shape and launched together. What differs by request
(logits of VRTs, choosing, objects) stays outside, as do prompts, whose shapes never come again.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import Cache

from padt.errors import UserError
from padt.inference.engine.cache import SlotCache
from padt.model.modeling import PaDTForConditionalGeneration
from padt.model.outputs import PaDTOutput

logger = logging.getLogger(__name__)

# Shorter answers attend to positions in vain; more shapes take longer to compile.
_LEAST_POSITIONS = 256
# Runs until a shape is compiled, recorded and replayed.
_WARM_UP_RUNS = 3


class Window(Protocol):
    """Keys and values of a pass, with the mask of its queries."""

    def attention_mask(self) -> Tensor:
        """``(rows, 1, queries, positions)``, True where a query sees a position."""


Forward = Callable[[Window, Tensor, Tensor], PaDTOutput]


class StaticWindow(Cache):
    """The first slots in one decoding step, as transformers' attention asks for them, in shapes known beforehand.

    Row ``i`` has one new position, ``places[i]``. Rows that are not real are padding: they write nothing.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], positions: int, places: Tensor, real: Tensor) -> None:
        """Take the keys and values of all slots, and the positions that are seen; ``places`` and ``real`` by row."""
        super().__init__(layers=[])
        self._layers, self._positions, self._places, self._real = layers, positions, places, real[:, None, None]
        self._rows = torch.arange(len(places), device=places.device)

    def attention_mask(self) -> Tensor:
        """``(rows, 1, 1, positions)``, True where a row sees a position."""
        seen = torch.arange(self._positions, device=self._places.device)
        return (seen <= self._places[:, None])[:, None, None]

    def update(  # noqa: D102
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._layers[layer_idx]
        for cached, new in ((keys, key_states), (values, value_states)):
            old = cached[self._rows, :, self._places]
            cached[self._rows, :, self._places] = torch.where(self._real, new[:, :, 0], old)
        own = slice(0, len(self._places)), slice(None), slice(0, self._positions)
        return keys[own], values[own]

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: D102
        return self._positions


class CompiledStep:
    """One more token of all rows, compiled."""

    def __init__(
        self, model: PaDTForConditionalGeneration, slots: SlotCache, forward: Forward, backend: bool | str
    ) -> None:
        """Compile the smallest shape, so that a model that cannot be compiled is known at once.

        Args:
            model: its embeddings are part of the step.
            slots: keys and values.
            forward: the language model and its head on embeddings ``(rows, 1, d)`` and positions ``(3, rows, 1)``.
            backend: of ``torch.compile``; True = ``inductor``, on a GPU with CUDA graphs.

        Raises:
            UserError: the step cannot be compiled.
        """
        self._model, self._slots, self._forward = model, slots, forward
        name = "inductor" if backend is True else str(backend)
        # Of a captured graph the addresses are fixed; what is not known to stay is copied at every step.
        for tensor in slots.tensors:
            torch._dynamo.mark_static_address(tensor)
        recorded = name == "inductor" and model.device.type == "cuda"
        self._known: set[tuple[int, int]] = set()
        try:
            self._compiled = torch.compile(
                self._step, backend=name, dynamic=False, fullgraph=True, mode="reduce-overhead" if recorded else None
            )
            self._warm_up(*self.shapes()[0])
        except Exception as error:
            raise UserError(
                f"The decoding step cannot be compiled by {name!r} ({type(error).__name__}: {str(error)[:300]}): leave "
                "compile out, or name another back end of torch.compile."
            ) from error

    def shapes(self) -> list[tuple[int, int]]:
        """All ``(rows, positions)``."""
        most_rows, most_positions = self._slots.slots, self._slots.length
        rows = sorted({_padded(count, most_rows) for count in range(1, most_rows + 1)})
        least = _padded(_LEAST_POSITIONS, most_positions)
        positions = {least, most_positions}
        while least < most_positions:
            least = _padded(least + 1, most_positions)
            positions.add(least)
        return [(count, length) for length in sorted(positions) for count in rows]

    def warm_up(self) -> None:
        """Compile every shape now: minutes on a GPU. Otherwise the first step of each shape waits for it."""
        for number, (rows, positions) in enumerate(self.shapes(), 1):
            logger.info("Compiling shape %d of %d: %d rows, %d positions", number, len(self.shapes()), rows, positions)
            self._warm_up(rows, positions)

    def _warm_up(self, rows: int, positions: int) -> None:
        # Padding alone: nothing is written, and answers that run are not touched.
        numbers = torch.zeros((4, rows), dtype=torch.long)
        for _ in range(_WARM_UP_RUNS):
            self._run(numbers, self._model.lm_head.weight[:0], positions)

    def __call__(
        self, tokens: Sequence[int], prototypes: Tensor, lengths: Sequence[int], places: Sequence[int]
    ) -> PaDTOutput:
        """Run the step over the rows in the first slots.

        Args:
            tokens: the last of each row.
            prototypes: ``(rows, d)``, of those tokens that are VRTs.
            lengths: positions that each row's slot holds.
            places: rotary position of each token.

        Returns:
            Logits ``(rows, 1, V)`` of the words and final states ``(rows, 1, d)``, which the next step may overwrite.
        """
        count = len(tokens)
        rows = _padded(count, self._slots.slots)
        positions = _padded(max(max(lengths) + 1, _LEAST_POSITIONS), self._slots.length)
        numbers = torch.zeros((4, rows), dtype=torch.long)
        numbers[:, :count] = torch.tensor([tokens, lengths, places, [1] * count])
        logits, states = self._run(numbers, prototypes, positions)
        return PaDTOutput(logits=logits[:count], last_hidden_state=states[:count])

    def _run(self, numbers: Tensor, prototypes: Tensor, positions: int) -> tuple[Tensor, Tensor]:
        rows = numbers.shape[1]
        read = prototypes.new_zeros((rows, prototypes.shape[1]))
        read[: len(prototypes)] = prototypes
        torch.compiler.cudagraph_mark_step_begin()
        arguments = (self._slots.layers, positions, numbers.to(self._model.device), read)
        if (rows, positions) in self._known:
            return self._compiled(*arguments)
        # All shapes are entries of one function, for which torch's limit is too low.
        with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096):
            found = self._compiled(*arguments)
        self._known.add((rows, positions))
        return found

    def _step(
        self, layers: Sequence[tuple[Tensor, Tensor]], positions: int, numbers: Tensor, read: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is compiled: shapes depend on ``positions`` and the rows of ``numbers`` ``(4, rows)`` alone."""
        tokens, lengths, places, real = numbers.unbind()
        window = StaticWindow(layers, positions, lengths, real.bool())
        embeddings = self._model.embed(tokens[:, None], None, read[:, None])
        output = self._forward(window, embeddings, places[:, None].expand(3, -1, -1))
        assert output.logits is not None and output.last_hidden_state is not None
        return output.logits, output.last_hidden_state


def _padded(count: int, most: int) -> int:
    """The next power of two, or ``most`` if that is less."""
    return min(most, 1 << (count - 1).bit_length())
