"""One image and what belongs to it, turned into one row: the pure heart of preparation, without Ray or files."""

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from padt.data import rle
from padt.data.image import ResizePolicy
from padt.data.patches import coverage_of_box, coverage_of_rle, foreground, pack_patches
from padt.errors import ImageError
from pipelines.dataset.caption_tags import ground, is_finished, tagged
from pipelines.dataset.losses import Notes
from pipelines.dedup.hashes import content_hash
from pipelines.prepare.images import Measured, measure
from pipelines.sources.base import ImageEntry, Piece, Reject, annotation_id, number_of, plain_text, whole_number
from pipelines.sources.segmentation import MaskError, mask_of

# Boxes are rounded to hundredths of a pixel in many files: what sticks out by less than this is not worth counting.
_ROUNDING_PIXELS = 0.05
# No image has more pixels; beyond this an area is a slip of the pen, and might not fit a number at all.
_MOST_AREA = 1e15


@dataclass(frozen=True)
class RowContext:
    """What all rows of a set share.

    Attributes:
        name: name of the set.
        split: split of the set.
        categories: name by category id.
        policy: resize policy.
        copy_images: store the encoded image; otherwise its URL alone.
    """

    name: str
    split: str
    categories: Mapping[int, str]
    policy: ResizePolicy
    copy_images: bool = True

    def key(self, image_id: str) -> str:
        """Key of an image's row."""
        return f"{self.name}/{self.split}/{image_id}"


@dataclass
class RowResult:
    """What became of one image.

    Attributes:
        row: the row as ``pipelines.dataset.schema.SHARD_SCHEMA`` stores it, or None where the image was rejected.
        rejects: what was left out.
        repairs: what was put right, by repair (``pipelines.dataset.schema.REPAIRS``).
        notes: what looks wrong but was kept.
    """

    row: dict[str, Any] | None = None
    rejects: list[Reject] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=Notes)


class _ItemError(Exception):
    """Why one object, reference or caption is rejected."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


def build_row(
    entry: ImageEntry,
    url: str,
    content: bytes | ImageError | None,
    pieces: Sequence[Piece],
    context: RowContext,
    grids: Mapping[tuple[int, int], tuple[int, int]] | None = None,
    more: Sequence[tuple[str, bytes]] = (),
) -> RowResult:
    """Build the row of one image, or of one conversation.

    Args:
        entry: the image as its source lists it.
        url: where the image lies; stored in link mode.
        content: the encoded image, or why it (or one of ``more``) could not be read; None for a conversation without
            pictures.
        pieces: the image's objects, references, captions and conversation, in the order of the source.
        context: what all rows share.
        grids: patch grids already computed, ``(grid_h, grid_w)`` by ``(height, width)`` in pixels.
        more: URL and content of the second and later pictures.
    """
    result = RowResult()
    width, height, look, grid = 0, 0, None, (0, 0)
    try:
        if isinstance(content, ImageError):
            raise content
        if content is not None:
            width, height, look = _measured(entry, content, result)
            grid = (grids or {}).get((height, width)) or context.policy.grid(height, width)
        more_grids = [_grid(name, each, context) for name, (_, each) in zip(entry.more, more, strict=True)]
    except ImageError as error:
        result.rejects.append(Reject(entry.image_id, "image", error.reason, str(error)))
        result.rejects += [_rejected_with_image(piece) for piece in pieces]
        return result
    objects, places, lost = _objects(entry, pieces, (width, height), grid, context, result)
    references = _references(entry, pieces, places, lost, result)
    captions = _captions(entry, pieces, places, result)
    conversations = [json.loads(piece.text)["messages"] for piece in pieces if piece.kind == "conversation"]
    result.row = {
        "key": context.key(entry.image_id),
        "source": context.name,
        "split": context.split,
        "image_id": entry.image_id,
        "image": None if content is None else _stored(entry.file_name, url, content, context),
        "width": width,
        "height": height,
        "grid_h": grid[0],
        "grid_w": grid[1],
        "objects": objects,
        "references": references,
        "captions": captions,
        "messages": conversations[0] if conversations else [],
        "more_images": [_stored(name, *each, context) for name, each in zip(entry.more, more, strict=True)],
        "more_grids": more_grids,
        "sha256": None if content is None else content_hash(content),
        "look": look,
    }
    return result


def embedded_pictures(pieces: Sequence[Piece]) -> list[bytes]:
    """Pictures that stand in a conversation's own piece."""
    return [
        base64.b64decode(picture)
        for piece in pieces
        if piece.kind == "conversation"
        for picture in json.loads(piece.text).get("pictures", ())
    ]


def _stored(name: str, url: str, content: bytes, context: RowContext) -> dict[str, Any]:
    # What has no place of its own cannot be linked to.
    return {"bytes": content, "path": name} if context.copy_images or not url else {"bytes": None, "path": url}


def _grid(name: str, content: bytes, context: RowContext) -> dict[str, int]:
    width, height, _ = measure(content, name=name)
    grid_h, grid_w = context.policy.grid(height, width)
    return {"grid_h": grid_h, "grid_w": grid_w}


def _measured(entry: ImageEntry, content: bytes, result: RowResult) -> Measured:
    measured = measure(content, name=entry.file_name or "the image")
    width, height, _ = measured
    if entry.width is None or (entry.width, entry.height) == (width, height):
        return measured
    if (entry.width, entry.height) == (height, width):
        # The file was measured without its EXIF orientation; what was drawn into it was drawn into the upright image.
        result.repairs["size_swapped"] += 1
        return measured
    detail = f"annotation file: {entry.width}x{entry.height}, image: {width}x{height}"
    raise ImageError("size_mismatch", detail)


def piece_ids(piece: Piece) -> tuple[int | None, int | None]:
    """Annotation id (of an object) and item id (of a sentence or caption) of a piece; None where it has none."""
    value = json.loads(piece.text)
    if piece.kind == "object":
        return annotation_id(value.get("id")), None
    return None, whole_number(value.get("sent_id", value.get("id")))


def _rejected_with_image(piece: Piece) -> Reject:
    return Reject(piece.image_id, piece.kind, "image_rejected", "", *piece_ids(piece))


def _objects(entry, pieces, size, grid, context, result) -> tuple[list[dict[str, Any]], dict[int, int], set[int]]:
    """Objects, their place by annotation id, and the annotation ids that were rejected."""
    objects: list[dict[str, Any]] = []
    places: dict[int, int] = {}
    lost: set[int] = set()
    for piece in pieces:
        if piece.kind != "object":
            continue
        value = json.loads(piece.text)
        ann_id = annotation_id(value.get("id"))
        try:
            if ann_id is None:
                raise _ItemError("annotation_malformed", f"id {str(value.get('id'))[:100]} is no number and no text")
            if ann_id in places or ann_id in lost:
                raise _ItemError("duplicate_annotation_id")
            item = _object(value, ann_id, size, grid, context, result.repairs)
        except _ItemError as error:
            result.rejects.append(Reject(entry.image_id, "object", error.reason, str(error), ann_id))
            if ann_id is not None and ann_id not in places:
                lost.add(ann_id)
            continue
        result.repairs["annotation_id_numbered"] += number_of(value.get("id")) is None
        places[ann_id] = len(objects)
        objects.append(item)
    return objects, places, lost


def _object(value, ann_id, size, grid, context, repairs) -> dict[str, Any]:
    category = number_of(value.get("category_id"))
    if category is None or category not in context.categories:
        raise _ItemError("category_unknown", f"category_id {str(value.get('category_id'))[:100]}")
    width, height = size
    try:
        mask, left_out = mask_of(value.get("segmentation"), height, width)
    except MaskError as error:
        # The box, too, may be wrong, which says more.
        _box(_xywh(value, None, width, height, repairs), width, height, repairs)
        raise _ItemError(error.reason, str(error)) from error
    box = _box(_xywh(value, mask, width, height, repairs), width, height, repairs)
    repairs["polygons_left_out"] += left_out
    coverage = coverage_of_box(box, *grid) if mask is None else coverage_of_rle(mask, *grid)
    return {
        "ann_id": ann_id,
        "category_id": category,
        "label": context.categories[category],
        "box": box,
        "area": _area(value.get("area"), mask, box, width, height),
        "iscrowd": value.get("iscrowd") in (1, True, "1"),
        "patches": pack_patches(foreground(coverage)),
        "rle": mask,
    }


def _xywh(value: Mapping[str, Any], mask: dict[str, Any] | None, width: int, height: int, repairs: Counter[str]) -> Any:
    """COCO's ``[x, y, width, height]`` in pixels: as annotated; from a normalised ``box``; or of the mask."""
    annotated = value.get("bbox")
    if annotated is None and "box" in value:
        try:
            x0, y0, x1, y1 = (float(side) for side in value["box"])
        except (TypeError, ValueError, OverflowError) as error:
            raise _ItemError("box_degenerate", f"box {str(value['box'])[:100]}") from error
        return [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]
    if annotated in (None, []) and mask is not None:
        from pycocotools import mask as coco_mask

        repairs["box_from_mask"] += 1
        return coco_mask.toBbox(mask).tolist()
    return annotated


def _box(value: Any, width: int, height: int, repairs: Counter[str]) -> list[float]:
    """Box ``xyxy`` normalised to [0, 1] of COCO's ``[x, y, width, height]`` in pixels."""
    try:
        x, y, w, h = (float(each) for each in value)
    except (TypeError, ValueError, OverflowError) as error:
        raise _ItemError("box_degenerate", f"bbox {str(value)[:100]}") from error
    if not all(math.isfinite(each) for each in (x, y, w, h)) or w <= 0 or h <= 0:
        raise _ItemError("box_degenerate", f"bbox {[x, y, w, h]}")
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if x0 >= x1 or y0 >= y1:
        raise _ItemError("box_outside_image", f"bbox {[x, y, w, h]} in an image of {width}x{height}")
    if max(x0 - x, y0 - y, x + w - x1, y + h - y1) > _ROUNDING_PIXELS:
        repairs["box_clipped"] += 1
    return [x0 / width, y0 / height, x1 / width, y1 / height]


def _area(value: Any, mask: dict[str, Any] | None, box: list[float], width: int, height: int) -> float:
    """Area in pixels: as annotated where that is a number, else the mask's, else the box's."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(min(value, _MOST_AREA))
    if mask is not None:
        return float(rle.area(mask))
    return (box[2] - box[0]) * width * (box[3] - box[1]) * height


def _references(entry, pieces, places, lost, result) -> list[dict[str, Any]]:
    references = []
    for piece in pieces:
        if piece.kind != "reference":
            continue
        value = json.loads(piece.text)
        text = plain_text(value["text"])
        reason, ann_id = None, None
        if not text:
            reason = "sentence_blank"
        for each in value["ann_ids"]:
            if each not in places:
                reason, ann_id = "object_rejected" if each in lost else "object_missing", each
        if reason is not None:
            result.rejects.append(Reject(entry.image_id, "reference", reason, "", ann_id, value["sent_id"]))
            continue
        references.append(
            {
                "ref_id": value["ref_id"],
                "sent_id": value["sent_id"],
                "text": text,
                "objects": [places[each] for each in value["ann_ids"]],
                **_as_written(value["text"], text),
            }
        )
    return references


def _as_written(written: str, text: str) -> dict[str, str]:
    """The text as its source writes it, where what is stored for reading does not tell (spaces, malformed tags)."""
    # Halves of surrogate pairs cannot be stored as UTF-8.
    storable = written.encode("utf-8", "replace").decode("utf-8")
    return {} if storable == text else {"written": storable}


def _captions(entry, pieces, places, result) -> list[dict[str, Any]]:
    captions = []
    for piece in pieces:
        if piece.kind != "caption":
            continue
        value = json.loads(piece.text)
        try:
            captions.append(_caption(value, places, result.repairs))
        except _ItemError as error:
            item_id = value.get("id")
            result.rejects.append(Reject(entry.image_id, "caption", error.reason, str(error), None, item_id))
    return captions


def _caption(value: dict[str, Any], places: dict[int, int], repairs: Counter[str]) -> dict[str, Any]:
    raw = value.get("grounded", value.get("text"))
    if not isinstance(raw, str):
        raise _ItemError("caption_malformed", f"not text: {str(raw)[:100]}")
    text = plain_text(raw)
    if not text:
        raise _ItemError("caption_blank")
    if "<|Obj_" in text:
        raise _ItemError("caption_malformed", f"placeholders of its own: {text[:100]}")
    if "grounded" not in value:
        return {"id": value.get("id"), "text": text, "objects": [], **_as_written(raw, text)}
    if not is_finished(text):
        raise _ItemError("caption_unfinished", text[-60:])
    grounded = ground(text, places)
    repairs["caption_tags_repaired"] += grounded.repaired
    repairs["caption_tags_dropped"] += grounded.dropped
    return {
        "text": grounded.text,
        "objects": [places[each] for each in grounded.ann_ids],
        **_as_written(raw, tagged(grounded.text, grounded.ann_ids)),
    }
