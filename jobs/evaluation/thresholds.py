"""``padt calibrate --thresholds``: scores above which mistakes are no more frequent than promised."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from jobs.evaluation.calibrate import Answered, AskOptions, ask_for_all, write_config
from jobs.evaluation.samples import EvalSet
from padt.inference.thresholds import ScoreThresholds
from padt.metrics.detect import fold


@dataclass(frozen=True)
class ThresholdResult:
    """What was found.

    Attributes:
        thresholds: as the model's configuration holds them.
        images: on which they stand.
        folder: the model that has them.
    """

    thresholds: ScoreThresholds
    images: int
    folder: str


def run_thresholds(
    model: str | os.PathLike,
    data_url: str | os.PathLike,
    out: str | os.PathLike | None = None,
    **options: Unpack[AskOptions],
) -> ThresholdResult:
    """Ask a model for every class of a prepared set and write thresholds into its configuration.

    They belong to the scores that the model gives: calibrate those first, on another set. Arguments and errors are as
    for ``jobs.evaluation.calibrate.run_calibrate``.
    """
    found, data, answers = ask_for_all(model, data_url, out, calibrated=True, **options)
    thresholds = ScoreThresholds.fit(absent_units(data, answers), wrong_units(answers))
    folder = write_config(found, out, {"score_thresholds": thresholds.to_dict()})
    return ThresholdResult(thresholds, len(answers), folder)


def wrong_units(answers: Sequence[Answered]) -> list[float]:
    """Each picture's highest score of an object that fits no true one of its label at IoU 0.5; 0 without such."""
    return [
        max((thing.score for thing, right in zip(each.objects, each.quality, strict=True) if right == 0), default=0.0)
        for each in answers
    ]


def absent_units(data: EvalSet, answers: Sequence[Answered]) -> list[float]:
    """For each picture that lacks a class of the set: the highest score with which one such class was found there.

    One class a picture, drawn by the picture's id: several of one picture would not be independent.
    """
    names = {category.id: fold(category.name) for category in data.manifest.categories}
    units = []
    for each in answers:
        shown = {names[true.category_id] for true in each.truth.objects}
        lacking = sorted(set(names.values()) - shown)
        if lacking:
            drawn = random.Random(each.truth.id).choice(lacking)
            scores = [thing.score for thing in each.objects if fold(thing.label) == drawn]
            units.append(float(np.max(scores)) if scores else 0.0)
    return units
