"""AdamW's parameter groups and the learning rate as a function of the step alone."""

import math
import re
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from jobs.common.config_tree import Section
from padt.model.trainable import check_names, expression


class OptimizerConfig(Section):
    """AdamW and its learning rate.

    Attributes:
        lr: peak learning rate.
        max_grad_norm: largest norm of the whole gradient; 0 = no clipping.
        warmup_steps, warmup_fraction: steps (or share of all steps) of linear rise from 0; give at most one.
        schedule: fall after the warm-up.
        min_lr_ratio: last learning rate as a share of the peak.
        lr_scale: factor by part (``vision``, ``language``, ``prototypes``, ``decoder``) or by a pattern of parameter
            names (``re.search``, such as ``lora_``); the first that fits counts.
        no_decay_1d: leave biases and norms without weight decay.
    """

    lr: float = Field(default=2e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    no_decay_1d: bool = True
    max_grad_norm: float = Field(default=1.0, ge=0)
    warmup_steps: int | None = Field(default=None, ge=0)
    warmup_fraction: float | None = Field(default=None, ge=0, le=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    lr_scale: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_warmup(self) -> "OptimizerConfig":
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            raise ValueError("warmup_steps and warmup_fraction are both set: give one of them")
        return self


def learning_rate(step: int, total: int, config: OptimizerConfig) -> float:
    """Learning rate of optimiser step ``step`` (from 0) in a run of ``total`` steps.

    Linear rise over the warm-up, then linear or cosine fall, which reaches ``min_lr_ratio`` times the peak
    after the last step.
    """
    warmup = config.warmup_steps if config.warmup_steps is not None else round((config.warmup_fraction or 0) * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    if config.schedule == "constant":
        return config.lr
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * max(0.0, fall))


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> tuple[list[dict[str, Any]], list[float]]:
    """Split a model's trained parameters by learning-rate factor and weight decay.

    Returns:
        Groups for ``torch.optim.AdamW``, and the learning-rate factor of each group.

    Raises:
        UserError: a pattern fits no parameter.
    """
    check_names(config.lr_scale, [name for name, _ in model.named_parameters()])
    factors = {expression(pattern): factor for pattern, factor in config.lr_scale.items()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = next((factor for pattern, factor in factors.items() if re.search(pattern, name)), 1.0)
        # ZeRO 3 leaves an empty tensor in a parameter's place, and its shape in ds_shape.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        decay = 0.0 if config.no_decay_1d and dimensions < 2 else config.weight_decay
        groups.setdefault((scale, decay), []).append(parameter)
    return [{"params": p, "weight_decay": decay} for (_, decay), p in groups.items()], [scale for scale, _ in groups]


def make_adamw(groups: Iterable[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """PyTorch's AdamW (DeepSpeed's own CPU and GPU versions have to be compiled)."""
    return torch.optim.AdamW(list(groups), lr=config.lr, betas=config.betas, eps=config.eps)


def set_learning_rate(optimizer: Any, rate: float, scales: list[float]) -> None:
    """Set each group's learning rate to ``rate`` times its factor."""
    for group, scale in zip(optimizer.param_groups, scales, strict=True):
        group["lr"] = rate * scale
