"""One image to one row: what is right must arrive unchanged, what is wrong must be named and must not stop the job."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from padt.data import rle
from padt.data.image import ResizePolicy
from padt.data.patches import unpack_patches
from padt.errors import ImageError
from pipelines.images.contents import measure
from pipelines.prepare.rows import RowContext, build_row
from pipelines.sources.base import ImageEntry, Piece
from pipelines.sources.segmentation import mask_of
from tests.pipelines.coco_files import annotation, image_bytes

CONTEXT = RowContext("set", "train", {3: "cat", 7: "traffic light"}, ResizePolicy())
NAN = float("nan")


def _build(objects=(), references=(), captions=(), content=None, size=(120, 90), context=CONTEXT):
    pieces = [
        Piece("1", kind, json.dumps(value))
        for kind, values in (("object", objects), ("reference", references), ("caption", captions))
        for value in values
    ]
    content = image_bytes(120, 90) if content is None else content
    return build_row(ImageEntry("1", "a.jpg", *size), "/images/a.jpg", content, pieces, context)


def _reasons(result):
    return [reject.reason for reject in result.rejects]


def test_an_object_arrives_as_annotated():
    content = image_bytes(120, 90)
    row = _build([annotation(11, 1, (10.5, 20.25, 60, 40), area=1234.5, category_id=7)], content=content).row
    assert row["key"] == "set/train/1" and row["image"] == {"bytes": content, "path": "a.jpg"}
    assert (row["width"], row["height"], row["grid_h"], row["grid_w"]) == (120, 90, 3, 4)
    (item,) = row["objects"]
    assert item["box"] == pytest.approx([10.5 / 120, 20.25 / 90, 70.5 / 120, 60.25 / 90])
    assert (item["ann_id"], item["category_id"], item["label"]) == (11, 7, "traffic light")
    assert (item["area"], item["iscrowd"]) == (1234.5, False)
    flags = unpack_patches(item["patches"], 12).reshape(3, 4)
    np.testing.assert_array_equal(flags, [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]])


def test_linked_images_are_stored_as_their_place():
    row = _build(context=RowContext("set", "train", {}, ResizePolicy(), copy_images=False)).row
    assert row["image"] == {"bytes": None, "path": "/images/a.jpg"}


def test_polygons_and_all_kinds_of_runs_give_pycocotools_masks():
    polygons = [[10.2, 10.7, 60.1, 12.3, 40.9, 70.0], [80, 5, 110, 5, 110, 30, 80, 30.5]]
    expected = coco_mask.merge(coco_mask.frPyObjects(polygons, 90, 120))
    text = {"size": [90, 120], "counts": expected["counts"].decode()}
    lengths = {"size": [90, 120], "counts": rle.runs(text).tolist()}
    objects = [
        annotation(number, 1, segmentation=form, iscrowd=number == 3)
        for number, form in enumerate([polygons, text, lengths], start=1)
    ]
    row = _build(objects).row
    assert [item["rle"] for item in row["objects"]] == [text] * 3
    assert [item["iscrowd"] for item in row["objects"]] == [False, False, True]


def test_boxes_without_masks_have_no_rle_and_take_their_patches_from_the_box():
    for form in ({"segmentation": None}, {"segmentation": []}):
        (item,) = _build([annotation(1, 1, (0, 0, 30, 30), **form)]).row["objects"]
        assert item["rle"] is None
        assert np.flatnonzero(unpack_patches(item["patches"], 12)).tolist() == [0]


def test_an_object_too_small_for_a_patch_stays_without_patches():
    (item,) = _build([annotation(1, 1, (50, 50, 3, 3))]).row["objects"]
    assert not unpack_patches(item["patches"], 12).any()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bbox": [10, 10, 0, 5], "segmentation": []}, "box_degenerate"),
        ({"bbox": [10, 10, 5, -5], "segmentation": []}, "box_degenerate"),
        ({"bbox": [10, NAN, 5, 5], "segmentation": []}, "box_degenerate"),
        ({"bbox": [10, 10, float("inf"), 5], "segmentation": []}, "box_degenerate"),
        ({"bbox": [10, 10, 5], "segmentation": []}, "box_degenerate"),
        ({"bbox": None, "segmentation": None}, "box_degenerate"),
        ({"bbox": [10**400, 10, 5, 5], "segmentation": []}, "box_degenerate"),
        ({"bbox": ["a", 1, 2, 3], "segmentation": []}, "box_degenerate"),
        ({"bbox": [130, 10, 5, 5]}, "box_outside_image"),
        ({"bbox": [-20, -20, 10, 10]}, "box_outside_image"),
        ({"category_id": 99}, "category_unknown"),
        ({"category_id": None}, "category_unknown"),
        ({"segmentation": [[1, 2, 3, 4, 5, NAN]]}, "mask_degenerate"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e12]]}, "mask_degenerate"),
        ({"segmentation": ["text"]}, "mask_degenerate"),
        ({"segmentation": {"size": [120, 90], "counts": [10800]}}, "mask_size_mismatch"),
        ({"segmentation": {"size": [90, 120], "counts": [5]}}, "mask_damaged"),
        ({"segmentation": {"size": [90, 120], "counts": "é"}}, "mask_damaged"),
        ({"segmentation": {"size": [90, 120]}}, "mask_damaged"),
        ({"segmentation": {"counts": [10800]}}, "mask_damaged"),
        ({"segmentation": {"size": [90, 120], "counts": [10**400]}}, "mask_damaged"),
        ({"segmentation": {"size": [90, 120], "counts": [2**63, 2**63, 10800]}}, "mask_damaged"),
        ({"segmentation": [[1, 2, 3, 4, 5, 10**400]]}, "mask_degenerate"),
        ({"id": None}, "annotation_malformed"),
        ({"id": " "}, "annotation_malformed"),
        ({"id": [7]}, "annotation_malformed"),
        ({"id": True}, "annotation_malformed"),
        ({"id": 1}, "duplicate_annotation_id"),
    ],
)
def test_a_broken_object_is_rejected_alone(fields, reason):
    result = _build([annotation(1, 1), annotation(2, 1, **{"id": 2, **fields}), annotation(3, 1)])
    assert _reasons(result) == [reason]
    assert [item["ann_id"] for item in result.row["objects"]] == [1, 3]


def test_a_box_that_sticks_out_is_clipped_and_counted():
    result = _build([annotation(1, 1, (-5, 10, 50, 100)), annotation(2, 1, (0, 0, 120.01, 90.01))])
    boxes = [item["box"] for item in result.row["objects"]]
    assert boxes == [pytest.approx([0, 10 / 90, 45 / 120, 1]), [0, 0, 1, 1]]
    assert result.repairs["box_clipped"] == 1


def test_one_bad_polygon_beside_good_ones_is_left_out_and_counted():
    good = [10, 10, 60, 10, 60, 60]
    result = _build([annotation(1, 1, segmentation=[good, [1, 2]])])
    assert result.row["objects"][0]["rle"] == mask_of([good], 90, 120)[0]
    assert result.repairs["polygons_left_out"] == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_upright_image(orientation):
    turned = orientation in (5, 6, 7, 8)
    content = image_bytes(120, 90, orientation)
    upright = (90, 120) if turned else (120, 90)
    assert measure(content)[:2] == upright
    for size, repairs in ((upright, 0), ((120, 90), int(turned)), ((None, None), 0)):
        result = _build([annotation(1, 1, (1, 1, 50, 50))], content=content, size=size)
        assert (result.row["width"], result.row["height"]) == upright
        assert result.row["objects"][0]["rle"]["size"] == [upright[1], upright[0]]
        assert result.repairs["size_swapped"] == repairs


@pytest.mark.parametrize(
    ("content", "size", "reason"),
    [
        (b"", (120, 90), "image_unreadable"),
        (b"not an image", (120, 90), "image_unreadable"),
        (image_bytes()[:-2000], (120, 90), "image_unreadable"),
        (image_bytes(kind="PNG")[:-2000], (120, 90), "image_unreadable"),
        # Pillow would hand it to Ghostscript, a program.
        (image_bytes(kind="EPS"), (120, 90), "image_unreadable"),
        (
            image_bytes(kind="BMP")[:18] + b"\xff\xff\x00\x00" * 2 + image_bytes(kind="BMP")[26:],
            (120, 90),
            "image_too_large",
        ),
        (ImageError("image_missing", "gone"), (120, 90), "image_missing"),
        (image_bytes(), (640, 480), "size_mismatch"),
        (image_bytes(900, 4), (900, 4), "image_aspect_ratio"),
    ],
)
def test_a_broken_image_is_rejected_with_everything_that_belongs_to_it(content, size, reason):
    reference = {"ref_id": 1, "sent_id": 2, "text": "it", "ann_ids": [1]}
    result = _build([annotation(1, 1)], [reference], [{"id": 5, "text": "A."}], content=content, size=size)
    assert result.row is None
    assert _reasons(result) == [reason, "image_rejected", "image_rejected", "image_rejected"]
    assert [(r.kind, r.ann_id, r.item_id) for r in result.rejects[1:]] == [
        ("object", 1, None),
        ("reference", None, 2),
        ("caption", None, 5),
    ]


def test_an_image_over_the_pixel_budget_is_refused_before_it_is_decoded():
    with pytest.raises(ImageError, match="more than the budget of 1,000"):
        measure(image_bytes(), pixel_budget=1000)


def test_references_point_at_places_of_the_row():
    def reference(number, *ann_ids, text="it"):
        return {"ref_id": 1, "sent_id": number, "text": text, "ann_ids": list(ann_ids)}

    result = _build(
        [annotation(5, 1), annotation(6, 1, (0, 0, 0, 0)), annotation(7, 1)],
        [
            reference(1, 7),
            reference(2, 5, 7),
            reference(3),
            reference(4, 6),
            reference(5, 99),
            reference(6, 5, text=" "),
        ],
    )
    kept = [(item["sent_id"], item["objects"]) for item in result.row["references"]]
    assert kept == [(1, [1]), (2, [0, 1]), (3, [])]
    assert _reasons(result) == ["box_degenerate", "object_rejected", "object_missing", "sentence_blank"]
    assert result.rejects[1].ann_id == 6 and result.rejects[1].item_id == 4


def test_captions_point_at_places_of_the_row():
    result = _build(
        [annotation(5, 1), annotation(7, 1)],
        captions=[
            {"id": None, "grounded": "A cat (<box_id: 7/>) by a cat (<box_id: 5/>, <box_id: 99/>)."},
            {"id": 1, "text": " plain  text"},
            {"id": 2, "text": ""},
            {"id": 3, "text": None},
            {"id": 4, "text": "sly <|Obj_0|>"},
            {"id": None, "grounded": "without an end"},
        ],
    )
    assert [{name: each[name] for name in ("text", "objects")} for each in result.row["captions"]] == [
        {"text": "A cat (<|Obj_0|>) by a cat (<|Obj_1|>).", "objects": [1, 0]},
        {"text": "plain text", "objects": []},
    ]
    assert _reasons(result) == ["caption_blank", "caption_malformed", "caption_malformed", "caption_unfinished"]
    assert result.repairs["caption_tags_dropped"] == 1
