"""Segmentations as annotation files write them, turned into run-length masks."""

import ast
import json
import math
from typing import Any, NamedTuple

from padt.data import rle
from pipelines.sources.boxes import SHORT_SIDE

# A polygon may leave its image a little; one that leaves it by this many image sides is damaged, and tracing it would
# take memory by the length of its edges.
_MOST_SIDES = 10
_FEWEST_NUMBERS = 6


class MaskError(Exception):
    """A segmentation that is damaged. ``reason`` is one of ``pipelines.dataset.schema.REJECT_REASONS``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ReadMask(NamedTuple):
    """What a segmentation says.

    Attributes:
        mask: run-length mask; None where there is none.
        bounds: ``(x0, y0, x1, y1)`` in pixels, ends exclusive, that the mask spans; None where there is none.
        left_out: unusable polygons beside usable ones.
        lost: why there is no mask although something is written, as a repair: ``mask_unread`` (in a form whose meaning
            is not clear) or ``mask_empty`` (it covers no pixel of the image).
    """

    mask: dict[str, Any] | None = None
    bounds: tuple[float, float, float, float] | None = None
    left_out: int = 0
    lost: str | None = None


def mask_of(segmentation: Any, height: int, width: int) -> ReadMask:
    """Run-length mask of a segmentation.

    Read are polygons in pixels (``[[x, y, ...], ...]``; also as pairs, as a single one, in lists too many, in parts of
    the image, or with numbers as text), run-length masks with compressed or uncompressed ``counts`` (also in a list,
    each a part), either of them also as JSON in text, and nothing, in every way that exports of boxes write it.

    Args:
        segmentation: as the annotation has it.
        height: of the image, pixels.
        width: of the image, pixels.

    Raises:
        MaskError: the form is clear and the numbers are damaged.
    """
    if isinstance(segmentation, str):
        segmentation = _parsed(segmentation.strip())
    if not segmentation or (isinstance(segmentation, list) and not any(segmentation)):
        return ReadMask()
    if isinstance(segmentation, dict) and ("counts" in segmentation or "size" in segmentation):
        return _checked(_from_runs(segmentation, height, width))
    if isinstance(segmentation, dict):
        segmentation = segmentation.get("points")
    if not isinstance(segmentation, list):
        return ReadMask(lost="mask_unread")
    if all(isinstance(part, dict) and "counts" in part for part in segmentation):
        return _checked(_joined([_from_runs(part, height, width) for part in segmentation]))
    return _from_polygons(_polygons(segmentation), height, width)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _checked(mask: dict[str, Any], left_out: int = 0) -> ReadMask:
    from pycocotools import mask as coco_mask

    x, y, w, h = coco_mask.toBbox(mask).tolist()
    if w <= 0 or h <= 0:
        return ReadMask(left_out=left_out, lost="mask_empty")
    return ReadMask(mask, (x, y, x + w, y + h), left_out)


def _joined(masks: list[dict[str, Any]]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    if len(masks) == 1:
        return masks[0]
    whole = coco_mask.merge(masks)
    return {"size": masks[0]["size"], "counts": whole["counts"].decode("ascii")}


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    counts = segmentation.get("counts")
    if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
        segmentation = {**segmentation, "counts": _bytes_of(counts)}
    try:
        if rle.size(segmentation) != (height, width):
            found = "x".join(str(side) for side in segmentation["size"])
            raise MaskError("mask_size_mismatch", f"mask of {found}, image of {height}x{width} (height x width)")
        return rle.from_runs(rle.runs(segmentation), height, width)
    except rle.RLEError as error:
        raise MaskError("mask_damaged", str(error)) from error


def _bytes_of(text: str) -> Any:
    """Bytes that Python's ``str`` made text of; the quotes are letters that no run-length mask has."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _from_polygons(parts: list[Any], height: int, width: int) -> ReadMask:
    from pycocotools import mask as coco_mask

    limit = _MOST_SIDES * (height + width)
    usable, lowest, highest, damaged = [], math.inf, -math.inf, False
    for part in parts:
        if not isinstance(part, list):
            continue
        numbers, low, high = _numbers(part)
        if not (math.isfinite(low) and -limit <= low and high <= limit):
            damaged = True
        elif len(numbers) >= _FEWEST_NUMBERS and len(numbers) % 2 == 0:
            usable.append(numbers)
            lowest, highest = min(lowest, low), max(highest, high)
    if not usable:
        if damaged:
            raise MaskError("mask_degenerate", f"{len(parts)} polygons, none of them usable: {str(parts)[:100]}")
        return ReadMask(lost="mask_unread")
    if lowest >= 0 and highest <= 1 and min(height, width) > SHORT_SIDE:
        usable = [[each * (width, height)[place % 2] for place, each in enumerate(part)] for part in usable]
    traced = coco_mask.frPyObjects(usable, height, width)
    whole = traced[0] if len(traced) == 1 else coco_mask.merge(traced)
    mask = {"size": [height, width], "counts": whole["counts"].decode("ascii")}
    return _checked(mask, len(parts) - len(usable))


def _polygons(value: list[Any]) -> list[Any]:
    """Polygons ``[x, y, ...]`` of a list, whichever way it nests them."""
    if not any(isinstance(part, list | dict) for part in value):
        return [value]
    if len(value) * 2 >= _FEWEST_NUMBERS and all(_is_point(part) for part in value):
        return [[number for point in value for number in point]]
    nested = (part for part in value if isinstance(part, list))
    if not any(part and isinstance(part[0], list) for part in nested):
        return value
    return [
        polygon for part in value for polygon in (_polygons(part) if isinstance(part, list) and any(part) else [part])
    ]


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not any(isinstance(each, list | dict) for each in value)


def _numbers(part: list[Any]) -> tuple[list[float], float, float]:
    """Coordinates of a polygon, their least and their greatest; NaN for these where one is no finite number.

    Text of numbers counts: tables make it of them.
    """
    try:
        if math.isfinite(math.fsum(part)):
            return part, min(part, default=0), max(part, default=0)
    except (TypeError, OverflowError):
        pass
    try:
        numbers = [float(each) for each in part]
    except (TypeError, ValueError, OverflowError):
        return [], math.nan, math.nan
    return (numbers, min(numbers), max(numbers)) if math.isfinite(sum(numbers)) else ([], math.nan, math.nan)
