"""Segmentations in the forms that tools write: the same mask where they are clear, no mask where they are not."""

import base64
import json

import pytest

from padt.data import rle
from pipelines.sources.segmentation import MaskError, mask_of

SIZE = (90, 120)
POLYGON = [10, 20, 70, 20, 70, 60, 10, 60]
PAIRS = [[10, 20], [70, 20], [70, 60], [10, 60]]
RECTANGLE = mask_of([POLYGON], *SIZE).mask
RUNS = {"size": [90, 120], "counts": rle.runs(RECTANGLE).tolist()}


@pytest.mark.parametrize(
    "form",
    [
        POLYGON,
        [[*POLYGON, 10, 20]],
        [[POLYGON]],
        PAIRS,
        [PAIRS],
        [[[x, y] for x, y in (*PAIRS, PAIRS[0])]],
        [[str(each) for each in POLYGON]],
        [[[str(x), str(y)] for x, y in PAIRS]],
        json.dumps([POLYGON]),
        json.dumps(RECTANGLE),
        {"points": PAIRS},
        [[x / 120 if place % 2 == 0 else x / 90 for place, x in enumerate(POLYGON)]],
        RECTANGLE,
        RUNS,
        [RECTANGLE],
        {**RECTANGLE, "counts": str(RECTANGLE["counts"].encode())},
    ],
)
def test_clear_forms_give_the_same_mask(form):
    read = mask_of(form, *SIZE)
    assert read.mask == RECTANGLE and read.bounds == (10, 20, 70, 60)
    assert (read.left_out, read.lost) == (0, None)


def test_parts_are_joined_whatever_their_form():
    one, other = [[10, 20, 70, 20, 70, 40, 10, 40]], [[10, 40, 70, 40, 70, 60, 10, 60]]
    parts = [mask_of(part, *SIZE).mask for part in (one, other)]
    halves = [[part[0][i : i + 2] for i in range(0, 8, 2)] for part in (one, other)]
    assert mask_of(parts, *SIZE).mask == mask_of(halves, *SIZE).mask == mask_of(one + other, *SIZE).mask == RECTANGLE


@pytest.mark.parametrize("form", [None, [], [[]], {}, "", " ", [[], []]])
def test_nothing_is_nothing(form):
    read = mask_of(form, *SIZE)
    assert (read.mask, read.lost) == (None, None)


@pytest.mark.parametrize(
    "form",
    [
        [10, 20, 60, 40],
        [[10, 20, 60, 40]],
        [[10, 20]],
        [[10, 20], [70, 20]],
        [POLYGON[:7]],
        "mask_000001.png",
        "M 10 20 L 70 20",
        {"path": "mask.png"},
        7,
        True,
    ],
)
def test_what_is_no_outline_loses_the_mask_alone(form):
    read = mask_of(form, *SIZE)
    assert (read.mask, read.lost) == (None, "mask_unread")


def test_a_mask_without_a_pixel_in_the_image_is_none():
    outside = [[400, 300, 500, 300, 500, 400, 400, 400]]
    assert mask_of(outside, *SIZE).lost == "mask_empty"
    assert mask_of({"size": [90, 120], "counts": [90 * 120]}, *SIZE).lost == "mask_empty"


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ([[10, 20, 70, float("nan"), 70, 60]], "mask_degenerate"),
        ([[10, 20, 70, None, 70, 60]], "mask_degenerate"),
        ([[10, 20, 70, 2e8, 70, 60]], "mask_degenerate"),
        ([[10, 20, 70, "six", 70, 60]], "mask_degenerate"),
        ([[{"x": 10, "y": 20}, {"x": 70, "y": 20}, {"x": 70, "y": 60}]], "mask_degenerate"),
        ({"size": [120, 90], "counts": RECTANGLE["counts"]}, "mask_size_mismatch"),
        ([{"size": [120, 90], "counts": RECTANGLE["counts"]}], "mask_size_mismatch"),
        ({"size": [90, 120], "counts": base64.b64encode(RECTANGLE["counts"].encode()).decode()}, "mask_damaged"),
        ({"size": [90, 120], "counts": "b'é'"}, "mask_damaged"),
    ],
)
def test_damaged_numbers_are_an_error(form, reason):
    with pytest.raises(MaskError) as error:
        mask_of(form, *SIZE)
    assert error.value.reason == reason


def test_a_polygon_that_cannot_be_used_beside_one_that_can_is_counted():
    assert mask_of([POLYGON, [1, 2], [1, float("nan"), 3, 4, 5, 6]], *SIZE)[0::2] == (RECTANGLE, 2)
