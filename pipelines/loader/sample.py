"""From a row to a training sample: what is asked of it in this epoch, in which view, and with which words.

Every draw comes from ``(seed, epoch, sample)``, and each kind from numbers of its own: switching augmentation or
negatives on changes neither the class lists nor the VRTs of the other samples.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from padt.data.conversation import ImagePlace, Turn
from padt.data.tasks import TASKS, Sample, TaskOptions, render
from pipelines.loader.augment import augment
from pipelines.loader.mixture import SampleRef
from pipelines.loader.negatives import absent_classes, absent_reference
from pipelines.loader.plan import Plan
from pipelines.loader.shuffle import stream


class Drawer:
    """Makes the samples of one set of a plan."""

    def __init__(self, plan: Plan, number: int, options: TaskOptions) -> None:
        """Args: plan: of the run; number: of the set in its mixture; options: draws, with the set's class names."""
        self._seed = plan.seed
        self._spec = plan.mixture.specs[number]
        self._policy = plan.mixture.indices[number].policy
        self._augment = plan.augment if self._spec.augment else None
        self._pool = plan.pools[number] if plan.pools else None
        self._options = options

    def sample(self, row: dict[str, Any], ref: SampleRef, epoch: int) -> Sample:
        """The sample that an epoch makes of a row; a pure function of the arguments and the plan.

        Raises:
            UserError: the row lacks what the task needs, or its picture cannot be read.
        """
        rng = ref.rng(self._seed, epoch)
        if not TASKS[ref.task].grounded:
            return render(row, ref.task, 0, rng, self._options)
        options = self._options
        row = _only(row, ref)
        if self._spec.negatives.get(ref.task):
            row, options = self._negated(row, ref, stream("negative", self._seed, epoch, ref.identity))
        if self._augment is not None:
            views = stream("augment", self._seed, epoch, ref.identity)
            row = augment(row, ref.task, ref.scale, views, self._augment, self._policy)
        return joined([render(row, ref.task, item, rng, options) for item in range(len(ref.items))])

    def _negated(
        self, row: dict[str, Any], ref: SampleRef, rng: np.random.Generator
    ) -> tuple[dict[str, Any], TaskOptions]:
        """The row and options as they ask for something absent, each question with the set's probability."""
        share = self._spec.negatives[ref.task]
        if ref.task == "detect":
            if rng.random() >= share:
                return row, self._options
            names = absent_classes(row, self._options.class_names, self._options.max_names, rng)
            if names is None:
                return row, self._options
            return {**row, "objects": []}, replace(self._options, class_names=names, drop_names=0.0)
        references = []
        for item, reference in enumerate(row["references"]):
            absent = None
            if rng.random() < share and self._pool is not None:
                absent = absent_reference(row, item, self._pool, rng)
            references.append(absent or reference)
        return {**row, "references": references}, self._options


def _only(row: dict[str, Any], ref: SampleRef) -> dict[str, Any]:
    """The row with no sentence or caption but the sample's, numbered from 0."""
    kept: dict[str, Any] = {"references": [], "captions": []}
    column = TASKS[ref.task].column
    if column is not None:
        kept[column] = [row[column][item] for item in ref.items]
    return {**row, **kept}


def joined(samples: list[Sample]) -> Sample:
    """Samples about the same picture as one conversation: the picture stands before the first question."""
    turns: list[Turn] = []
    for sample in samples:
        turns += sample.turns if not turns else [_without_images(turn) for turn in sample.turns]
    return Sample(samples[0].key, samples[0].task, samples[0].images, tuple(turns))


def _without_images(turn: Turn) -> Turn:
    return Turn(turn.role, tuple(piece for piece in turn.content if not isinstance(piece, ImagePlace)))
