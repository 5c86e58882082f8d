"""Scores that rank: from what is known of a predicted object, the share of IoU thresholds at which it will be right.

The released code ranks detections by the decoder's score alone, an estimate of the box's GIoU. It knows nothing of the
label, and a second answer for an object that is named already scores as well as the first. A calibration is a logistic
regression on four features of an object: the logit of the decoder's score, the logarithm of its VRTs' confidence,
whether its group was cut off, and how far its box repeats an earlier one of the same label. It is fitted to the share
of COCO's ten IoU thresholds (0.5 to 0.95) at which the object is matched to a true one, and so estimates what an object
adds to the average precision. ``PaDTConfig.score_calibration`` holds it; None is the released behaviour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

import numpy as np

from padt.errors import UserError
from padt.inference.results import PredictedObject
from padt.metrics.detect import fold
from padt.metrics.overlap import Box, box_iou, match_greedily

THRESHOLDS = np.arange(50, 100, 5) / 100
FEATURES = ("score_logit", "log_confidence", "incomplete", "repeated")
# Keeps logarithms finite, and chances away from certainty.
_TINY = 1e-6
_MIN_OBJECTS = 20


class Scored(Protocol):
    """What a calibration needs of an object (``padt.inference.results.PredictedObject`` has it)."""

    @property
    def label(self) -> str:
        """What the answer calls it."""

    @property
    def score(self) -> float:
        """The decoder's score."""

    @property
    def confidence(self) -> float:
        """Geometric mean of the probabilities of its VRTs."""

    @property
    def complete(self) -> bool:
        """Whether its group is whole."""

    @property
    def box(self) -> Box:
        """``xyxy`` in pixels."""

    @property
    def image(self) -> int:
        """Which image of the request."""


@dataclass(frozen=True)
class ScoreCalibration:
    """Coefficients of the logistic regression.

    Attributes:
        intercept: for all objects.
        score_logit: for the logit of the decoder's score.
        log_confidence: for the logarithm of the VRTs' confidence.
        incomplete: for a group that was cut off.
        repeated: for the IoU with the nearest earlier box of the same label in the answer.
    """

    intercept: float
    score_logit: float
    log_confidence: float = 0.0
    incomplete: float = 0.0
    repeated: float = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ScoreCalibration":
        """Read ``PaDTConfig.score_calibration``.

        Raises:
            UserError: a coefficient is missing, unknown or no number.
        """
        known = {each.name for each in fields(cls)}
        try:
            if set(values) - known:
                raise TypeError
            return cls(**{name: float(value) for name, value in values.items()})
        except (TypeError, ValueError) as error:
            raise UserError(
                f"score_calibration in config.json must give numbers for {', '.join(sorted(known))}, not "
                f"{dict(values)}: run `padt calibrate` again, or set it to null."
            ) from error

    def to_dict(self) -> dict[str, float]:
        """Plain values for ``PaDTConfig.score_calibration``."""
        return asdict(self)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Features ``(objects, 4)`` -> calibrated scores ``(objects,)`` in (0, 1)."""
        weights = np.array([getattr(self, name) for name in FEATURES])
        return _sigmoid(features @ weights + self.intercept)


def features_of(objects: Sequence[Scored], earlier: Sequence[Scored] = ()) -> np.ndarray:
    """Features of objects of one answer, ``(objects, 4)`` in the order of ``FEATURES``.

    Args:
        objects: in order of writing, with the decoder's scores.
        earlier: objects of the same answer that were written before.
    """
    seen = list(earlier)
    rows = []
    for found in objects:
        same = [other.box for other in seen if fold(other.label) == fold(found.label) and other.image == found.image]
        score = min(max(found.score, _TINY), 1 - _TINY)
        rows.append(
            (
                np.log(score / (1 - score)),
                np.log(max(found.confidence, _TINY)),
                float(not found.complete),
                box_iou([found.box], same).max() if same else 0.0,
            )
        )
        seen.append(found)
    return np.array(rows, dtype=np.float64).reshape(-1, len(FEATURES))


def calibrated(
    values: Mapping[str, Any] | None, objects: Sequence[PredictedObject], earlier: Sequence[PredictedObject] = ()
) -> list[PredictedObject]:
    """Objects of one answer with calibrated scores; unchanged without a calibration.

    Args:
        values: ``PaDTConfig.score_calibration``.
        objects: in order of writing, with the decoder's scores.
        earlier: objects of the same answer that were written before.
    """
    if values is None or not objects:
        return list(objects)
    scores = ScoreCalibration.from_dict(values).scores(features_of(objects, earlier))
    return [replace(found, score=float(score)) for found, score in zip(objects, scores, strict=True)]


def quality_of(objects: Sequence[Scored], truth: Sequence[tuple[str, Box]]) -> np.ndarray:
    """Share of the IoU thresholds at which each object of an answer is right, ``(objects,)``.

    Objects and true ones of the same label are matched one to one, the best overlap first; what is left over is wrong.

    Args:
        objects: of one answer about one image.
        truth: label and box of the true objects.
    """
    quality = np.zeros(len(objects))
    for label in {fold(found.label) for found in objects}:
        places = [place for place, found in enumerate(objects) if fold(found.label) == label]
        boxes = [box for name, box in truth if fold(name) == label]
        overlap = box_iou([objects[place].box for place in places], boxes)
        for row, column in match_greedily(overlap, float(THRESHOLDS[0])):
            quality[places[row]] = (overlap[row, column] >= THRESHOLDS).mean()
    return quality


def fit_calibration(features: np.ndarray, quality: np.ndarray, penalty: float = 1e-3) -> ScoreCalibration:
    """Logistic regression by Newton's method.

    Args:
        features: ``(objects, 4)``.
        quality: ``(objects,)`` in [0, 1].
        penalty: of the squared coefficients of the standardised features, for each object.

    Raises:
        UserError: too few objects.
    """
    if len(features) < _MIN_OBJECTS:
        raise UserError(
            f"{len(features)} predicted objects are too few to calibrate scores: give a set on which the model finds "
            f"at least {_MIN_OBJECTS} in each half of the images."
        )
    mean, spread = features.mean(0), features.std(0)
    # A feature that never varies says nothing.
    varies = spread > _TINY
    rows = np.column_stack([(features[:, varies] - mean[varies]) / spread[varies], np.ones(len(features))])
    ridge = penalty * len(rows) * np.diag([1.0] * int(varies.sum()) + [_TINY])
    weights = np.zeros(rows.shape[1])
    for _ in range(100):
        chance = _sigmoid(rows @ weights)
        slope = rows.T @ (chance - quality) + ridge @ weights
        curvature = rows.T @ (rows * (chance * (1 - chance))[:, None]) + ridge
        step = np.linalg.solve(curvature, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    slopes = np.zeros(len(FEATURES))
    slopes[varies] = weights[:-1] / spread[varies]
    return ScoreCalibration(float(weights[-1] - slopes @ mean), *(float(slope) for slope in slopes))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))
