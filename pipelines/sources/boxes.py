"""Boxes as annotation files write them: COCO's ``[x, y, width, height]`` in pixels, and what stands in its place."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

Corners = tuple[float, float, float, float]
"""``(x0, y0, x1, y1)`` in pixels."""

# Names of the fields, where a box is an object: corner and size, or two corners.
_SIZED = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
SHORT_SIDE = 8
"""Only a picture with so short a side, in pixels, may have things of a pixel at its corner."""
# A box that a mask confirms lies as near to the mask's bounds: pixels, or this part of the side.
_NEAR_PIXELS, _NEAR_PART = 2.0, 0.02


def read_box(value: Any) -> Corners | None:
    """Corners of a box in COCO's form (its numbers may be text) or of an object with named fields.

    Returns:
        The corners as written, neither clipped nor checked against the image; None where the value is no box: not four
        finite numbers, or without area.
    """
    sized = True
    if isinstance(value, dict):
        value, sized = _named(value)
    elif not isinstance(value, list):
        return None
    try:
        x, y, right, bottom = (float(each) for each in value)
    except (TypeError, ValueError, OverflowError):
        return None
    if sized:
        right, bottom = x + right, y + bottom
    return (x, y, right, bottom) if right > x and bottom > y and math.isfinite(x + y + right + bottom) else None


def _named(value: dict[str, Any]) -> tuple[list[Any], bool]:
    for names, sized in [*((names, True) for names in _SIZED), *((names, False) for names in _CORNERS)]:
        if all(name in value for name in names):
            return [value[name] for name in names], sized
    return [], False


def is_normalised(box: Corners, width: int, height: int) -> bool:
    """Whether the four numbers of a box as written lie in [0, 1]: parts of the image, as against pixels."""
    x0, y0, x1, y1 = box
    return 0 <= x0 <= 1 and 0 <= y0 <= 1 and x1 - x0 <= 1 and y1 - y0 <= 1 and min(width, height) > SHORT_SIDE


def rotation_of(annotation: Mapping[str, Any]) -> float:
    """Degrees by which a box was turned after its numbers were taken (``attributes.rotation`` of CVAT's exports)."""
    attributes = annotation.get("attributes")
    angle = attributes.get("rotation") if isinstance(attributes, dict) else annotation.get("rotation")
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not math.isfinite(angle):
        return 0.0
    return float(angle) % 360.0


def around_turned(box: Corners, degrees: float) -> Corners:
    """The upright box around a box that is turned about its centre."""
    x0, y0, x1, y1 = box
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    half_w = ((x1 - x0) * cosine + (y1 - y0) * sine) / 2
    half_h = ((x1 - x0) * sine + (y1 - y0) * cosine) / 2
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    return centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h


def reread(box: Corners, bounds: Corners, width: int, height: int) -> Corners | None:
    """A box whose numbers mean something else than COCO's, as the bounds of its mask show; None where nothing fits."""
    return next(
        (other for other in _readings(box, width, height) if is_near(clipped(other, width, height), bounds)), None
    )


def _readings(box: Corners, width: int, height: int) -> Iterator[Corners]:
    """What the four numbers of a box mean elsewhere: corners, centre and size; of parts and per cent of the image."""
    x, y = box[:2]
    third, fourth = box[2] - x, box[3] - y
    for scale_x, scale_y in ((1.0, 1.0), (width, height), (width / 100, height / 100)):
        left, top, w, h = x * scale_x, y * scale_y, third * scale_x, fourth * scale_y
        yield left, top, w, h
        yield left - w / 2, top - h / 2, left + w / 2, top + h / 2
        if scale_x != 1.0:
            yield left, top, left + w, top + h


def clipped(box: Corners, width: int, height: int) -> Corners:
    """The part of a box inside the image; its ends may cross where there is none."""
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)


def overlap(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes."""
    w = min(one[2], other[2]) - max(one[0], other[0])
    h = min(one[3], other[3]) - max(one[1], other[1])
    if w <= 0 or h <= 0:
        return 0.0
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return w * h / (areas - w * h)


def is_near(box: Corners, bounds: Corners) -> bool:
    """Whether a box lies as near to the bounds of a mask as annotators leave them."""
    near_x = max(_NEAR_PIXELS, _NEAR_PART * (bounds[2] - bounds[0]))
    near_y = max(_NEAR_PIXELS, _NEAR_PART * (bounds[3] - bounds[1]))
    sides = [abs(a - b) for a, b in zip(box, bounds, strict=True)]
    return max(sides[0], sides[2]) <= near_x and max(sides[1], sides[3]) <= near_y
