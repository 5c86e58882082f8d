"""Metrics between two records of a run: one rank's sums, added up over all ranks, made into means."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
import torch.distributed as dist

from padt.data.collate import Batch
from padt.model.losses import LOSS_TERMS, LossCounts


def loss_metric(name: str) -> str:
    """Name of a term of the loss in records, log and MLflow."""
    return f"train/loss_{name}"


def share_metric(kind: str) -> str:
    """Name of the share of samples of a task, or of a set as ``set_NAME``, in records and MLflow."""
    return f"data/share_{kind}"


@dataclass
class Meter:
    """Sums of one rank since the last record."""

    begun: float = field(default_factory=time.perf_counter)
    batches: int = 0
    samples: int = 0
    tokens: int = 0
    objects: int = 0
    masks: int = 0
    flops: int = 0
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    shares: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        total: torch.Tensor,
        parts: Mapping[str, torch.Tensor],
        *,
        own: LossCounts,
        divisors: LossCounts,
        tokens: int,
        flops: int = 0,
        shares: Mapping[str, int] | None = None,
    ) -> None:
        """Count one batch; losses stay on their device.

        Args:
            total: the loss that is differentiated, a scalar.
            parts: detached terms, scalars.
            own: samples, objects and masks in the batch.
            divisors: what sums over these were divided by.
            tokens: in the batch.
            flops: operations that the batch asks for.
            shares: samples by kind; every batch of every rank has the same kinds.
        """
        self.batches += 1
        self.samples += own.samples
        self.tokens += tokens
        self.flops += flops
        for kind, count in (shares or {}).items():
            self.shares[kind] = self.shares.get(kind, 0) + count
        self.objects += own.objects
        self.masks += own.masks
        values = {"train/loss": total}
        for name, term in LOSS_TERMS.items():
            values[loss_metric(name)] = parts[name].detach().float() * getattr(divisors, term.mean_over)
        for name, value in values.items():
            self.losses[name] = self.losses[name] + value if name in self.losses else value

    def sums(self, wait_share: float) -> dict[str, torch.Tensor]:
        """What the ranks add up by name, fp32 scalars: losses, counts, and the share of time spent waiting for data."""
        device = next(iter(self.losses.values())).device
        names = ("batches", "samples", "objects", "masks", "tokens", "flops")
        numbers = {**{name: getattr(self, name) for name in names}, "wait_share": wait_share}
        numbers |= {share_metric(kind): count for kind, count in self.shares.items()}
        return {
            **{name: value.float() for name, value in self.losses.items()},
            **{name: torch.tensor(float(value), device=device) for name, value in numbers.items()},
        }


def batch_counts(batch: Batch) -> LossCounts:
    """Samples, objects and masks of one batch."""
    objects = batch.objects
    # A placeholder for samples that were left out has no key.
    return LossCounts(sum(map(bool, batch.keys)), len(objects.counts), sum(mask is not None for mask in objects.masks))


def step_counts(
    batches: Sequence[Batch], left_out: int, device: torch.device, world_size: int
) -> tuple[LossCounts, int]:
    """Samples, objects and masks of an optimiser step on all ranks, which must call this together (one collective).

    Args:
        batches: of this rank.
        left_out: samples that were newly left out on this rank; those of all ranks are returned.
        device: that the collective runs on.
        world_size: number of ranks.
    """
    counts = [batch_counts(batch) for batch in batches]
    own = {each.name: sum(getattr(one, each.name) for one in counts) for each in fields(LossCounts)}
    own["left_out"] = left_out
    whole = added_over_ranks({name: torch.tensor(float(n), device=device) for name, n in own.items()}, world_size)
    numbers = {name: int(number) for name, number in whole.items()}
    lost = numbers.pop("left_out")
    return LossCounts(**numbers), lost


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
        if count := sums[term.mean_over]:
            means[loss_metric(name)] = sums[loss_metric(name)] / count
    return means


def shares(sums: Mapping[str, float]) -> dict[str, float]:
    """The mixture as it came out, by metric name, from the sums of all ranks: shares of the samples."""
    kinds = [name for name in sums if name.startswith(share_metric(""))]
    return {name: sums[name] / sums["samples"] for name in kinds if sums[name]}
