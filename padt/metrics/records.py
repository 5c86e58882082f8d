"""What every metric reads and returns: found objects on one side, scores with their counts on the other."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from padt.metrics.overlap import RLE, Box
from padt.metrics.table import find_metric


class ObjectLike(Protocol):
    """What a metric needs of a predicted object (``padt.inference.predict.PredictedObject`` has it)."""

    @property
    def label(self) -> str:
        """Class name or sentence, as the answer words it."""

    @property
    def score(self) -> float:
        """Confidence in (0, 1)."""

    @property
    def box(self) -> Box:
        """``xyxy`` in absolute pixels of the upright original image."""

    @property
    def mask(self) -> RLE | None:
        """Run-length mask of the upright original image, or None."""


@dataclass(frozen=True)
class FoundObject:
    """A predicted object read back from ``predictions.parquet`` (or made by another model).

    Attributes:
        label: class name or sentence, as the answer words it.
        score: confidence in (0, 1).
        box: ``xyxy`` in absolute pixels of the upright original image.
        mask: run-length mask of the same image, or None.
        complete: False for an object whose group of VRTs was cut off.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: RLE | None = None
    complete: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FoundObject":
        """Read ``PredictedObject.to_dict()``; entries that metrics do not need are ignored."""
        x0, y0, x1, y1 = (float(edge) for edge in values["box"])
        return cls(
            label=str(values["label"]),
            score=float(values["score"]),
            box=(x0, y0, x1, y1),
            mask=values.get("mask"),
            complete=bool(values.get("complete", True)),
        )


@dataclass(frozen=True)
class Scores:
    """Metrics of one task, and how many things they stand on.

    Attributes:
        metrics: name to value; a metric that nothing can be said about is left out, never NaN.
        counts: name to number of samples, objects or exceptions.

    Raises:
        ValueError: a metric has no row in ``padt.metrics.table.METRICS``, so nobody could compare it.
    """

    metrics: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        strange = [name for name in self.metrics if find_metric(name) is None]
        if strange:
            raise ValueError(f"Metrics without a row in padt/metrics/table.py: {', '.join(strange)}.")


def check_ids(expected: Sequence[str], answered: Mapping[str, Any]) -> None:
    """Make sure that each sample is counted exactly once.

    Raises:
        ValueError: an id is expected twice, or an answer belongs to no sample.
    """
    numbers = Counter(expected)
    doubled = sorted(one for one, number in numbers.items() if number > 1)[:3]
    if doubled:
        raise ValueError(f"Sample ids must be unique; given more than once: {', '.join(doubled)}.")
    strange = sorted(set(answered) - set(numbers))[:3]
    if strange:
        raise ValueError(f"Answers to unknown samples: {', '.join(strange)}.")
