"""What a prepared data set looks like on disk: columns of its shards, and why things are rejected.

One row is one image with what belongs to it, or one conversation about any number of images. Columns are only ever
added within a schema version: every shard written now has all of them, and a column that an older shard lacks counts as
empty (``OPTIONAL_COLUMNS``). Any other change is a new version, and a trainer refuses a set whose version is not its
own.
"""

import json
from typing import Any

import pyarrow as pa

from padt.errors import IMAGE_REASONS

SCHEMA_VERSION = 1


def _list(kind: pa.DataType, length: int = -1) -> pa.DataType:
    # Parquet calls the entries of a list "element": so named, a schema is the same before and after the file.
    return pa.list_(pa.field("element", kind), length)


_BOX = _list(pa.float32(), 4)
_RLE = pa.struct([("size", _list(pa.int32())), ("counts", pa.string())])
_OBJECT = pa.struct(
    [
        ("ann_id", pa.int64()),
        ("category_id", pa.int64()),
        ("label", pa.string()),
        ("box", _BOX),
        ("area", pa.float64()),
        ("iscrowd", pa.bool_()),
        ("patches", pa.binary()),
        ("rle", _RLE),
    ]
)
_REFERENCE = pa.struct(
    [
        ("ref_id", pa.int64()),
        ("sent_id", pa.int64()),
        ("text", pa.string()),
        ("objects", _list(pa.int32())),
        ("written", pa.string()),
    ]
)
_CAPTION = pa.struct(
    [("text", pa.string()), ("objects", _list(pa.int32())), ("id", pa.int64()), ("written", pa.string())]
)
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_GRID = pa.struct([("grid_h", pa.int32()), ("grid_w", pa.int32())])
_COLUMNS = [
    ("key", pa.string()),
    ("source", pa.string()),
    ("split", pa.string()),
    ("image_id", pa.string()),
    ("image", _IMAGE),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("grid_h", pa.int32()),
    ("grid_w", pa.int32()),
    ("objects", _list(_OBJECT)),
    ("references", _list(_REFERENCE)),
    ("captions", _list(_CAPTION)),
    ("messages", _list(_MESSAGE)),
    ("more_images", _list(_IMAGE)),
    ("more_grids", _list(_GRID)),
    ("sha256", pa.string()),
    ("look", pa.string()),
]
OPTIONAL_COLUMNS = ("messages", "more_images", "more_grids", "sha256", "look")
"""Columns that are later than the others: sets prepared before have shards without them.

``messages``: turns in order, roles ``system``, ``user`` and ``assistant``; each ``<image>`` in a user's content stands
for the next picture. ``more_images``, ``more_grids``: the second and later pictures and their patch grids. A
conversation without pictures has a null ``image``, and 0 as width, height and grid. ``sha256``, ``look``: what the
(first) image is recognised by in other sets, see ``pipelines.dedup.hashes``. ``written``, in references and captions:
the text as its source writes it, where spaces, line breaks or malformed tags make that another one than ``text``.
"""
IMAGE_COLUMNS = ("image", "more_images")
"""Columns that hold encoded images, as against the small ones."""

REJECT_KINDS = ("image", "object", "reference", "caption", "conversation")

REJECT_REASONS = {
    "image_missing": "the file is not where the annotations say",
    "image_unreadable": "the file is not an image, or is cut off",
    "image_too_large": "the image has more pixels than the budget",
    "image_aspect_ratio": "the sides differ by more than a factor of 200",
    "image_malformed": "the entry lacks an id or a file name, or has them in a wrong form",
    "image_outside_root": "the file name leads out of the image folder",
    "image_not_listed": "it belongs to an image that the annotation file does not list",
    "image_rejected": "its image was rejected",
    "duplicate_image_id": "an earlier image has the same id",
    "image_ambiguous": "several files have its image's id: nobody knows to which it belongs",
    "size_mismatch": "width and height of the annotation file are not those of the image, turned or not",
    "annotation_malformed": "a field is missing or has a wrong form",
    "duplicate_annotation_id": "an earlier annotation of the image has the same id",
    "category_unknown": "its category is not listed",
    "box_degenerate": "the box has no area, or is not four finite numbers",
    "box_outside_image": "the box lies outside the image",
    "box_normalised": "the numbers of the box lie between 0 and 1: parts of the image, where pixels belong",
    "box_mask_apart": "the box and the mask have no pixel in common: one of them belongs to something else",
    "drawn_before_turn": "it was drawn in the image as stored, before its EXIF orientation",
    "mask_degenerate": "no polygon has three points with finite coordinates near the image",
    "mask_damaged": "the run-length mask cannot be read",
    "mask_size_mismatch": "the run-length mask has another size than the image",
    "object_missing": "the annotation that it refers to does not exist in its image",
    "object_fake": "it is marked as drawn or printed, and fakes are not wanted",
    "object_rejected": "the annotation that it refers to was rejected",
    "reference_malformed": "a field is missing or has a wrong form",
    "sentence_blank": "the sentence has no text",
    "caption_malformed": "it is not text, or has placeholders of its own",
    "caption_blank": "the caption has no text",
    "caption_unfinished": "the grounded caption ends in the middle of a sentence",
    "question_unknown": "the question is none of detection, referring and description",
    "conversation_malformed": "the entry has neither messages nor conversations, or a turn lacks role or text",
    "role_unknown": "a turn's role is none of system, user (human) and assistant (gpt)",
    "roles_out_of_order": "user and assistant do not alternate, or the last turn is not the assistant's",
    "answer_empty": "a turn of the assistant has no text",
    "image_marker_mismatch": "the number of <image> markers is not the number of pictures",
    "content_unsupported": "a turn holds something other than text and pictures",
}
"""Reasons for rejects (a closed list) and what they mean."""

assert set(IMAGE_REASONS) <= set(REJECT_REASONS)

CONSEQUENCES = ("image_rejected", "object_rejected")
"""Reasons that have another reason behind them: what they hit was good itself."""

WANTED_REASONS = ("object_fake",)
"""Reasons that the user asked for."""

LIKELY_CAUSES = {
    "image_missing": "--images is not the folder that the file names start from, or not all pictures were downloaded",
    "image_unreadable": "the download was cut off, or gave error pages in place of pictures: fetch those files again",
    "image_too_large": "the pictures are scans or panoramas: shrink them, with their annotations, before preparing",
    "image_aspect_ratio": "the pictures are strips of something larger",
    "image_malformed": "another tool's file, whose images have no 'id' or 'file_name' in the usual form",
    "image_outside_root": "the file names hold paths of the machine that they were written on",
    "image_not_listed": "ids are written differently in 'images' and 'annotations', or the two are of different files",
    "duplicate_image_id": "files were merged without numbering their images anew: objects may belong to another image",
    "image_ambiguous": "files were merged without numbering their images anew",
    "size_mismatch": "the pictures were resized after they were annotated: take the originals, or scale the boxes",
    "annotation_malformed": "another tool's file, whose annotations lack 'id', 'image_id' or 'category_id'",
    "duplicate_annotation_id": "files were merged, or the same annotations were written twice",
    "category_unknown": "'category_id' is empty or a name, or 'categories' is that of another file",
    "box_degenerate": "'bbox' is not [x, y, width, height] in pixels, or the tool wrote points and lines",
    "box_outside_image": "'bbox' is [x0, y0, x1, y1] in place of [x, y, width, height], or the pictures were resized",
    "box_normalised": "'bbox' is written in parts of the image: multiply by its width and height",
    "box_mask_apart": "'bbox' or 'segmentation' is in other units or of another picture",
    "drawn_before_turn": "the tool drew in the stored picture and passed over its EXIF orientation: turn the files, or "
    "remove their orientation tag",
    "mask_degenerate": "'segmentation' has another form than COCO's: [[x1, y1, x2, y2, ...], ...] in pixels",
    "mask_damaged": "the run lengths were written by another encoder, or as base64 or a printed byte string",
    "mask_size_mismatch": "the masks are those of resized pictures, or width and height were exchanged ('size' is "
    "[height, width])",
    "object_missing": "--references and --annotations do not belong together: take the instances file of the same set",
    "caption_unfinished": "the captions were cut off at a number of letters or tokens",
    "conversation_malformed": "the file has another layout than LLaVA's or a chat API's",
    "role_unknown": "the conversations have turns of tools, or other names for user and assistant",
    "roles_out_of_order": "the conversations begin with the assistant or end with the user",
    "answer_empty": "answers were left blank, to be filled in",
    "image_marker_mismatch": "<image> markers were dropped or doubled when the file was converted",
    "content_unsupported": "the conversations are about videos, sounds or documents",
}
"""What is usually behind a reason when it hits a large part of a set."""

assert set(LIKELY_CAUSES) | set(CONSEQUENCES) <= set(REJECT_REASONS)

REPAIRS = {
    "annotation_id_numbered": "the id of an annotation was text: a number that always follows from it stands for it",
    "box_clipped": "a box stuck out of its image and was cut at the border",
    "box_from_mask": "an object without a box got that of its mask",
    "box_reread": "a box meant something else than COCO's form, as its mask shows, and was read so",
    "box_turned": "a box with a rotation was replaced by the upright box around it",
    "caption_tags_dropped": "a tag of a grounded caption led to no object and was left out",
    "caption_tags_repaired": "a malformed tag of a grounded caption was read as it was meant",
    "category_heading_left_out": "a category that only heads others, as Roboflow writes it, was left out",
    "category_id_numbered": "the id of a category was text: a number that always follows from it stands for it",
    "category_renamed": "a class name that is misspelt in Objects365 was put right",
    "image_id_matched": "an annotation wrote its image's id otherwise (139, 000000000139, 139.0) and was joined to it",
    "id_given": "a row without a usable id is called by its place in the file",
    "id_repeated": "a row whose id an earlier one has got a number behind it",
    "mask_empty": "a mask that covers no pixel of the image was left out, and the box kept",
    "mask_unread": "a mask in a form whose meaning is not clear was left out, and the box kept",
    "polygons_left_out": "a part of a mask had less than three usable points and was left out",
    "size_swapped": "width and height of the annotation file were exchanged: the picture as it is shown counts",
}
"""What is put right on the way (a closed list), and what each repair means."""

NOTES: dict[str, str] = {
    "file_name_repeated": "images have the file name of an image before them: where the tool numbered the pictures of "
    "several folders, their objects lie in the wrong picture, so write the folders in 'file_name'",
    "boxes_beyond_as_sizes": "boxes leave their images when read as COCO's [x, y, width, height], and all boxes fit as "
    "corners [x0, y0, x1, y1]: they are stored as sizes and most likely wrong; write 'bbox' as COCO does and prepare "
    "again with --overwrite",
    "areas_of_corners": "boxes have the 'area' of corners [x0, y0, x1, y1], not that of COCO's [x, y, width, height]: "
    "they are stored as sizes and most likely wrong; write 'bbox' as COCO does and prepare again with --overwrite",
    "box_clipped": "boxes, a fifth of the set or more, stuck out of their images and were cut: if the pictures were "
    "resized after they were annotated, or 'bbox' is not [x, y, width, height], they are wrong",
    "boxes_below_100": "boxes, nearly all, lie in the first 100 pixels of larger images: per cent of the image, it "
    "seems, stored as pixels; write 'bbox' in pixels and prepare again with --overwrite",
    "box_reread": "boxes mean something else than COCO's [x, y, width, height] (corners, centre, parts or per cent), "
    "as their masks show, and were read so; boxes without masks in this file may be wrong: look at the pictures in the "
    "report",
    "box_turned": "boxes are turned ('rotation'): the upright box around each turned one is stored",
    "boxes_unlike_masks": "boxes overlap the bounds of their masks by less than half and are stored as annotated: look "
    "at the pictures in the report",
    "size_swapped": "images have width and height exchanged in the annotation file (before their EXIF orientation, it "
    "seems): where nothing showed otherwise, what is annotated was taken as drawn in the upright image; look at one "
    "of them with `padt inspect`",
    "mask_unread": "masks are in a form that is not read, and their boxes were kept: write 'segmentation' as polygons "
    "[[x1, y1, x2, y2, ...], ...] or run lengths",
    "mask_empty": "masks cover no pixel of their images, and their boxes were kept: check 'segmentation'",
    "crowds": "objects, half of the set or more, are crowds ('iscrowd' is 1), which training skips: where they are "
    "single things, write 0",
}
"""What looks wrong but was neither rejected nor repaired (a closed list of codes): what it is, and what to do.

Each goes on after its number and ends without a full stop: ``"boxes end beyond ...: write ..."`` is shown as
``12 boxes end beyond ...: write .... For example ...``. What is counted is gathered by ``losses.Notes``.
"""

EXCLUSION_REASONS = {
    "same_source_id": "an excluded set holds the image with the same id of its publisher",
    "same_bytes": "an excluded set holds the very same file",
    "same_look": "an excluded set holds a picture that looks the same (such as a copy in another size or format)",
}
"""Why images are left out without being rejected (a closed list)."""

REJECT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("ann_id", pa.int64()),
        pa.field("item_id", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ],
    metadata={"padt_schema_version": str(SCHEMA_VERSION)},
)
"""One row for each reject. ``ann_id``: annotation that it is or refers to; ``item_id``: its sentence or caption id."""


def _features(kind: pa.DataType) -> Any:
    """Hugging Face's description of an Arrow type (the form that old and new versions of ``datasets`` read)."""
    if pa.types.is_struct(kind):
        return {field.name: _features(field.type) for field in kind}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _features(kind.value_type), "length": kind.list_size, "_type": "Sequence"}
    if pa.types.is_list(kind):
        return [_features(kind.value_type)]
    # NumPy's names, where Arrow has its own.
    return {"dtype": {"float": "float32", "double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


def _shard_schema() -> pa.Schema:
    features = {name: _features(kind) for name, kind in _COLUMNS}
    features["image"] = {"_type": "Image"}
    features["more_images"] = [{"_type": "Image"}]
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "padt_schema_version": str(SCHEMA_VERSION),
    }
    return pa.schema([pa.field(name, kind) for name, kind in _COLUMNS], metadata=metadata)


SHARD_SCHEMA = _shard_schema()
"""Columns of a shard, with the feature metadata that lets Hugging Face ``datasets`` show the pictures."""


def leaf_columns(schema: pa.Schema) -> list[str]:
    """Dotted Parquet paths of the leaf columns, as the writer's per-column settings name them."""

    def walk(name: str, kind: pa.DataType) -> list[str]:
        if pa.types.is_struct(kind):
            return [leaf for field in kind for leaf in walk(f"{name}.{field.name}", field.type)]
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            return walk(f"{name}.list.element", kind.value_type)
        return [name]

    return [leaf for field in schema for leaf in walk(field.name, field.type)]
