"""How answers are generated: the settings, and what they mean to transformers' ``generate``."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from padt.data.processor import PaDTProcessor
from padt.errors import UserError


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated.

    Attributes:
        max_new_tokens: longest answer.
        num_beams: beams of a beam search; 1 = none.
        temperature: 0 = greedy, else sampling.
        top_p: nucleus of the sampling.
        forbid_repeats: a VRT may not come twice in one group (robust cross-entropy never punishes repeats).
        masks: decode masks to run lengths; boxes and scores come always.
        cache: transformers' name of the cache: ``dynamic`` grows with the answer; ``static`` has one size, which lets
            transformers compile the decoding step on a GPU.
        calibrated: use the model's score calibration, if it has one (``padt.inference.calibration``).
    """

    max_new_tokens: int = 1024
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    forbid_repeats: bool = False
    masks: bool = True
    cache: str = "dynamic"
    calibrated: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise UserError(
                f"max_new_tokens {self.max_new_tokens} and num_beams {self.num_beams} must be at least 1 each."
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature {self.temperature} must not be negative, and top_p {self.top_p} must lie in (0, 1]."
            )


class ForbidRepeatedVRTs(LogitsProcessor):
    """Makes it impossible to write a VRT that the current group already has."""

    def __init__(self, vrt_offset: int) -> None:
        self.vrt_offset = vrt_offset

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``(rows, tokens)`` and ``(rows, V + max_patches)`` -> scores with the group's VRTs at -inf."""
        in_group = (input_ids >= self.vrt_offset).flip(1).long().cumprod(1).flip(1).bool()
        longest = int(in_group.sum(1).max())
        if not longest:
            return scores
        tail, active = input_ids[:, -longest:], in_group[:, -longest:]
        # Rows whose group is shorter point at their last token instead, which is either in the group or text of theirs.
        columns = torch.where(active, tail, tail[:, -1:])
        hide = torch.zeros_like(scores, dtype=torch.bool).scatter(1, columns, columns >= self.vrt_offset)
        return scores.masked_fill(hide, float("-inf"))


def generate_arguments(processor: PaDTProcessor, settings: GenerationSettings) -> dict[str, Any]:
    """Keyword arguments of ``model.generate``; what they leave open is the model's own generation config."""
    arguments: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "num_beams": settings.num_beams,
        "do_sample": settings.temperature > 0,
        "eos_token_id": end_token_ids(processor),
        "pad_token_id": processor.pad_token_id,
        "return_dict_in_generate": True,
        # Sampling is by the settings alone; a greedy answer has no use for the values that a config may hold.
        "temperature": settings.temperature if settings.temperature > 0 else None,
        "top_p": settings.top_p if settings.temperature > 0 else None,
        "top_k": None,
    }
    if settings.cache != "dynamic":
        arguments["cache_implementation"] = settings.cache
    if settings.forbid_repeats:
        arguments["logits_processor"] = LogitsProcessorList([ForbidRepeatedVRTs(processor.vrt_offset)])
    return arguments


def end_token_ids(processor: PaDTProcessor) -> list[int]:
    """Ids that end an answer."""
    return sorted({processor.end_token_id, processor.pad_token_id})
