"""Metrics between two records of a run: one rank's sums, added up over all ranks, made into means."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from padt.model.losses import LOSS_TERMS


def loss_metric(name: str) -> str:
    """Name of a term of the loss in records, log and MLflow."""
    return f"train/loss_{name}"


@dataclass
class Meter:
    """Sums of one rank since the last record."""

    begun: float = field(default_factory=time.perf_counter)
    batches: int = 0
    samples: int = 0
    tokens: int = 0
    objects: int = 0
    losses: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(
        self,
        total: torch.Tensor,
        parts: Mapping[str, torch.Tensor],
        *,
        weight: float,
        samples: int,
        tokens: int,
        objects: int,
    ) -> None:
        """Count one batch; losses stay on their device.

        Args:
            total: the loss that is differentiated, a scalar.
            parts: detached terms, scalars.
            weight: of the batch beside others of its step; means over objects count by their number.
            samples: in the batch.
            tokens: in the batch.
            objects: in the batch.
        """
        self.batches += 1
        self.samples += samples
        self.tokens += tokens
        self.objects += objects
        values = {"train/loss": total * weight}
        for name, term in LOSS_TERMS.items():
            values[loss_metric(name)] = parts[name].detach().float() * (
                weight if term.mean_over == "samples" else objects
            )
        for name, value in values.items():
            self.losses[name] = self.losses[name] + value if name in self.losses else value

    def sums(self, wait_share: float) -> dict[str, torch.Tensor]:
        """What the ranks add up by name, fp32 scalars: losses, counts, and the share of time spent waiting for data."""
        device = next(iter(self.losses.values())).device
        counts = {"batches": self.batches, "objects": self.objects, "samples": self.samples, "tokens": self.tokens}
        numbers = {**counts, "wait_share": wait_share}
        return {
            **{name: value.float() for name, value in self.losses.items()},
            **{name: torch.tensor(float(value), device=device) for name, value in numbers.items()},
        }


def added_over_ranks(sums: Mapping[str, torch.Tensor], world_size: int) -> dict[str, float]:
    """Sums of all ranks in one collective; every rank must bring the same names."""
    joined = torch.stack(list(sums.values()))
    if world_size > 1:
        dist.all_reduce(joined)
    return dict(zip(sums, joined.tolist(), strict=True))


def mean_losses(sums: Mapping[str, float]) -> dict[str, float]:
    """Losses by metric name from the sums of all ranks.

    Where conversations are mixed in, batches may have no objects: these say nothing of boxes and masks, and a record of
    nothing else leaves them out.
    """
    means = {"train/loss": sums["train/loss"] / sums["batches"]}
    for name, term in LOSS_TERMS.items():
        if count := sums["batches" if term.mean_over == "samples" else "objects"]:
            means[loss_metric(name)] = sums[loss_metric(name)] / count
    return means
