"""What the training loop needs of an optimiser back end, and which one a configuration means."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from jobs.training.config import TrainConfig
from padt.errors import UserError

EngineName = Literal["deepspeed", "torch"]


@dataclass(frozen=True)
class StepOutcome:
    """What became of an optimiser step.

    Attributes:
        loss: what was given to ``Engine.step``.
        norm: of the whole gradient before clipping.
        applied: whether the weights were changed: a gradient that is not finite may be left out.
    """

    loss: float
    norm: float
    applied: bool


class Engine(Protocol):
    """A model with its optimiser on one rank; all ranks make the same calls.

    Attributes:
        name: of the back end, as in the configuration.
        module: the model.
        device: of its weights.
        partitioned: whether each rank holds a share of the weights only.
    """

    name: EngineName
    module: Any
    device: torch.device
    partitioned: bool

    def forward(self, **inputs: Any) -> Any:
        """The model's output of one micro-batch."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's gradient to those of the step; the step's is the mean over micro-batches and ranks."""

    def step(self, rate: float, loss: torch.Tensor) -> StepOutcome:
        """Average, clip and apply the gradient of all micro-batches, and forget it.

        Args:
            rate: learning rate, before the factors of parameter groups.
            loss: of this rank's micro-batches, a scalar; it crosses to the host together with the norm, so that a step
                waits for its device once.
        """

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights and optimiser."""

    def load(self, folder: Path, workers: int) -> None:
        """Restore what ``save`` wrote of all ranks.

        Args:
            folder: of the whole checkpoint.
            workers: number of ranks that wrote it, which may be another than now.

        Raises:
            UserError: something of it is missing.
        """


def engine_of(config: TrainConfig) -> EngineName:
    """Which back end a configuration means.

    ``auto`` is plain PyTorch where there is nothing to shard (one worker, or ZeRO 0), and DeepSpeed otherwise.

    Raises:
        UserError: the back end is not installed, or cannot do what is asked.
    """
    shards = config.zero_stage > 0 and config.workers > 1
    name: EngineName = config.engine if config.engine != "auto" else ("deepspeed" if shards else "torch")
    if name == "torch" and shards:
        raise UserError(
            f"engine=torch does not shard, and zero_stage is {config.zero_stage}: set zero_stage=0 or workers=1, or "
            "engine=deepspeed."
        )
    if name == "deepspeed" and config.zero_stage == 0 and config.precision == "bf16":
        raise UserError(
            "engine=deepspeed adds gradients up in bf16 at zero_stage 0, which loses small ones: set engine=torch, or "
            "zero_stage=1."
        )
    if name == "deepspeed" and find_spec("deepspeed") is None:
        raise UserError(
            "DeepSpeed is not installed: pip install deepspeed, or set engine=torch (with zero_stage=0 or workers=1)."
        )
    return name


def is_partitioned(config: TrainConfig) -> bool:
    """Whether each rank holds a share of the weights only."""
    return config.zero_stage == 3 and engine_of(config) == "deepspeed"
