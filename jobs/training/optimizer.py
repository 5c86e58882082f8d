"""AdamW's parameter groups and the learning rate as a function of the step alone."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from jobs.training.config import OptimizerConfig
from padt.errors import UserError


def learning_rate(step: int, total: int, config: OptimizerConfig) -> float:
    """Learning rate of optimiser step ``step`` (from 0) in a run of ``total`` steps.

    Linear rise over the warm-up, then linear or cosine fall; ``floor`` times the peak is reached after the last step.
    """
    warmup = config.warmup_steps if config.warmup_steps is not None else round((config.warmup_fraction or 0) * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    if config.schedule == "constant":
        return config.lr
    return config.lr * (config.floor + (1 - config.floor) * max(0.0, fall))


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> tuple[list[dict[str, Any]], list[float]]:
    """Split a model's trained parameters by learning-rate factor and weight decay; ``freeze`` takes more out.

    Returns:
        Groups for ``torch.optim.AdamW``, and the learning-rate factor of each group.

    Raises:
        UserError: a pattern fits no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    _check_patterns([*config.freeze, *config.lr_scale], names)
    freeze = [_expression(pattern) for pattern in config.freeze]
    factors = {_expression(pattern): factor for pattern, factor in config.lr_scale.items()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, name) for pattern in freeze):
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        scale = next((factor for pattern, factor in factors.items() if re.search(pattern, name)), 1.0)
        # ZeRO 3 leaves an empty tensor in a parameter's place, and its shape in ds_shape.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        decay = 0.0 if config.no_decay_1d and dimensions < 2 else config.weight_decay
        groups.setdefault((scale, decay), []).append(parameter)
    if not groups:
        raise UserError("Nothing is left to train: remove a pattern from optimizer.freeze, or set a part under train.")
    return [{"params": p, "weight_decay": decay} for (_, decay), p in groups.items()], [scale for scale, _ in groups]


def make_adamw(groups: Iterable[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """PyTorch's AdamW (DeepSpeed's own CPU and GPU versions have to be compiled)."""
    return torch.optim.AdamW(list(groups), lr=config.lr, betas=config.betas, eps=config.eps)


def set_learning_rate(optimizer: Any, rate: float, scales: list[float]) -> None:
    """Set each group's learning rate to ``rate`` times its factor."""
    for group, scale in zip(optimizer.param_groups, scales, strict=True):
        group["lr"] = rate * scale


def _expression(pattern: str) -> str:
    """The regular expression of a pattern: a part of the model stands for all of its parameters."""
    from padt.checkpoints.lora import PARTS

    return f"^({'|'.join(re.escape(prefix) for prefix in PARTS[pattern])})" if pattern in PARTS else pattern


def _check_patterns(patterns: list[str], names: list[str]) -> None:
    for pattern in patterns:
        try:
            found = any(re.search(_expression(pattern), name) for name in names)
        except re.error as error:
            raise UserError(f"The pattern {pattern!r} is not a regular expression: {error}.") from error
        if not found:
            tops = sorted({".".join(name.split(".")[:3]) for name in names})
            raise UserError(
                f"The pattern {pattern!r} fits no parameter of the model; they begin with {', '.join(tops[:12])}."
            )
