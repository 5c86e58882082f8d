"""Thresholds that keep a promise: scores above them come from mistakes no more often than a stated rate.

Split conformal prediction (Vovk et al. 2005; Angelopoulos and Bates 2021): take the highest wrong score of each of n
held-out units. The ``ceil((1 - rate) (n + 1))``-th smallest of these is exceeded by a new unit of the same kind with a
chance of at most ``rate``, whatever the model and the distribution of its scores. No unit is smaller than a picture or
a question, for objects of one picture err together.

``absent``: units are questions for something that a picture does not show; the promise is that such a question is
answered with an object at most that often. ``wrong``: units are pictures; the promise is that a picture gets any wrong
object (none of its label at IoU 0.5) at most that often. Both hold on average over sets like the held-out one, and for
scores as they were then: a model that is trained or calibrated on needs new thresholds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from padt.errors import UserError

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
PROMISES = ("absent", "wrong")
Promise = Literal["absent", "wrong"]


def conformal_threshold(highest_wrong: Sequence[float], rate: float) -> float | None:
    """The score that a new unit's mistakes exceed with a chance of at most ``rate``.

    Args:
        highest_wrong: each held-out unit's highest wrong score; 0 for a unit without mistakes.
        rate: in (0, 1).

    Returns:
        The threshold: an object is kept if its score is above it. None where the units are too few to promise so much.
    """
    place = math.ceil((1 - rate) * (len(highest_wrong) + 1))
    if place > len(highest_wrong):
        return None
    return float(np.sort(np.asarray(highest_wrong, dtype=np.float64))[place - 1])


def units_needed(rate: float) -> int:
    """Held-out units without which nothing can be promised at a rate."""
    # Rounded first: 1 / 0.05 is a little more than 20 in binary.
    return math.ceil(round(1 / rate, 9)) - 1


@dataclass(frozen=True)
class ScoreThresholds:
    """What ``PaDTConfig.score_thresholds`` holds.

    Attributes:
        absent, wrong: threshold by rate, written as in ``"0.05"``; only rates for which there were units enough.
        absent_units, wrong_units: on which they stand.
    """

    absent: Mapping[str, float]
    wrong: Mapping[str, float]
    absent_units: int
    wrong_units: int

    @classmethod
    def fit(cls, absent: Sequence[float], wrong: Sequence[float]) -> "ScoreThresholds":
        """Thresholds at the usual rates.

        Args:
            absent: highest score of each answer to a question for something that is not there.
            wrong: highest wrong score of each picture.

        Raises:
            UserError: both are too few for the weakest promise.
        """
        found = [
            {f"{rate:g}": value for rate in RATES if (value := conformal_threshold(units, rate)) is not None}
            for units in (absent, wrong)
        ]
        if not any(found):
            raise UserError(
                f"{len(wrong)} pictures with {len(absent)} questions for what they do not show are too few to promise "
                f"anything: give at least {units_needed(max(RATES))} of one of them."
            )
        return cls(found[0], found[1], len(absent), len(wrong))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ScoreThresholds":
        """Read ``PaDTConfig.score_thresholds``.

        Raises:
            UserError: it is not what :meth:`to_dict` writes.
        """
        try:
            absent, wrong = ({str(key): float(each) for key, each in values[name].items()} for name in PROMISES)
            return cls(absent, wrong, int(values["absent_units"]), int(values["wrong_units"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                "score_thresholds in config.json cannot be read: run `padt calibrate --thresholds` again, or set it to "
                "null."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``PaDTConfig.score_thresholds``."""
        return asdict(self)


def threshold_of(values: Mapping[str, Any] | None, promise: Promise, rate: float) -> float:
    """The threshold that keeps a promise.

    Args:
        values: ``PaDTConfig.score_thresholds``.
        promise: which one.
        rate: how often it may be broken; the next smaller rate that is known counts for one between.

    Raises:
        UserError: the model has no thresholds, or none so strict.
    """
    if values is None:
        raise UserError(
            "The model has no thresholds for a rate of false alarms: `padt calibrate MODEL DATA --thresholds` makes "
            "them from a held-out set."
        )
    if not 0 < rate < 1:
        raise UserError(f"A rate of false alarms lies between 0 and 1, and {rate:g} does not.")
    found = ScoreThresholds.from_dict(values)
    known = {float(key): value for key, value in getattr(found, promise).items()}
    fitting = [each for each in known if each <= rate * (1 + 1e-9)]
    if not fitting:
        units = getattr(found, f"{promise}_units")
        raise UserError(
            f"The model's thresholds stand on {units} held-out units, too few for a rate of {rate:g} "
            f"({', '.join(f'{each:g}' for each in sorted(known)) or 'no rate'} can be promised): run `padt calibrate "
            f"--thresholds` on a set with at least {units_needed(rate)}."
        )
    return known[max(fitting)]
