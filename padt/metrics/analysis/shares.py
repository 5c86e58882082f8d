"""Shares of what is right, by what it depends on, and how far scores can be believed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# COCO's borders between small, medium and large, in pixels of area.
_MEDIUM, _LARGE = 32**2, 96**2
SIZES = ("small", "medium", "large")
_Z = 1.959964


@dataclass(frozen=True)
class Share:
    """How many of some things are right.

    Attributes:
        name: of the group.
        right: of them.
        total: at least 1.
    """

    name: str
    right: int
    total: int

    @property
    def value(self) -> float:
        """In [0, 1]."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        share, spread = self.value, _Z**2 / self.total
        middle = (share + spread / 2) / (1 + spread)
        half = _Z / (1 + spread) * (share * (1 - share) / self.total + spread / (4 * self.total)) ** 0.5
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class ScoreBin:
    """Things of like scores.

    Attributes:
        low, high: least and greatest score.
        score: mean.
        right: mean of how right they are, in [0, 1].
        number: of them.
    """

    low: float
    high: float
    score: float
    right: float
    number: int


def shares(things: Iterable[tuple[str, bool]], order: Sequence[str] | None = None) -> list[Share]:
    """Shares by group.

    Args:
        things: group of each thing, and whether it is right.
        order: of the groups; default: by the first whole number in their names, then by name.
    """
    right: dict[str, int] = {}
    total: dict[str, int] = {}
    for name, hit in things:
        total[name] = total.get(name, 0) + 1
        right[name] = right.get(name, 0) + bool(hit)
    names = sorted(total, key=_number) if order is None else [name for name in order if name in total]
    return [Share(name, right[name], total[name]) for name in names]


def size_of(area: float) -> str:
    """COCO's word for an area in pixels: ``small``, ``medium`` or ``large``."""
    return SIZES[0] if area < _MEDIUM else SIZES[1] if area <= _LARGE else SIZES[2]


def in_powers(value: int) -> str:
    """The group of a count: 0, 1, 2, 3-4, 5-8, and so on in powers of two."""
    high = 1 << max(0, value - 1).bit_length()
    return str(value) if value <= 2 else f"{high // 2 + 1}-{high}"


def summed(histogram: Mapping[str, int]) -> dict[str, int]:
    """A histogram of counts (as text) with the groups of ``in_powers``."""
    bins: dict[str, int] = {}
    for value, count in histogram.items():
        name = in_powers(int(value))
        bins[name] = bins.get(name, 0) + count
    return bins


def score_bins(scores: np.ndarray, right: np.ndarray, bins: int = 10) -> list[ScoreBin]:
    """Bins of equally many things, lowest scores first.

    Args:
        scores: ``(things,)``.
        right: ``(things,)`` how right each is, in [0, 1].
        bins: at most so many; fewer for fewer things.
    """
    order = np.argsort(scores, kind="stable")
    return [
        ScoreBin(
            float(scores[part[0]]),
            float(scores[part[-1]]),
            float(scores[part].mean()),
            float(right[part].mean()),
            len(part),
        )
        for part in np.array_split(order, bins)
        if len(part)
    ]


def calibration_error(scores: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of ``(things,)`` scores, over the bins of ``score_bins``."""
    gaps = [abs(each.score - each.right) * each.number for each in score_bins(scores, right, bins)]
    return float(sum(gaps) / max(1, len(scores)))


def _number(name: str) -> tuple[float, str]:
    digits = name.split("-")[0]
    return (float(digits) if digits.isdecimal() else float("inf")), name
