"""What the settings of an answer mean to transformers' ``generate``."""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from padt.data.processor import PaDTProcessor
from padt.inference.requests import GenerationSettings


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
