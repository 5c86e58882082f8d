"""The objects of one image: annotations in, objects as shards store them out, with what was rejected and put right."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from padt.data import rle
from padt.data.patches import packed_foreground
from pipelines.sources.base import Piece, Reject, annotation_id, number_of
from pipelines.sources.boxes import (
    Corners,
    around_turned,
    clipped,
    is_near,
    is_normalised,
    overlap,
    read_box,
    reread,
    rotation_of,
)
from pipelines.sources.segmentation import MaskError, ReadMask, mask_of

# Boxes are rounded to hundredths of a pixel in many files: what sticks out by less than this is not worth counting.
_ROUNDING_PIXELS = 0.05
# No image has more pixels; beyond this an area is a slip of the pen, and might not fit a number at all.
_MOST_AREA = 1e15
# Below these overlaps of a box with its mask's bounds other readings of the box are tried, and it is counted as unlike.
_LIKE, _UNLIKE = 0.9, 0.5
# A box that leaves its image by this part of the side was drawn in another one.
_FAR_OUT = 0.1
# Per cent are told from pixels in images whose shorter side has at least this many.
_LARGE_SIDE = 200


class ItemError(Exception):
    """Why one object, reference or caption is rejected."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass
class ImageObjects:
    """What became of the objects of one image.

    Attributes:
        items: objects as ``pipelines.dataset.schema.SHARD_SCHEMA`` stores them.
        places: place in ``items`` by annotation id.
        lost: ids of annotations that were rejected.
        rejects: what was left out.
        repairs: what was put right, by repair.
        signs: what the boxes of a whole set are judged by (``pipelines.prepare.signs``).
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    rejects: list[Reject] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)
    signs: Counter[str] = field(default_factory=Counter)


def build_objects(
    image_id: str,
    pieces: Sequence[Piece],
    size: tuple[int, int],
    grid: tuple[int, int],
    categories: Mapping[int, str],
    turned: bool = False,
) -> ImageObjects:
    """Build the objects of one image.

    Args:
        image_id: of the image.
        pieces: of the image; those that are no objects are passed over.
        size: width and height of the upright image, pixels.
        grid: its patch grid, ``(grid_h, grid_w)``.
        categories: name by category id.
        turned: the annotation file has width and height exchanged: the size before the EXIF orientation.
    """
    found = ImageObjects()
    values = [json.loads(piece.text) for piece in pieces if piece.kind == "object"]
    proof = _drawn_before_turn(values, *size) if turned else None
    for value in values:
        ann_id = annotation_id(value.get("id"))
        try:
            if ann_id is None:
                raise ItemError("annotation_malformed", f"id {str(value.get('id'))[:100]} is no number and no text")
            if ann_id in found.places or ann_id in found.lost:
                raise ItemError("duplicate_annotation_id")
            if proof is not None:
                raise ItemError("drawn_before_turn", proof)
            item = _object(value, ann_id, size, categories, found)
        except ItemError as error:
            found.rejects.append(Reject(image_id, "object", error.reason, str(error), ann_id))
            if ann_id is not None and ann_id not in found.places:
                found.lost.add(ann_id)
            continue
        found.repairs["annotation_id_numbered"] += number_of(value.get("id")) is None
        found.signs["crowds"] += item["iscrowd"]
        found.places[ann_id] = len(found.items)
        found.items.append(item)
    for item, patches in zip(found.items, packed_foreground(found.items, *grid), strict=True):
        item["patches"] = patches
    return found


def _drawn_before_turn(values: Sequence[dict[str, Any]], width: int, height: int) -> str | None:
    """How one can tell that objects were drawn in the image before its EXIF orientation; None where one cannot.

    Either a run-length mask has that size, or a box lies far outside of the upright image and all lie in the other.
    """
    for value in values:
        segmentation = value.get("segmentation")
        if isinstance(segmentation, dict) and segmentation.get("size") == [width, height] and width != height:
            return f"the mask of annotation {value.get('id')} has the size of the image before its EXIF orientation"
    boxes = [(value.get("id"), box) for value in values if (box := read_box(value.get("bbox"))) is not None]
    out = [ann_id for ann_id, box in boxes if box[2] > width * (1 + _FAR_OUT) or box[3] > height * (1 + _FAR_OUT)]
    if out and all(box[2] <= height + 1 and box[3] <= width + 1 for _, box in boxes):
        return (
            f"the box of annotation {out[0]} lies outside of the upright image, and inside of the one before its turn"
        )
    return None


def _object(value, ann_id, size, categories, found: ImageObjects) -> dict[str, Any]:
    category = annotation_id(value.get("category_id"))
    if category is None or category not in categories:
        raise ItemError("category_unknown", _unknown(value.get("category_id"), categories))
    width, height = size
    try:
        read = mask_of(value.get("segmentation"), height, width)
    except MaskError as error:
        # The box, too, may be wrong, which says more.
        _normalised(_pixels(value, ReadMask(), width, height, found), width, height)
        raise ItemError(error.reason, str(error)) from error
    corners = _pixels(value, read, width, height, found)
    box = _normalised(corners, width, height)
    inside = clipped(corners, width, height)
    if max(abs(one - other) for one, other in zip(corners, inside, strict=True)) > _ROUNDING_PIXELS:
        found.repairs["box_clipped"] += 1
    found.repairs["polygons_left_out"] += read.left_out
    if read.lost is not None:
        found.repairs[read.lost] += 1
    return {
        "ann_id": ann_id,
        "category_id": category,
        "label": categories[category],
        "box": box,
        "area": _area(value.get("area"), read.mask, box, width, height),
        "iscrowd": value.get("iscrowd") in (1, "1", "true", "True"),
        "rle": read.mask,
    }


def _unknown(category: Any, categories: Mapping[int, str]) -> str:
    known = next((number for number, name in categories.items() if name == category), None)
    hint = "" if known is None else f" is the name of a category: write its id, {known}"
    return f"category_id {str(category)[:100]}{hint}"


def _pixels(value: Mapping[str, Any], read: ReadMask, width: int, height: int, found: ImageObjects) -> Corners:
    """Corners of an annotation's box in pixels: as annotated, where the mask does not show that it means otherwise."""
    annotated = value.get("bbox")
    if annotated is None and "box" in value:
        return _scaled(value["box"], width, height)
    box = read_box(annotated)
    if box is None:
        if read.bounds is None:
            raise ItemError("box_degenerate", f"bbox {str(annotated)[:100]}{_turned_hint(annotated)}")
        found.repairs["box_from_mask"] += 1
        return read.bounds
    degrees = rotation_of(value)
    if read.bounds is not None:
        return _compared(box, read.bounds, width, height, degrees, found)
    if is_normalised(box, width, height):
        raise ItemError("box_normalised", f"bbox {str(annotated)[:100]} in an image of {width}x{height}")
    _look(value, box, width, height, found.signs)
    if degrees:
        found.repairs["box_turned"] += 1
        return around_turned(box, degrees)
    return box


def _turned_hint(annotated: Any) -> str:
    return ": a turned box needs its polygon" if isinstance(annotated, list) and len(annotated) in (5, 8) else ""


def _scaled(box: Any, width: int, height: int) -> Corners:
    try:
        x0, y0, x1, y1 = (float(side) for side in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise ItemError("box_degenerate", f"box {str(box)[:100]}") from error
    return x0 * width, y0 * height, x1 * width, y1 * height


def _compared(box: Corners, bounds: Corners, width: int, height: int, degrees: float, found: ImageObjects) -> Corners:
    """The box, or what it must mean if its mask is right."""
    inside = clipped(box, width, height)
    like = overlap(inside, bounds)
    if like >= _LIKE or is_near(inside, bounds):
        return box
    if degrees and overlap(around_turned(box, degrees), bounds) > like:
        found.repairs["box_turned"] += 1
        return bounds
    other = reread(box, bounds, width, height)
    if other is not None:
        found.repairs["box_reread"] += 1
        return other
    if is_normalised(box, width, height):
        raise ItemError("box_normalised", f"bbox from {box[:2]} to {box[2:]} in an image of {width}x{height}")
    if like == 0 and inside[0] < inside[2] and inside[1] < inside[3]:
        raise ItemError("box_mask_apart", f"box {list(box)}, mask within {list(bounds)} (x0, y0, x1, y1)")
    found.signs["boxes_unlike_masks"] += like < _UNLIKE
    return box


def _look(value, box: Corners, width: int, height: int, signs: Counter[str]) -> None:
    """Count by what boxes without masks show that they are corners, or per cent, in place of sizes and pixels."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    signs["boxes"] += 1
    if w > x0 and h > y0 and w <= width + 1 and h <= height + 1:
        signs["boxes_read_as_corners"] += 1
        if x1 > width + 1 or y1 > height + 1:
            signs["boxes_beyond_as_sizes"] += 1
        elif isinstance(area := value.get("area"), int | float):
            as_corners, as_sizes = (w - x0) * (h - y0), w * h
            signs["areas_of_corners"] += abs(area - as_corners) <= 0.01 * as_corners < abs(area - as_sizes)
    if min(width, height) >= _LARGE_SIDE:
        signs["boxes_in_large_images"] += 1
        signs["boxes_below_100"] += x1 <= 100.5 and y1 <= 100.5


def _normalised(box: Corners, width: int, height: int) -> list[float]:
    """The part of a box inside the image, ``xyxy`` normalised to [0, 1]."""
    if not math.isfinite(sum(box)) or box[2] <= box[0] or box[3] <= box[1]:
        raise ItemError("box_degenerate", f"box from {box[:2]} to {box[2:]}")
    x0, y0, x1, y1 = clipped(box, width, height)
    if x0 >= x1 or y0 >= y1:
        raise ItemError("box_outside_image", f"box from {box[:2]} to {box[2:]} in an image of {width}x{height}")
    return [x0 / width, y0 / height, x1 / width, y1 / height]


def _area(value: Any, mask: dict[str, Any] | None, box: list[float], width: int, height: int) -> float:
    """Area in pixels: as annotated where that is a number, else the mask's, else the box's."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(min(value, _MOST_AREA))
    if mask is not None:
        return float(rle.area(mask))
    return (box[2] - box[0]) * width * (box[3] - box[1]) * height
