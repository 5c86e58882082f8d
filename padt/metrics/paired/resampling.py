"""The paired bootstrap: how far apart two systems are, and how much of that another draw of images could have made.

Images are drawn with replacement, as many as there are, and both systems are scored on the same draws. Images, not
sentences, because the sentences of an image share what makes them hard. A metric is scored on a draw by counting each
image as often as it was drawn, from numbers that were computed once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
# A difference of values that is no more than rounding.
_TIE = 1e-9


@dataclass(frozen=True)
class Measure:
    """Metrics as functions of how often each image counts.

    Attributes:
        scores: weights ``(draws, images)`` -> values ``(draws,)`` by name of the metric, NaN where nothing can be said.
    """

    scores: Callable[[Array], dict[str, Array]]


@dataclass(frozen=True)
class Difference:
    """A metric of two systems.

    Attributes:
        first, second: its values on all images.
        low, high: ends of the interval of ``second - first`` in which the middle 95 % of the draws lie.
        draws: on which both systems have the metric.
    """

    first: float
    second: float
    low: float
    high: float
    draws: int

    @property
    def difference(self) -> float:
        """The second's value minus the first's."""
        return self.second - self.first

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Tally:
    """Who did better, question by question.

    Attributes:
        first, second, ties: questions that the first system did better on, the second, and neither.
        only_first, only_second: questions that the first alone, or the second alone, got right; None where an answer is
            not right or wrong.
        p: of McNemar's exact test, two-sided: how often chance alone would divide these as unevenly or more.
    """

    first: int
    second: int
    ties: int
    only_first: int | None = None
    only_second: int | None = None
    p: float | None = None


def image_draws(images: int, draws: int = RESAMPLES, seed: int = 0) -> NDArray[np.uint8]:
    """How often each image is drawn: ``(draws, images)``; the same seed gives the same draws."""
    source = np.random.default_rng(seed)
    counts = (np.bincount(source.integers(images, size=images), minlength=images) for _ in range(draws))
    return np.stack([row.clip(max=255).astype(np.uint8) for row in counts])


def differences(first: Measure, second: Measure, draws: NDArray[np.uint8], chunk: int = 50) -> dict[str, Difference]:
    """Metrics that both systems have on all images, with the intervals of their differences.

    Args:
        first: measure of the one.
        second: of the other, over the same images in the same order.
        draws: of :func:`image_draws`.
        chunk: draws that are scored at a time.
    """
    whole = np.ones((1, draws.shape[1]))
    values = [{name: float(own[0]) for name, own in each.scores(whole).items()} for each in (first, second)]
    shared = [name for name in values[0] if np.isfinite([one.get(name, np.nan) for one in values]).all()]
    gaps: dict[str, list[Array]] = {name: [] for name in shared}
    for start in range(0, len(draws), chunk):
        weights = draws[start : start + chunk].astype(np.float64)
        one, other = first.scores(weights), second.scores(weights)
        for name in shared:
            gaps[name].append(other[name] - one[name])
    found = {}
    for name in shared:
        gap = np.concatenate(gaps[name])
        gap = gap[np.isfinite(gap)]
        low, high = np.quantile(gap, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(gap) else (np.nan, np.nan)
        found[name] = Difference(values[0][name], values[1][name], float(low), float(high), len(gap))
    return found


def tally(
    first: Mapping[str, float], second: Mapping[str, float], right: Sequence[Mapping[str, bool]] | None = None
) -> Tally:
    """Compare two systems question by question.

    Args:
        first: how good each answer of the one is, by question.
        second: of the other, for the same questions.
        right: of both systems, whether each answer is right; questions that lack have no right answer.
    """
    gaps = np.array([second[name] - first[name] for name in first])
    better, worse = int((gaps < -_TIE).sum()), int((gaps > _TIE).sum())
    ties = len(gaps) - better - worse
    if right is None or not right[0]:
        return Tally(better, worse, ties)
    only_first = sum(own and not right[1][name] for name, own in right[0].items())
    only_second = sum(not own and right[1][name] for name, own in right[0].items())
    return Tally(better, worse, ties, only_first, only_second, mcnemar(only_first, only_second))


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test: the two-sided probability of so uneven a division of these questions, were it a coin's."""
    number, least = only_first + only_second, min(only_first, only_second)
    tail = sum(
        math.exp(math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1) - number * math.log(2))
        for k in range(least + 1)
    )
    return min(1.0, 2 * tail)


def ratio(above: Array, below: Array) -> Array:
    """``above / below``, NaN where that is 0 / 0 or worse."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


def summed(rows: Sequence[Mapping[str, float]], places: Sequence[int], images: int) -> dict[str, Array]:
    """Numbers of questions added up for each image.

    Args:
        rows: numbers by name, the same names for each question.
        places: the image of each question.
        images: how many there are.

    Returns:
        ``(images,)`` by name.
    """
    return {
        name: np.bincount(places, [float(row[name]) for row in rows], minlength=images).astype(np.float64)
        for name in (rows[0] if rows else ())
    }
