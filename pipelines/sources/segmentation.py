"""Segmentations as annotation files write them, turned into run-length masks."""

import math
from typing import Any

from padt.data import rle

# A polygon may leave its image a little; one that leaves it by this many image sides is damaged, and tracing it would
# take memory by the length of its edges.
_MOST_SIDES = 10


class MaskError(Exception):
    """A segmentation that cannot be used. ``reason`` is one of ``pipelines.dataset.schema.REJECT_REASONS``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def mask_of(segmentation: Any, height: int, width: int) -> tuple[dict[str, Any] | None, int]:
    """Run-length mask of a COCO segmentation.

    Args:
        segmentation: polygons ``[[x, y, ...], ...]`` in pixels, a run-length mask with compressed or uncompressed
            ``counts``, or nothing.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        The mask, or None where there is none; and how many unusable polygons beside usable ones were left out.

    Raises:
        MaskError: the segmentation is there but cannot be used.
    """
    # Exports of boxes write their empty segmentations in all of these ways.
    if not segmentation or (isinstance(segmentation, list) and not any(segmentation)):
        return None, 0
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, height, width), 0
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height, width)
    raise MaskError("mask_degenerate", f"a segmentation is a list or a dictionary, not {type(segmentation).__name__}")


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    try:
        if rle.size(segmentation) != (height, width):
            found = "x".join(str(side) for side in segmentation["size"])
            raise MaskError("mask_size_mismatch", f"mask of {found}, image of {height}x{width} (height x width)")
        return rle.from_runs(rle.runs(segmentation), height, width)
    except rle.RLEError as error:
        raise MaskError("mask_damaged", str(error)) from error


def _from_polygons(parts: list[Any], height: int, width: int) -> tuple[dict[str, Any], int]:
    from pycocotools import mask as coco_mask

    if parts and all(isinstance(value, int | float) for value in parts):
        parts = [parts]  # Some exporters write a single polygon without the outer list.
    limit = _MOST_SIDES * (height + width)
    usable = [part for part in parts if _is_polygon(part, limit)]
    if not usable:
        raise MaskError("mask_degenerate", f"{len(parts)} polygons, none of them usable")
    traced = coco_mask.frPyObjects(usable, height, width)
    whole = traced[0] if len(traced) == 1 else coco_mask.merge(traced)
    counts = whole["counts"].decode("ascii")
    return {"size": [height, width], "counts": counts}, len(parts) - len(usable)


def _is_polygon(part: Any, limit: float) -> bool:
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        return False
    try:
        return max(part) <= limit and min(part) >= -limit and math.isfinite(math.fsum(part))
    except (TypeError, OverflowError):
        return False
