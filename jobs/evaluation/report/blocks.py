"""Blocks that several parts of a report are built of: shares by group, and what scores are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.evaluation.report.analysis import single_objects
from padt.data.patches import unpack_patches
from padt.drawing.charts import bar, reliability
from padt.drawing.page import Content, Markup, Number, element, paragraph, table
from padt.metrics.analysis.shares import SIZES, Share, calibration_error, in_powers, score_bins, shares, size_of


@dataclass(frozen=True)
class Group:
    """Shares of one kind of groups.

    Attributes:
        title: what they are of.
        name: of the groups, above their column.
        shares: of what is right.
        note: a remark.
    """

    title: str
    name: str
    shares: Sequence[Share]
    note: str | None = None


def by_object(things: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], bool]], what: str) -> list[Group]:
    """Shares of true objects by their size, their patches, and the number of objects in their picture.

    Args:
        things: entry of the object, its row, and whether it is right.
        what: the objects, as titles call them.
    """
    sizes = shares([(size_of(entry["area"]), hit) for entry, _, hit in things], SIZES)
    patches = shares([(in_powers(_patches(entry, row)), hit) for entry, row, hit in things])
    company = shares([(in_powers(len(single_objects(row))), hit) for _, row, hit in things])
    return [
        Group(f"{what}, by size", "size", sizes),
        Group(f"{what}, by patches", "patches", patches),
        Group(f"{what}, by objects in the picture", "objects", company),
    ]


def side_by_side(groups: Sequence[Group]) -> Markup:
    """Tables of shares in columns; empty ones are left out."""
    parts = []
    for group in groups:
        rows: list[list[Content]] = [
            [each.name, each.total, Number(f"{each.value:.3f}"), bar(each.value, each.interval)]
            for each in group.shares
        ]
        if rows:
            shown = table([group.name, "number", "right", ""], rows, group.title)
            remark = paragraph(group.note, class_="quiet") if group.note else None
            parts.append(element("div", element("h3", group.title), shown, remark))
    return element("div", *parts, class_="flow")


def score_worth(scores: np.ndarray, right: np.ndarray, quality: np.ndarray, what: str) -> list[Content]:
    """How far scores can be believed: calibration error, reliability diagram and its figures.

    Args:
        scores: ``(things,)``.
        right: ``(things,)``, 1 where one is right at IoU 0.5.
        quality: ``(things,)``, share of COCO's thresholds at which it is right.
        what: the things, in the plural.
    """
    if not len(scores):
        return [paragraph(f"There are no {what} with scores.", class_="quiet")]
    bins, strict = score_bins(scores, right), score_bins(scores, quality)
    rows: list[list[Content]] = [
        [
            Number(f"{one.low:.3f} to {one.high:.3f}"),
            one.number,
            Number(f"{one.score:.3f}"),
            Number(f"{one.right:.3f}"),
            Number(f"{other.right:.3f}"),
        ]
        for one, other in zip(bins, strict, strict=True)
    ]
    columns = ["scores", what, "mean score", "right at IoU .5", "right over IoU .5 to .95"]
    return [
        paragraph(
            f"Expected calibration error: {calibration_error(scores, right):.3f} at IoU .5, "
            f"{calibration_error(scores, quality):.3f} over IoU .5 to .95, which is what ",
            element("code", "padt calibrate"),
            f" fits scores to. Ten bins of equally many {what}; on the dashed line scores keep what they promise.",
        ),
        reliability([(one.score, one.right, one.number) for one in bins], f"Reliability of the scores of {what}"),
        table(columns, rows, f"Scores of {what} and how often they are right"),
    ]


def _patches(entry: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    return int(unpack_patches(entry["patches"], row["grid_h"] * row["grid_w"]).sum())
