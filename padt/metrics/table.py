"""The metrics that there are: which way is better, which a gate watches, and how tables show them.

Evaluations write them as ``eval/<set>/<metric>``; the last part finds the row. Whoever compares, gates or prints scores
asks here, so that a new metric is a row of ``METRICS`` and the place that computes it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from padt.errors import UserError, suggestion

RELEASED = "released_"
"""Before the names of the released scorers' figures, which no gate watches."""

COCO_SUMMARY = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
"""The twelve figures of COCO's summary, in its order."""


@dataclass(frozen=True)
class Metric:
    """One row.

    Attributes:
        name: last part of the names of its values; ``{}`` stands for a number, as in ``precision_at_{}``.
        title: what it is, in a few words.
        better: which values are better; None for figures about which nothing can be called better.
        watched: whether a model that does worse in it than the champion is kept from replacing it.
        headline: whether it belongs to the few figures of a short table.
        digits: after the point, in tables.
    """

    name: str
    title: str
    better: Literal["higher", "lower"] | None = "higher"
    watched: bool = False
    headline: bool = False
    digits: int = 3

    def number(self, name: str) -> float | None:
        """The number that a name has for ``{}`` (0 for a row without it); None where it is no name of this row."""
        if "{}" not in self.name:
            return 0.0 if name == self.name else None
        head, tail = (re.escape(part) for part in self.name.split("{}"))
        found = re.fullmatch(rf"{head}(\d+(?:\.\d+)?){tail}", name)
        return float(found[1]) if found else None

    def reaches(self, value: float, threshold: float, tolerance: float = 0.0) -> bool:
        """Whether a value is as good as a threshold, or worse by no more than the tolerance; never for NaN."""
        return value <= threshold + tolerance if self.better == "lower" else value >= threshold - tolerance

    def best(self, values: Sequence[float | None]) -> int | None:
        """Position of the best value, the first of equals; None for fewer than two values, or without a direction."""
        known = [value for value in values if value is not None]
        if len(known) < 2 or self.better is None:
            return None
        return values.index(min(known) if self.better == "lower" else max(known))


METRICS = (
    Metric("precision_at_0.5", "REC Acc@0.5", watched=True, headline=True),
    Metric("precision_at_0.75", "REC Acc@0.75", headline=True),
    Metric("precision_at_{}", "REC Acc@{}"),
    Metric("vlm_r1_accuracy", "REC accuracy by VLM-R1's rule"),
    Metric("box_mIoU", "REC mean box IoU"),
    Metric("gIoU", "RES gIoU", watched=True, headline=True),
    Metric("cIoU", "RES cIoU", headline=True),
    Metric("mask_precision_at_{}", "RES share of masks at IoU {}"),
    Metric("mask_mIoU", "RES mean IoU, as the released scorer counts"),
    Metric("N_acc", "sentences without target, refused"),
    Metric("T_acc", "sentences with a target, answered"),
    Metric("presence_MCC", "is there a target: Matthews correlation"),
    *(
        Metric(
            f"{kind}_{name}",
            f"detection {kind} {name}",
            watched=name == "AP",
            headline=name == "AP" or (kind, name) == ("bbox", "AP50"),
        )
        for kind in ("bbox", "segm")
        for name in COCO_SUMMARY
    ),
    Metric("bbox_F1", "detection F1, means over IoU .5 to .95"),
    Metric("bbox_F1_{}", "detection F1 at IoU .{}"),
    Metric("boxes_per_second", "boxes a second, on the machine that answered", digits=1),
    Metric("calibration_error", "expected calibration error of scores", better="lower"),
    Metric("caption_grounded", "captions grounded", watched=True, headline=True),
    Metric("caption_GP", "captions: groups that fit an object (GP)"),
    Metric("caption_GR", "captions: objects that are mentioned (GR)"),
    Metric("caption_CIDEr_D", "captions: CIDEr-D, at most 10"),
    Metric("caption_METEOR", "captions: METEOR"),
    Metric("caption_ROUGE_L", "captions: ROUGE-L"),
    Metric("caption_BLEU_4", "captions: BLEU-4"),
    Metric("caption_tokens", "captions: tokens", better=None, digits=1),
    Metric("caption_objects", "captions: groups", better=None, digits=1),
)
"""All metrics, in the order of tables."""


def find_metric(name: str) -> Metric | None:
    """The row of a metric's name, whatever its set (``eval/toy/gIoU``, ``gIoU``, ``released_bbox_AP``), or None."""
    last = name.rsplit("/", 1)[-1].removeprefix(RELEASED)
    return next((metric for metric in METRICS if metric.number(last) is not None), None)


def require_metric(name: str, where: str) -> Metric:
    """The row of a metric that can be better or worse.

    Args:
        name: as ``find_metric`` takes it.
        where: what asks for it, as the error begins.

    Raises:
        UserError: there is no such metric (names the nearest), or none of its values is better than another.
    """
    metric = find_metric(name)
    if metric is None:
        raise UserError(
            f"{where}: metric {name!r} is unknown: "
            f"{suggestion(name.rsplit('/', 1)[-1], (metric.name for metric in METRICS))}"
        )
    if metric.better is None:
        raise UserError(f"{where}: metric {name!r} has no better or worse values: leave it out.")
    return metric


def in_order(names: Iterable[str]) -> list[str]:
    """Names as tables list them: set by set, in the order of ``METRICS``, unknown ones and released figures last."""
    return sorted(names, key=_place)


def is_watched(name: str) -> bool:
    """Whether a gate compares this metric with the champion's."""
    metric = find_metric(name)
    return metric is not None and metric.watched and not _is_released(name)


def is_headline(name: str) -> bool:
    """Whether a short table shows this metric."""
    metric = find_metric(name)
    return metric is not None and metric.headline and not _is_released(name)


def written(name: str, value: float) -> str:
    """A value of a metric as tables show it."""
    metric = find_metric(name)
    return f"{value:,.{metric.digits if metric is not None else 3}f}"


def label(name: str) -> str:
    """A metric's name for a table, with its direction where that is not the usual one."""
    metric = find_metric(name)
    return f"{name} (lower is better)" if metric is not None and metric.better == "lower" else name


def title(name: str) -> str:
    """What a metric is, with its set where the name has one: ``toy: RES gIoU`` for ``eval/toy/gIoU``."""
    folder, _, last = name.rpartition("/")
    metric = find_metric(last)
    if metric is None:
        return name
    words = metric.title.replace("{}", f"{metric.number(last.removeprefix(RELEASED)):g}")
    words = f"{words} (released scorer)" if _is_released(name) else words
    return f"{folder.rpartition('/')[2]}: {words}" if folder else words


def _is_released(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith(RELEASED)


def _place(name: str) -> tuple[str, bool, int, float, str]:
    folder, _, last = name.rpartition("/")
    metric = find_metric(name)
    if metric is None:
        return folder, _is_released(name), len(METRICS), 0.0, name
    number = metric.number(last.removeprefix(RELEASED)) or 0.0
    return folder, _is_released(name), METRICS.index(metric), number, name
