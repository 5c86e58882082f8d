"""What the settings of an answer mean to transformers' ``generate``."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

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


class TokenChoosers:
    """Makes the choosers of a model's answers."""

    def __init__(self, model: Any) -> None:
        """Take the model whose generation config and logits processors are used."""
        self._model = model
        # Copies of the model's config cost as much as some steps of a small model.
        self._config = lru_cache(maxsize=64)(self._new_config)

    def chooser(self, settings: GenerationSettings, prompt: Sequence[int], seed: int | None) -> "TokenChooser":
        """The chooser of one answer.

        Args:
            settings: how to generate; without beams.
            prompt: ids of the prompt.
            seed: of the sampling; None = a fresh one. The same seed gives what ``torch.manual_seed`` and ``generate``
                give.
        """
        device = self._model.device
        forbidding = generate_arguments(self._model.processor, settings).get("logits_processor")
        processors = self._model._get_logits_processor(
            self._config(settings), len(prompt), logits_processor=forbidding, device=device
        )
        if not settings.temperature:
            return TokenChooser(prompt, processors, None)
        generator = torch.Generator(device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return TokenChooser(prompt, processors, generator)

    def _new_config(self, settings: GenerationSettings) -> GenerationConfig:
        arguments = generate_arguments(self._model.processor, settings)
        others = ("logits_processor", "cache_implementation")
        own = {name: value for name, value in arguments.items() if name not in others}
        config, _ = self._model._prepare_generation_config(None, **own)
        self._model._prepare_special_tokens(config, device=self._model.device)
        return config


@dataclass(frozen=True)
class TokenChooser:
    """Chooses the tokens of one answer as ``model.generate`` would, whatever other answers there are.

    Attributes:
        prompt: ids of the prompt.
        processors: of the logits.
        generator: of the sampling; None = greedy.
    """

    prompt: Sequence[int]
    processors: LogitsProcessorList
    generator: torch.Generator | None

    @property
    def takes_the_best(self) -> bool:
        """Whether the token of the largest logit is chosen, whatever was written before."""
        return self.generator is None and not self.processors

    def choose(self, answer: Sequence[int], logits: Tensor) -> Tensor:
        """The next token's id, a tensor of no dimension, so that nothing waits for the device.

        Args:
            answer: ids so far.
            logits: ``(V + patches,)``, of this row's own patches.
        """
        scores = logits.float()[None]
        if self.processors:
            ids = torch.tensor([[*self.prompt, *answer]], device=logits.device)
            scores = self.processors(ids, scores)
        if self.generator is None:
            return scores[0].argmax()
        # What is not finite would end the whole process on a GPU; the engine ends the answer alone.
        chances = scores.softmax(-1).nan_to_num(nan=1.0)
        return torch.multinomial(chances, 1, generator=self.generator)[0, 0]
