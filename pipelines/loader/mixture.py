"""Mixture of data sets and tasks: which samples an epoch visits.

A sample is ``(set, key, task, item, repeat)``. Every draw for it comes from ``(seed, epoch, sample)`` alone.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from padt.data.tasks import GROUNDED_TASKS, TASK_NAMES, TASKS
from padt.errors import check_range, look_up
from pipelines.dataset.index import SetIndex, positions
from pipelines.loader.shuffle import stream


@dataclass(frozen=True)
class SetSpec:
    """One data set of the mixture.

    Attributes:
        url: folder of the prepared set.
        tasks: visits of each sample of a task in one epoch; a fraction visits that share, and another one next epoch.
            Empty = once each of what the set holds.
        repeat: listings of the whole set; multiplies the visits (the released Pro mix lists COCO twice).
        items_per_image: at most this many sentences or captions of an image in an epoch, in turn over the epochs.
        sentences_per_sample: up to this many sentences of an image follow each other in one conversation, for which the
            image is encoded once; 1 = each alone, as released.
        negatives: share of a task's questions (``detect``, ``refer``) that ask for what is not there; see
            ``pipelines.loader.negatives``.
        augment: whether the run's augmentation applies to this set.
    """

    url: str
    tasks: dict[str, float] = field(default_factory=dict)
    repeat: int = 1
    items_per_image: int | None = None
    sentences_per_sample: int = 1
    negatives: dict[str, float] = field(default_factory=dict)
    augment: bool = True

    def __post_init__(self) -> None:
        here = f"of the data set {self.url}"
        for task, visits in self.tasks.items():
            look_up(f"Tasks {here}: task", task, TASKS)
            check_range(f"tasks.{task} {here}", visits, 0)
        for task, share in self.negatives.items():
            # Only these can ask for what is not there.
            look_up(f"Negatives {here}: task", task, dict.fromkeys(("detect", "refer")))
            check_range(f"negatives.{task} {here}", share, 0, 1)
        for name in ("repeat", "items_per_image", "sentences_per_sample"):
            if (value := getattr(self, name)) is not None:
                check_range(f"{name} {here}", value, 1)

    def of_what_is_there(self, index: SetIndex) -> "SetSpec":
        """The same with tasks: where none are named, those that the set has samples of (``chat`` if nothing else)."""
        if self.tasks:
            return self
        held = [task for task in GROUNDED_TASKS if len(index.items(task)[0])]
        named = [task for task in held if task != "detect" or index.class_names]
        return replace(self, tasks=dict.fromkeys(named or ["chat"], 1.0))

    @property
    def mixed(self) -> list[object]:
        """What of this shapes the samples; fields that came later only where they are used, so old runs go on."""
        later = [self.sentences_per_sample, sorted(self.negatives.items()), self.augment]
        plain = [sorted(self.tasks.items()), self.repeat, self.items_per_image]
        return plain if later == [1, [], True] else [*plain, *later]


@dataclass(frozen=True)
class Samples:
    """Samples of an epoch in canonical order: ``(count,)`` each; ``items`` is ``(count, width)``, padded by -1.

    ``scale`` is the factor of the image's sides in the epoch's view, where views are drawn.
    """

    set: np.ndarray
    task: np.ndarray
    row: np.ndarray
    items: np.ndarray
    repeat: np.ndarray
    scale: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row)

    def take(self, kept: np.ndarray) -> "Samples":
        """Some of the samples, by a bool mask ``(count,)`` or by numbers ``(kept,)``."""
        scale = self.scale[kept] if self.scale is not None else None
        return Samples(self.set[kept], self.task[kept], self.row[kept], self.items[kept], self.repeat[kept], scale)


@dataclass(frozen=True)
class SampleRef:
    """One sample, ready to be read.

    Attributes:
        set: number of the set in the mixture.
        row: row of the set's index.
        key: key of the row.
        task, items, repeat: as in the identity of a sample; several items where sentences share a conversation.
        identity: text that all draws of the sample are made from.
        scale: factor of the image's sides.
    """

    set: int
    row: int
    key: str
    task: str
    items: tuple[int, ...]
    repeat: int
    identity: str
    scale: float = 1.0

    @property
    def item(self) -> int:
        """The first of the items."""
        return self.items[0]

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
        width = max(spec.sentences_per_sample for spec in self.specs)
        columns = [[np.zeros((0, width) if number == 3 else 0, np.int32)] for number in range(5)]
        for number, (spec, index) in enumerate(zip(self.specs, self.indices, strict=True)):
            for task_number, task in enumerate(TASKS):
                visits = spec.tasks.get(task, 0.0) * spec.repeat
                rows, items = self._items(spec, index, task, epoch)
                # Sentences are grouped anew when the set was gone through.
                turn = (self.names[number], epoch if visits >= 1 else int(epoch * visits))
                grouped = spec.sentences_per_sample if task == "refer" else 1
                rows, items = _grouped(rows, items, grouped, width, stream("group", self.seed, *turn))
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
        return Samples(*(np.concatenate(column) for column in columns))

    def _items(self, spec: SetSpec, index: SetIndex, task: str, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rows, items = index.items(task)
        if spec.items_per_image is None or TASKS[task].column is None or len(rows) == 0:
            return rows, items
        # Turn k of an image with n items takes items k*cap .. (k+1)*cap - 1 modulo n: all come before any comes again.
        first = np.concatenate([[True], rows[1:] != rows[:-1]])
        starts = np.flatnonzero(first)
        counts = np.diff(np.append(starts, len(rows)))
        position = np.arange(len(rows)) - np.repeat(starts, counts)
        size = np.repeat(counts, counts)
        keep = (position - epoch * spec.items_per_image) % size < spec.items_per_image
        return rows[keep], items[keep]

    def ref(self, samples: Samples, number: int) -> SampleRef:
        """One of the samples, with its names."""
        place, row = int(samples.set[number]), int(samples.row[number])
        task, repeat = TASK_NAMES[samples.task[number]], int(samples.repeat[number])
        items = tuple(int(item) for item in samples.items[number] if item >= 0)
        key = self.indices[place].keys[row].as_py()
        identity = f"{self.names[place]}|{key}|{task}|{'+'.join(map(str, items))}|{repeat}"
        scale = float(samples.scale[number]) if samples.scale is not None else 1.0
        return SampleRef(place, row, key, task, items, repeat, identity, scale)

    def fingerprint(self) -> str:
        """Hash of the content of all sets and of how they are mixed."""
        tree = [[each.fingerprint, each.name, *spec.mixed] for spec, each in zip(self.specs, self.indices, strict=True)]
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


def _grouped(
    rows: np.ndarray, items: np.ndarray, size: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and item groups: up to ``size`` items of one row each, drawn at random, ``(groups, width)`` padded by -1."""
    if size == 1 or len(rows) == 0:
        padded = np.full((len(rows), width), -1, np.int32)
        padded[:, 0] = items
        return rows, padded
    shuffled = np.lexsort((rng.random(len(rows)), rows))
    place = positions(np.unique(rows, return_counts=True)[1])
    group = np.cumsum(place % size == 0) - 1
    padded = np.full((int(group[-1]) + 1, width), -1, np.int32)
    padded[group, place % size] = items[shuffled]
    return rows[place % size == 0], padded
