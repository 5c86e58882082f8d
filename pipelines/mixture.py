"""Mixture of data sets and tasks, and the plan of a run: which sample comes in which batch on which rank.

A sample is ``(set, key, task, item, repeat)``. Every draw for it comes from ``(seed, epoch, sample)`` alone.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from padt.errors import UserError
from padt.image import ResizePolicy
from padt.tasks import GROUNDED_TASKS, TASKS
from pipelines.index import SetIndex, load_index
from pipelines.manifest import Manifest
from pipelines.order import LastBatch, batch_count, epoch_batches, rank_part, stream


@dataclass(frozen=True)
class SetSpec:
    """One data set of the mixture.

    Attributes:
        url: folder of the prepared set.
        tasks: visits of each sample of a task in one epoch; a fraction visits that share, and another one next epoch.
        repeat: listings of the whole set; multiplies the visits.
        items_per_image: at most this many sentences or captions of an image in an epoch, in turn over the epochs.
    """

    url: str
    tasks: dict[str, float] = field(default_factory=lambda: dict.fromkeys(GROUNDED_TASKS, 1.0))
    repeat: int = 1
    items_per_image: int | None = None


@dataclass(frozen=True)
class Samples:
    """Samples of an epoch in canonical order; all arrays are ``(count,)``."""

    set: np.ndarray
    task: np.ndarray
    row: np.ndarray
    item: np.ndarray
    repeat: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class SampleRef:
    """One sample, ready to be read.

    Attributes:
        set: number of the set in the mixture.
        row: row of the set's index.
        key: key of the row.
        task, item, repeat: as in the identity of a sample.
        identity: text that all draws of the sample are made from.
    """

    set: int
    row: int
    key: str
    task: str
    item: int
    repeat: int
    identity: str

    def rng(self, seed: int, epoch: int) -> np.random.Generator:
        """Source of every draw for this sample in this epoch."""
        return stream("sample", seed, epoch, self.identity)


@dataclass(frozen=True)
class Mixture:
    """Data sets with their specifications; ``samples(epoch)`` is a pure function of the seed and the epoch."""

    specs: tuple[SetSpec, ...]
    indices: tuple[SetIndex, ...]
    seed: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the sets, made unique by their position where two are called the same."""
        plain = [index.name for index in self.indices]
        return tuple(f"{name}#{i}" if plain.count(name) > 1 else name for i, name in enumerate(plain))

    def samples(self, epoch: int) -> Samples:
        """Samples that the epoch visits."""
        columns: list[list[np.ndarray]] = [[], [], [], [], []]
        for number, (spec, index) in enumerate(zip(self.specs, self.indices, strict=True)):
            for task_number, task in enumerate(TASKS):
                rows, items = self._items(spec, index, task, epoch)
                visits = spec.tasks.get(task, 0.0) * spec.repeat
                listings = _visits(len(rows), visits, self.seed, epoch, (self.names[number], task))
                for repeat, chosen in enumerate(listings):
                    for column, values in zip(
                        columns,
                        (
                            np.full(len(chosen), number, np.int16),
                            np.full(len(chosen), task_number, np.int8),
                            rows[chosen],
                            items[chosen],
                            np.full(len(chosen), repeat, np.int16),
                        ),
                        strict=True,
                    ):
                        column.append(values)
        joined = [np.concatenate(column) if column else np.zeros(0, np.int32) for column in columns]
        return Samples(*joined)

    def _items(self, spec: SetSpec, index: SetIndex, task: str, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rows, items = index.items(task)
        if spec.items_per_image is None or task in ("detect", "chat") or len(rows) == 0:
            return rows, items
        # Turn k of an image with n items takes items k*cap .. (k+1)*cap - 1 modulo n: all come before any comes again.
        first = np.concatenate([[True], rows[1:] != rows[:-1]])
        starts = np.flatnonzero(first)
        counts = np.diff(np.append(starts, len(rows)))
        position = np.arange(len(rows)) - np.repeat(starts, counts)
        size = np.repeat(counts, counts)
        keep = (position - epoch * spec.items_per_image) % size < spec.items_per_image
        return rows[keep], items[keep]

    def fingerprint(self) -> str:
        """Hash of the content of all sets and of how they are mixed."""
        return data_fingerprint(self.specs, self.indices)


def data_fingerprint(specs: Sequence[SetSpec], sets: Sequence[Manifest | SetIndex]) -> str:
    """Hash of what a mixture trains on: content of the sets (wherever they lie), tasks and repeats."""
    tree = [
        [each.fingerprint, each.name, sorted(spec.tasks.items()), spec.repeat, spec.items_per_image]
        for spec, each in zip(specs, sets, strict=True)
    ]
    return hashlib.sha256(json.dumps(tree).encode()).hexdigest()[:16]


def _visits(count: int, visits: float, seed: int, epoch: int, name: tuple[str, str]) -> list[np.ndarray]:
    """Positions visited in each listing: whole listings first, then a share that moves on from epoch to epoch."""
    whole = int(visits)
    listings = [np.arange(count)] * whole
    share = round((visits - whole) * count)
    if share:
        turn = stream("share", seed, *name).permutation(count)
        listings.append(np.sort(turn[(epoch * share + np.arange(share)) % count]))
    return listings


@dataclass(frozen=True)
class Plan:
    """Which samples come in which batch of a run: a pure function of its fields.

    Batches are numbered through the whole run: global batch ``b`` is batch ``b % batches_per_epoch`` of epoch
    ``b // batches_per_epoch``.

    Attributes:
        mixture: sets and tasks.
        seed: the run's seed.
        batch_size: samples of one rank in one batch.
        world_size: number of ranks.
        window, last: see ``pipelines.order.epoch_batches``.
    """

    mixture: Mixture
    seed: int
    batch_size: int
    world_size: int
    window: int = 32
    last: LastBatch = "fill"

    @cached_property
    def samples_per_epoch(self) -> int:
        """Samples that one epoch visits (the same in all epochs)."""
        return len(self.mixture.samples(0))

    @cached_property
    def batches_per_epoch(self) -> int:
        """Global batches in one epoch."""
        return batch_count(self.samples_per_epoch, self.batch_size * self.world_size, self.last)

    def reader(self) -> "PlanReader":
        """A view that keeps the order of the epoch it was last asked for."""
        return PlanReader(self)

    def fingerprint(self) -> dict[str, object]:
        """What must be equal for a checkpoint's batch number to mean the same batches."""
        return {
            "data": self.mixture.fingerprint(),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "window": self.window,
            "last": self.last,
        }


class PlanReader:
    """Looks up batches of a plan; keeps the current epoch's order in memory."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._epoch = -1

    def batch(self, number: int, rank: int) -> tuple[int, list[SampleRef]]:
        """Epoch and samples of one rank in global batch ``number``."""
        plan = self.plan
        epoch, position = divmod(number, plan.batches_per_epoch)
        if epoch != self._epoch:
            self._load(epoch)
        chosen = rank_part(self._batches[position], rank, plan.world_size)
        return epoch, [self._ref(int(i)) for i in chosen]

    def _load(self, epoch: int) -> None:
        plan = self.plan
        samples = plan.mixture.samples(epoch)
        sizes = np.zeros(len(samples), dtype=np.int64)
        for number, index in enumerate(plan.mixture.indices):
            mine = samples.set == number
            rows = samples.row[mine]
            # Area first, then height: grids of one area but another shape do not share a batch if it can be helped.
            sizes[mine] = index.grid_h[rows].astype(np.int64) * index.grid_w[rows] * 100_000 + index.grid_h[rows]
        self._samples = samples
        self._batches = epoch_batches(
            sizes, plan.batch_size * plan.world_size, plan.seed, epoch, window=plan.window, last=plan.last
        )
        self._epoch = epoch

    def _ref(self, i: int) -> SampleRef:
        samples, mixture = self._samples, self.plan.mixture
        number, row = int(samples.set[i]), int(samples.row[i])
        task, item, repeat = TASKS[samples.task[i]], int(samples.item[i]), int(samples.repeat[i])
        key = mixture.indices[number].keys[row].as_py()
        identity = f"{mixture.names[number]}|{key}|{task}|{item}|{repeat}"
        return SampleRef(number, row, key, task, item, repeat, identity)


def make_plan(
    specs: Sequence[SetSpec],
    *,
    seed: int,
    batch_size: int,
    world_size: int,
    policy: ResizePolicy,
    window: int = 32,
    last: LastBatch = "fill",
) -> Plan:
    """Read the indices of all sets and check that a run on them makes sense.

    Args:
        specs: the mixture.
        seed: seed of order and draws.
        batch_size: samples of one rank in one batch.
        world_size: number of ranks.
        policy: resize policy of the model's processor.
        window: batches sorted by size together.
        last: what becomes of the last incomplete batch.

    Raises:
        UserError: a set is missing or was prepared with another resize policy, or a task has no samples.
    """
    indices = tuple(load_index(spec.url) for spec in specs)
    for spec, index in zip(specs, indices, strict=True):
        if index.policy != policy:
            raise UserError(
                f"The data set {spec.url} was prepared with {index.policy}, the model resizes with {policy}: prepare "
                f"it again with --min-pixels {policy.min_pixels} --max-pixels {policy.max_pixels}, or change the "
                "model's processor."
            )
        _check_tasks(spec, index)
    plan = Plan(Mixture(tuple(specs), indices, seed), seed, batch_size, world_size, window, last)
    if plan.samples_per_epoch == 0:
        raise UserError("The mixture has no samples: give a task of some data set a weight above 0.")
    if plan.batches_per_epoch == 0:
        raise UserError(
            f"An epoch has {plan.samples_per_epoch} samples, fewer than one global batch of {batch_size * world_size}: "
            "lower batch_size, or set data.last=fill."
        )
    return plan


def _check_tasks(spec: SetSpec, index: SetIndex) -> None:
    for task, visits in spec.tasks.items():
        if visits > 0 and len(index.items(task)[0]) == 0:
            missing = {"refer": "referring sentences", "caption": "captions", "chat": "conversations"}.get(
                task, "images"
            )
            hint = "; conversations are trained on with tasks: {chat: 1}" if len(index.items("chat")[0]) else ""
            raise UserError(f"The data set {spec.url} has no {missing}: remove task {task!r} from its tasks{hint}.")
        if visits > 0 and task == "detect" and not index.class_names:
            raise UserError(f"The data set {spec.url} has no categories: remove task 'detect' from its tasks.")
