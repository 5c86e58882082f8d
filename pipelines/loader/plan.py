"""The plan of a run: which samples come in which optimiser step, as a pure function of its fields.

A global batch is what one optimiser step learns from. It is cut into micro-batches, which the ranks share out among
them: the samples of a step, and those of each micro-batch, are the same on any number of ranks. Whoever knows the plan
and the number of a step knows its samples: there is no other state to save.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from padt.data.image import ResizePolicy
from padt.data.tasks import TASK_NAMES, TASKS, TaskOptions
from padt.errors import UserError
from pipelines.dataset.index import SetIndex, load_index
from pipelines.loader.augment import AugmentOptions
from pipelines.loader.batching import Batching, EpochBatches, budget_batches, fixed_batches
from pipelines.loader.length_estimates import Measure, SetLengths, set_lengths
from pipelines.loader.mixture import Mixture, SampleRef, Samples, SetSpec
from pipelines.loader.negatives import EXTRA_BYTES, SentencePool, sentence_pool
from pipelines.loader.shuffle import LastBatch, batch_count, uniform


@dataclass(frozen=True)
class Plan:
    """Which samples come in which batch of a run.

    Global batches are numbered through the whole run, epoch after epoch (see ``locate``), as its optimiser steps are.

    Attributes:
        mixture: sets and tasks.
        seed: the run's seed.
        batch_size: samples of one micro-batch; with ``batching`` the most of them.
        micro_batches: of a global batch.
        window, last: see ``pipelines.loader.shuffle.epoch_batches``.
        batching: budget of a micro-batch of samples of similar length, or None for ``batch_size`` samples in each.
        lengths: of each set's samples, where there is a budget.
        augment: views that are drawn of pictures.
        pools: sentences of each set to ask where they do not belong, where its mixture asks for that.
    """

    mixture: Mixture
    seed: int
    batch_size: int
    micro_batches: int
    window: int = 32
    last: LastBatch = "fill"
    batching: Batching | None = None
    lengths: tuple[SetLengths, ...] = ()
    augment: AugmentOptions | None = None
    pools: tuple[SentencePool | None, ...] = ()

    @property
    def policy(self) -> ResizePolicy:
        """Resize policy that all sets were prepared with."""
        return self.mixture.indices[0].policy

    @cached_property
    def samples_per_epoch(self) -> int:
        """Samples that one epoch visits."""
        return len(self.samples(0))

    @cached_property
    def batches_per_epoch(self) -> int:
        """Global batches in the first epoch; with a budget other epochs may have a few more or less."""
        return self.batches_in(0)

    @property
    def samples_per_step(self) -> int:
        """Samples of a global batch; with a budget the most of them."""
        return self.batch_size * self.micro_batches

    def turns(self, world_size: int) -> int:
        """Micro-batches of a global batch that each of so many ranks takes, one after the other."""
        return -(-self.micro_batches // world_size)

    def place(self, number: int, rank: int, world_size: int) -> tuple[int, int]:
        """Where a rank's ``number``-th micro-batch of the run stands: global batch, and micro-batch in it.

        In each turn the ranks take neighbours, which are of like length. Where it does not come out even, the last turn
        leaves some ranks with a micro-batch beyond the last one, which is empty.
        """
        batch, turn = divmod(number, self.turns(world_size))
        return batch, turn * world_size + rank

    def samples(self, epoch: int) -> Samples:
        """Samples that an epoch visits: those of the mixture that fit into a batch."""
        samples = self.drawn(epoch)
        return samples if self.batching is None else samples.take(self.batching.fits(*self.sizes(samples)))

    def drawn(self, epoch: int) -> Samples:
        """Samples of the mixture, with the scales of their views."""
        samples = self.mixture.samples(epoch)
        if self.augment is None:
            return samples
        columns = samples.set, samples.task, samples.row, samples.items[:, 0], samples.repeat
        return replace(samples, scale=self.augment.scales(uniform(self.seed, epoch, *columns)))

    def sizes(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """Positions (image placeholders included) and patches of samples at most, ``(count,)`` each."""
        tokens, patches = (np.zeros(len(samples), dtype=np.int64) for _ in range(2))
        for number, (spec, index, lengths) in enumerate(
            zip(self.mixture.specs, self.mixture.indices, self.lengths, strict=True)
        ):
            for task_number, task in enumerate(TASKS):
                mine = np.flatnonzero((samples.set == number) & (samples.task == task_number))
                rows, items = samples.row[mine], samples.items[mine]
                for column in items.T:
                    filled = column >= 0
                    tokens[mine[filled]] += lengths.tokens(task, rows[filled], column[filled])
                patches[mine] = lengths.patches[rows]
                if self.augment is not None and spec.augment and TASKS[task].grounded:
                    grids = index.grid_h[rows].astype(np.int64), index.grid_w[rows].astype(np.int64)
                    scales = samples.scale[mine] if samples.scale is not None else np.ones(len(mine))
                    patches[mine] = self.augment.largest_grid(*grids, scales, index.policy)
        return tokens + patches, patches

    def skipped(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Samples of the first epoch that are too long for any batch: (set, task) -> (how many, of how many)."""
        if self.batching is None:
            return {}
        samples = self.drawn(0)
        fits = self.batching.fits(*self.sizes(samples))
        counts = {}
        for number, name in enumerate(self.mixture.names):
            for task_number, task in enumerate(TASKS):
                mine = (samples.set == number) & (samples.task == task_number)
                if lost := int((mine & ~fits).sum()):
                    counts[name, task] = (lost, int(mine.sum()))
        return counts

    def epoch(self, epoch: int) -> tuple[Samples, EpochBatches]:
        """Samples and batches of an epoch."""
        samples = self.samples(epoch)
        if self.batching is None:
            sizes = _grid_order(samples, self.mixture.indices)
            return samples, fixed_batches(
                sizes, self.batch_size, self.micro_batches, self.seed, epoch, window=self.window, last=self.last
            )
        tokens, patches = self.sizes(samples)
        return samples, budget_batches(
            tokens,
            patches,
            self.batching,
            max_samples=self.batch_size,
            parts=self.micro_batches,
            seed=self.seed,
            epoch=epoch,
            window=self.window,
            last=self.last,
        )

    def batches_in(self, epoch: int) -> int:
        """Global batches of an epoch."""
        if self.batching is None:
            return batch_count(self.samples_per_epoch, self.samples_per_step, self.last)
        if epoch not in self._counts:
            self._counts[epoch] = len(self.epoch(epoch)[1])
        return self._counts[epoch]

    def batches_until(self, epochs: float) -> int:
        """Global batches of so many epochs; the last one may be a part."""
        whole = int(epochs)
        done = sum(self.batches_in(epoch) for epoch in range(whole))
        return done + round((epochs - whole) * self.batches_in(whole)) if epochs > whole else done

    def locate(self, number: int) -> tuple[int, int]:
        """Epoch and place in it of a global batch."""
        if self.batching is None:
            return divmod(number, self.batches_per_epoch)
        epoch = 0
        while number >= (count := self.batches_in(epoch)):
            number -= count
            epoch += 1
        return epoch, number

    @cached_property
    def _counts(self) -> dict[int, int]:
        return {}

    def reader(self) -> "PlanReader":
        """A view that keeps the order of the epochs it was last asked for."""
        return PlanReader(self)

    def fingerprint(self) -> dict[str, object]:
        """What must be equal for a checkpoint's step to have seen the same samples."""
        plain = {
            "data": self.mixture.fingerprint(),
            "seed": self.seed,
            "samples_per_step": self.samples_per_step,
            "window": self.window,
            "last": self.last,
        }
        # Only where they are used: checkpoints from before there were any go on.
        if self.batching is not None:
            plain["batching"] = asdict(self.batching)
            plain["batch_size"] = self.batch_size
            plain["lengths"] = [lengths.digest() for lengths in self.lengths]
        if self.augment is not None:
            plain["augment"] = {name: str(value) for name, value in asdict(self.augment).items()}
        return plain


class PlanReader:
    """Looks up batches of a plan; keeps the order of two epochs in memory, since a step may span them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._epochs: dict[int, tuple[Samples, EpochBatches]] = {}

    def batch(self, number: int, part: int) -> tuple[int, list[SampleRef]]:
        """Epoch and samples of one micro-batch of global batch ``number``; none beyond its last one."""
        epoch, place = self.plan.locate(number)
        if part >= self.plan.micro_batches:
            return epoch, []
        samples, batches = self._epoch(epoch)
        return epoch, [self.plan.mixture.ref(samples, int(i)) for i in batches.part(place, part)]

    def sizes(self, number: int) -> np.ndarray:
        """Samples of each micro-batch of global batch ``number``, ``(micro_batches,)``."""
        epoch, place = self.plan.locate(number)
        return self._epoch(epoch)[1].sizes(place)

    def _epoch(self, epoch: int) -> tuple[Samples, EpochBatches]:
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = self.plan.epoch(epoch)
        return self._epochs[epoch]


def _grid_order(samples: Samples, indices: Sequence[SetIndex]) -> np.ndarray:
    """Sort key of samples: patches of the first image, then its height."""
    order = np.zeros(len(samples), dtype=np.int64)
    for number, index in enumerate(indices):
        mine = samples.set == number
        rows = samples.row[mine]
        # Area first, then height: grids of one area but another shape do not share a batch if it can be helped.
        order[mine] = index.grid_h[rows].astype(np.int64) * index.grid_w[rows] * 100_000 + index.grid_h[rows]
    return order


def make_plan(
    specs: Sequence[SetSpec],
    *,
    seed: int,
    batch_size: int,
    micro_batches: int,
    policy: ResizePolicy,
    window: int = 32,
    last: LastBatch = "fill",
    batching: Batching | None = None,
    augment: AugmentOptions | None = None,
    measure: Measure | None = None,
    task: TaskOptions | None = None,
) -> Plan:
    """Read the indices of all sets and check that a run on them makes sense.

    Args:
        specs: the mixture.
        seed: seed of order and draws.
        batch_size: samples of one micro-batch; with ``batching`` the most of them.
        micro_batches: of a global batch.
        policy: resize policy of the model's processor.
        window: global batches sorted by size together.
        last: what becomes of the last incomplete batch.
        batching: budget of a micro-batch, in place of a fixed number of samples.
        augment: views that are drawn of pictures.
        measure: the model's processor; needed by ``batching``.
        task: draws of prompts and answers, which the lengths of samples depend on.

    Raises:
        UserError: a set is missing or was prepared with another resize policy, a task has no samples, or the budget is
            smaller than the smallest sample of a task.
    """
    indices = tuple(load_index(spec.url) for spec in specs)
    specs = [spec.of_what_is_there(index) for spec, index in zip(specs, indices, strict=True)]
    for spec, index in zip(specs, indices, strict=True):
        if index.policy != policy:
            same_least = index.policy.min_pixels == policy.min_pixels
            raise UserError(
                f"The data set {spec.url} was prepared with {index.policy}, the model resizes with {policy}: prepare "
                f"it again with --min-pixels {policy.min_pixels} --max-pixels {policy.max_pixels}"
                + (f", or train with max_pixels={index.policy.max_pixels}." if same_least else ".")
            )
        _check_tasks(spec, index)
    lengths: tuple[SetLengths, ...] = ()
    if batching is not None:
        if measure is None:
            raise ValueError("batching needs the model's processor as measure")
        extra = [EXTRA_BYTES if spec.negatives.get("refer") else 0 for spec in specs]
        options = task or TaskOptions()
        growth = max(1.0, augment.scale[1]) ** 2 if augment is not None else None
        lengths = tuple(
            set_lengths(index, options, measure, more, growth) for index, more in zip(indices, extra, strict=True)
        )
    plan = Plan(
        mixture=Mixture(tuple(specs), indices, seed),
        seed=seed,
        batch_size=batch_size,
        micro_batches=micro_batches,
        window=window,
        last=last,
        batching=batching,
        lengths=lengths,
        augment=augment,
        pools=tuple(
            sentence_pool(index) if spec.negatives.get("refer") else None
            for spec, index in zip(specs, indices, strict=True)
        ),
    )
    _check_plan(plan)
    return plan


def _check_plan(plan: Plan) -> None:
    if len(plan.mixture.samples(0)) == 0:
        raise UserError("The mixture has no samples: give a task of some data set a weight above 0.")
    for (name, task), (lost, count) in plan.skipped().items():
        if lost == count:
            raise UserError(
                f"data.batching is smaller than every sample of task {task!r} in the data set {name} "
                f"({_smallest(plan, name, task)}): raise it, or remove the task."
            )
    if plan.batches_per_epoch == 0:
        raise UserError(
            f"An epoch has {plan.samples_per_epoch} samples, fewer than one global batch of "
            f"{plan.samples_per_step}: lower batch_size, or set data.last=fill."
        )


def _smallest(plan: Plan, name: str, task: str) -> str:
    samples = plan.drawn(0)
    mine = (samples.set == plan.mixture.names.index(name)) & (samples.task == TASK_NAMES.index(task))
    tokens, patches = (values[mine].min() for values in plan.sizes(samples))
    return f"the smallest has {tokens} tokens and {patches} patches by estimate"


def _check_tasks(spec: SetSpec, index: SetIndex) -> None:
    for task, visits in spec.tasks.items():
        if visits > 0 and len(index.items(task)[0]) == 0:
            hint = "; conversations are trained on with tasks: {chat: 1}" if len(index.items("chat")[0]) else ""
            raise UserError(
                f"The data set {spec.url} has no {TASKS[task].needs}: remove task {task!r} from its tasks{hint}."
            )
        if visits > 0 and task == "detect" and not index.class_names:
            raise UserError(f"The data set {spec.url} has no categories: remove task 'detect' from its tasks.")
