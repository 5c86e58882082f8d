"""One image and what belongs to it, turned into one row: the pure heart of preparation, without Ray or files."""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from padt.data.image import ResizePolicy
from padt.errors import ImageError
from pipelines.dataset.caption_tags import ground, is_finished, tagged
from pipelines.dataset.losses import Notes
from pipelines.dedup.hashes import content_hash
from pipelines.images.contents import Measured, measure
from pipelines.prepare.objects import ItemError, build_objects
from pipelines.sources.base import ImageEntry, Piece, Reject, annotation_id, plain_text, whole_number


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
        signs: what the boxes of a whole set are judged by, see ``pipelines.prepare.signs``.
    """

    row: dict[str, Any] | None = None
    rejects: list[Reject] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=Notes)
    signs: Counter[str] = field(default_factory=Counter)


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
    turned = bool(result.repairs["size_swapped"])
    found = build_objects(entry.image_id, pieces, (width, height), grid, context.categories, turned)
    result.rejects += found.rejects
    result.repairs += found.repairs
    result.signs = found.signs
    references = _references(entry, pieces, found.places, found.lost, result)
    captions = _captions(entry, pieces, found.places, result)
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
        "objects": found.items,
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
        except ItemError as error:
            item_id = value.get("id")
            result.rejects.append(Reject(entry.image_id, "caption", error.reason, str(error), None, item_id))
    return captions


def _caption(value: dict[str, Any], places: dict[int, int], repairs: Counter[str]) -> dict[str, Any]:
    raw = value.get("grounded", value.get("text"))
    if not isinstance(raw, str):
        raise ItemError("caption_malformed", f"not text: {str(raw)[:100]}")
    text = plain_text(raw)
    if not text:
        raise ItemError("caption_blank")
    if "<|Obj_" in text:
        raise ItemError("caption_malformed", f"placeholders of its own: {text[:100]}")
    if "grounded" not in value:
        return {"id": value.get("id"), "text": text, "objects": [], **_as_written(raw, text)}
    if not is_finished(text):
        raise ItemError("caption_unfinished", text[-60:])
    grounded = ground(text, places)
    repairs["caption_tags_repaired"] += grounded.repaired
    repairs["caption_tags_dropped"] += grounded.dropped
    return {
        "text": grounded.text,
        "objects": [places[each] for each in grounded.ann_ids],
        **_as_written(raw, tagged(grounded.text, grounded.ann_ids)),
    }
