"""Overlap of boxes and of run-length masks: the arithmetic under every metric.

Boxes are ``xyxy`` in absolute pixels with continuous edges (a box from 2 to 5 is 3 pixels wide; nothing is rounded and
no pixel is added). Masks are COCO run-length codes ``{"size": [height, width], "counts": str | bytes | list}``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from padt.errors import UserError, install_command

Box = Sequence[float]
RLE = Mapping[str, Any]


def box_iou(boxes: Sequence[Box], others: Sequence[Box]) -> np.ndarray:
    """Intersection over union of every pair, ``(n, m)`` float64 in [0, 1]; 0 where both boxes are empty."""
    first = np.asarray(boxes, np.float64).reshape(-1, 1, 4)
    second = np.asarray(others, np.float64).reshape(1, -1, 4)
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low).clip(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(-1) for boxes in (first, second)]
    union = areas[0] + areas[1] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def match_greedily(iou: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """One-to-one pairs ``(row, column)`` whose IoU reaches ``threshold``, the best remaining pair first.

    Equal values go to the lower row, then to the lower column, so that the result never depends on the machine.
    """
    pairs: list[tuple[int, int]] = []
    rows, columns = np.nonzero(iou >= threshold)
    order = np.lexsort((columns, rows, -iou[rows, columns]))
    taken_rows: set[int] = set()
    taken_columns: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken_rows and column not in taken_columns:
            taken_rows.add(row)
            taken_columns.add(column)
            pairs.append((row, column))
    return pairs


def released_box(box: Box) -> tuple[float, float, float, float]:
    """An ``xyxy`` box whose corner, width and height are whole pixels, as the released scorers have it.

    Prepared sets keep boxes in fp32: what lies within its precision of a half is that half, and is rounded as it.
    """
    reach = max(abs(side) for side in box) * 2.0**-21

    def whole(value: float) -> float:
        half = round(2 * value) / 2
        return float(round(half if abs(value - half) <= reach else value))

    x, y = whole(box[0]), whole(box[1])
    return x, y, x + whole(box[2] - box[0]), y + whole(box[3] - box[1])


def mask_overlap(masks: Sequence[RLE], others: Sequence[RLE]) -> tuple[int, int]:
    """Pixels in the intersection and in the union of two areas, each the union of its masks.

    Raises:
        ValueError: masks of different sizes are compared.
    """
    tools = mask_tools()
    codes = [compressed(mask) for mask in (*masks, *others)]
    sizes = {tuple(code["size"]) for code in codes}
    if len(sizes) > 1:
        raise ValueError(f"Masks of different sizes {sorted(sizes)} cannot be compared.")
    first, second = codes[: len(masks)], codes[len(masks) :]
    # pycocotools answers an empty merge with a mask of no size.
    if not first or not second:
        return 0, int(tools.area(tools.merge(codes))) if codes else 0
    union = int(tools.area(tools.merge(codes)))
    both = tools.merge([tools.merge(first), tools.merge(second)], intersect=True)
    return int(tools.area(both)), union


def compressed(mask: RLE) -> dict[str, Any]:
    """The same mask with ``counts`` as bytes, as pycocotools takes it; runs given as a list are packed."""
    size = [int(side) for side in mask["size"]]
    counts = mask["counts"]
    if isinstance(counts, bytes):
        return {"size": size, "counts": counts}
    if isinstance(counts, str):
        return {"size": size, "counts": counts.encode("ascii")}
    return mask_tools().frPyObjects({"size": size, "counts": [int(run) for run in counts]}, *size)


def mask_tools():
    """The module ``pycocotools.mask``, imported when the first mask is compared.

    Raises:
        UserError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask as tools
    except ImportError as error:
        raise UserError(f"Mask metrics need pycocotools: install it with `{install_command('eval')}`.") from error
    return tools
