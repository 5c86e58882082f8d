"""Plain PyTorch: every rank holds the whole model and optimiser, and gradients are averaged over the ranks."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from jobs.training.config import TrainConfig
from jobs.training.engine.backend import EngineName, StepOutcome
from jobs.training.optimizer import make_adamw, parameter_groups, set_learning_rate

FILE = "torch.pt"
# Gradients are added over the ranks in pieces of so many elements.
_BUCKET = 2**25


class TorchEngine:
    """A model and AdamW; see ``jobs.training.engine.backend.Engine``.

    Where the model's weights are not fp32, the optimiser's are: gradients are added up in fp32 as they come, and each
    step's weights are rounded from the optimiser's.
    """

    name: EngineName = "torch"
    partitioned = False

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device, micro_batches: int) -> None:
        """Args: see ``jobs.training.engine.backend.build_engine``."""
        self.module: Any = model.train()
        self.device = device
        self._max_norm = config.optimizer.max_grad_norm
        self._micro_batches = micro_batches
        groups, self._scales = parameter_groups(model, config.optimizer)
        self._masters: dict[nn.Parameter, nn.Parameter] = {}
        for group in groups:
            group["params"] = [self._master(parameter) for parameter in group["params"]]
        self.optimizer = make_adamw(groups, config.optimizer)

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        """The fp32 parameter that the optimiser changes in the place of one of the model's."""
        if parameter.dtype == torch.float32:
            self._masters[parameter] = parameter
        else:
            master = nn.Parameter(parameter.detach().float())
            self._masters[parameter] = master
            parameter.register_post_accumulate_grad_hook(partial(_add_to, master))
        return self._masters[parameter]

    def forward(self, **inputs: Any) -> Any:
        """See ``Engine``."""
        return self.module(**inputs)

    def backward(self, loss: torch.Tensor) -> None:
        """See ``Engine``."""
        (loss / self._micro_batches).backward()

    def step(self, rate: float, loss: torch.Tensor) -> StepOutcome:
        """See ``Engine``; a gradient that is not finite is left out."""
        gradients = [_gradient(parameter) for parameter in self._masters.values()]
        _average(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        told, size = torch.stack([loss.float(), norm.float()]).tolist()
        applied = math.isfinite(told) and math.isfinite(size)
        if applied:
            if self._max_norm:
                torch.nn.utils.clip_grads_with_norm_(self._masters.values(), self._max_norm, norm)
            set_learning_rate(self.optimizer, rate, self._scales)
            self.optimizer.step()
            self._round()
        self.optimizer.zero_grad()
        return StepOutcome(told, size, applied)

    @torch.no_grad()
    def _round(self) -> None:
        for parameter, master in self._masters.items():
            if parameter is not master:
                parameter.copy_(master)

    def save(self, folder: Path) -> None:
        """See ``Engine``; one rank writes for all, as they are alike."""
        if dist.is_initialized() and dist.get_rank() != 0:
            return
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        weights = {names[parameter]: master.detach() for parameter, master in self._masters.items()}
        torch.save({"weights": weights, "optimizer": self.optimizer.state_dict()}, folder / FILE)

    @torch.no_grad()
    def load(self, folder: Path, workers: int) -> None:
        """See ``Engine``; every rank reads the same."""
        values = torch.load(folder / FILE, map_location=self.device, weights_only=True)
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        for parameter, master in self._masters.items():
            master.copy_(values["weights"][names[parameter]])
        self._round()
        self.optimizer.load_state_dict(values["optimizer"])


def _add_to(master: nn.Parameter, parameter: nn.Parameter) -> None:
    """Move a parameter's fresh gradient into its fp32 sum."""
    assert parameter.grad is not None  # this runs when it has just come
    gradient = parameter.grad.float()
    master.grad = gradient if master.grad is None else master.grad.add_(gradient)
    parameter.grad = None


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    """A parameter's gradient, zero where no sample of the step has touched it: ranks must add up the same ones."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _average(gradients: list[torch.Tensor]) -> None:
    """Average gradients over the ranks, in place."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world == 1:
        return
    for bucket in _buckets(gradients):
        joined = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(joined)
        joined /= world
        for gradient, part in zip(bucket, joined.split([each.numel() for each in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and size + gradient.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
