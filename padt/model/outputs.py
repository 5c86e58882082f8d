"""What a pass of the model gives, and what is kept of each generated token."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import ModelOutput


@dataclass
class PaDTOutput(ModelOutput):
    """Output of a forward pass.

    Attributes:
        logits: ``(batch, positions, V + max_patches)``; None in training.
        past_key_values: cache.
        last_hidden_state: ``(batch, positions, d)`` final states, after the last norm.
        prototypes: ``(batch, max_patches, d)`` vectors of each sample's VRTs.
        prototype_mask: ``(batch, max_patches)``.
        position_offset: ``(batch, 1)`` what a token's position is ahead of the number of tokens before it.
        total: training: the loss to differentiate.
        parts: training: detached scalars, the terms of ``padt.model.losses.LOSS_TERMS`` and their details by name.
    """

    logits: Tensor | None = None
    past_key_values: Cache | None = None
    last_hidden_state: Tensor | None = None
    prototypes: Tensor | None = None
    prototype_mask: Tensor | None = None
    position_offset: Tensor | None = None
    total: Tensor | None = None
    parts: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Trace:
    """What is kept of each generated token.

    Attributes:
        states: ``(..., tokens, d)`` final states that predicted the tokens.
        normalizers: ``(..., tokens)`` fp32: logarithm of the sum of ``exp(logit)`` over words and VRTs, so that a
            token's log probability is its logit less this.
    """

    states: Tensor
    normalizers: Tensor

    def part(self, row: int, span: tuple[int, int]) -> "Trace":
        """The trace of some tokens of one row of a batch."""
        return Trace(self.states[row, slice(*span)], self.normalizers[row, slice(*span)])


@dataclass
class StateRecorder:
    """Collects traces of generated tokens: pass one to ``generate(recorder=...)``, a new one each time.

    Attributes:
        steps: one ``(batch * beams, d)`` tensor per step: the state that predicted the step's token.
        normalizers: one ``(batch * beams,)`` tensor per step.
    """

    steps: list[Tensor] = field(default_factory=list)
    normalizers: list[Tensor] = field(default_factory=list)

    def add(self, output: PaDTOutput) -> None:
        """Keep what is needed of a step's output."""
        if output.last_hidden_state is None or output.logits is None:
            return
        # A copy: the prompt's states are not kept alive, and a compiled step may write over its output.
        self.steps.append(output.last_hidden_state[:, -1].clone())
        self.normalizers.append(output.logits[:, -1].float().logsumexp(-1))

    def trace(self, beam_indices: Tensor | None = None) -> Trace:
        """``(batch, new_tokens, ...)``: for each generated token of each answer.

        Args:
            beam_indices: ``beam_indices`` of a beam search's output, ``(batch, new_tokens)``.
        """
        states, normalizers = torch.stack(self.steps, dim=1), torch.stack(self.normalizers, dim=1)
        if beam_indices is None:
            return Trace(states, normalizers)
        rows = beam_indices.clamp(min=0).to(states.device)
        places = torch.arange(beam_indices.shape[1], device=states.device)
        return Trace(states[rows, places], normalizers[rows, places])

    def states(self, beam_indices: Tensor | None = None) -> Tensor:
        """``(batch, new_tokens, d)``: the state that predicted each generated token."""
        return self.trace(beam_indices).states
