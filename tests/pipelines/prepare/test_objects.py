"""Boxes that mean something else than COCO's are found by their masks and images, and never stored silently."""

import json

import pytest

from pipelines.prepare.objects import build_objects
from pipelines.sources.base import Piece
from tests.pipelines.coco_files import annotation

WIDTH, HEIGHT = 300, 200
CORNERS = (60, 50, 180, 150)
SIZED = (60, 50, 120, 100)


def _build(*objects, size=(WIDTH, HEIGHT), turned=False):
    pieces = [Piece("1", "object", json.dumps(each)) for each in objects]
    return build_objects("1", pieces, size, (7, 11), {3: "cat"}, turned)


def _boxes(found):
    scale = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    return [tuple(round(side * by, 3) for side, by in zip(item["box"], scale, strict=True)) for item in found.items]


def _reasons(found):
    return [reject.reason for reject in found.rejects]


@pytest.mark.parametrize(
    "bbox",
    [
        ["60", "50", "120.0", "100"],
        {"x": 60, "y": 50, "width": 120, "height": 100},
        {"cx": 120, "w": 120, "cy": 100, "h": 100, "x": 60, "y": 50},
        {"left": "60", "top": 50, "width": 120, "height": 100},
        {"xmin": 60, "ymin": 50, "xmax": 180, "ymax": 150},
        {"x1": 60, "y1": 50, "x2": 180, "y2": 150},
    ],
)
def test_boxes_that_name_their_fields_or_are_text_are_read(bbox):
    found = _build(annotation(1, 1, SIZED, bbox=bbox, segmentation=[]))
    assert _boxes(found) == [CORNERS] and not found.rejects


@pytest.mark.parametrize("bbox", ["1234", "[60, 50, 120, 100]", {"x": 1}, {"x": 1, "y": 2, "width": 0, "height": 3}, 7])
def test_what_is_no_box_is_rejected_and_never_guessed(bbox):
    assert _reasons(_build(annotation(1, 1, bbox=bbox, segmentation=[]))) == ["box_degenerate"]


@pytest.mark.parametrize("bbox", [[60, 50, 0, 0], [60, 50, -120, 100], [60, 50, 120], None, "?", [float("nan")] * 4])
def test_a_broken_box_is_taken_from_its_mask(bbox):
    found = _build(annotation(1, 1, SIZED, bbox=bbox))
    assert _boxes(found) == [CORNERS] and found.repairs["box_from_mask"] == 1


@pytest.mark.parametrize(
    "bbox",
    [
        CORNERS,
        (120, 100, 120, 100),
        (60 / 300, 50 / 200, 120 / 300, 100 / 200),
        (60 / 300, 50 / 200, 180 / 300, 150 / 200),
        (120 / 300, 100 / 200, 120 / 300, 100 / 200),
        (20, 25, 40, 50),
        (20, 25, 60, 75),
        (40, 50, 40, 50),
    ],
)
def test_a_box_in_another_form_is_read_as_its_mask_shows(bbox):
    found = _build(annotation(1, 1, SIZED, bbox=list(bbox)))
    assert _boxes(found) == [CORNERS] and not found.rejects
    assert found.repairs["box_reread"] == 1


def test_a_box_that_is_a_little_off_its_mask_stays_as_annotated():
    found = _build(annotation(1, 1, SIZED, bbox=[58, 49, 125, 104]))
    assert _boxes(found) == [(58, 49, 183, 153)] and not +found.repairs


def test_a_small_box_may_differ_from_its_mask_by_a_pixel():
    found = _build(annotation(1, 1, (100, 80, 6, 4), bbox=[99.2, 79.1, 7, 5]))
    assert _boxes(found) == [(99.2, 79.1, 106.2, 84.1)] and not +found.repairs


def test_a_box_apart_from_its_mask_is_rejected_and_one_unlike_it_counted():
    apart, unlike = annotation(1, 1, SIZED, bbox=[200, 10, 40, 30]), annotation(2, 1, SIZED, bbox=[100, 100, 190, 90])
    found = _build(apart, unlike, annotation(3, 1))
    assert _reasons(found) == ["box_mask_apart"]
    assert [item["ann_id"] for item in found.items] == [2, 3] and found.signs["boxes_unlike_masks"] == 1


def test_parts_of_the_image_are_rejected_where_no_mask_tells():
    found = _build(
        annotation(1, 1, bbox=[0.2, 0.3, 0.4, 0.5], segmentation=[]),
        annotation(2, 1, bbox=[0.2, 0.3, 0.9, 1.0], segmentation=[]),
        annotation(
            3, 1, bbox=["0.2", "0.25", "0.4", "0.5"], segmentation=[[0.2, 0.25, 0.6, 0.25, 0.6, 0.75, 0.2, 0.75]]
        ),
        annotation(4, 1, bbox=[0.7, 0.7, 0.2, 0.2], segmentation=[[60, 50, 180, 50, 180, 150, 60, 150]]),
    )
    assert _reasons(found) == ["box_normalised"] * 3 and _boxes(found) == [CORNERS]


def test_a_pixel_is_a_box_in_a_picture_of_few_pixels():
    found = _build(annotation(1, 1, bbox=[0, 0, 1, 1], segmentation=[]), size=(5, 1))
    assert not found.rejects and found.items[0]["box"] == [0, 0, 0.2, 1]


@pytest.mark.parametrize("where", [{"attributes": {"occluded": False, "rotation": 90.0}}, {"rotation": 90}])
def test_a_turned_box_is_stored_upright_and_counted(where):
    found = _build(annotation(1, 1, bbox=[70, 90, 160, 20], segmentation=[], **where))
    assert _boxes(found) == [(140, 20, 160, 180)] and found.repairs["box_turned"] == 1


def test_a_mask_says_whether_a_box_was_taken_before_its_turn():
    polygon = [[140, 20, 160, 20, 160, 180, 140, 180]]
    turned = {"segmentation": polygon, "attributes": {"rotation": 90.0}}
    for bbox, repairs in (([70, 90, 160, 20], 1), ([140, 20, 20, 160], 0)):
        found = _build(annotation(1, 1, bbox=bbox, **turned))
        assert _boxes(found) == [(140, 20, 160, 180)] and found.repairs["box_turned"] == repairs


@pytest.mark.parametrize("attributes", [{"rotation": 0.0}, {"rotation": 360}, {"rotation": "north"}, None, []])
def test_a_box_that_is_not_turned_stays(attributes):
    found = _build(annotation(1, 1, SIZED, segmentation=[], attributes=attributes))
    assert _boxes(found) == [CORNERS] and not +found.repairs


@pytest.mark.parametrize(
    ("lost", "repair"),
    [([[10, 20, 60, 40]], "mask_unread"), ([[900, 900, 950, 900, 950, 950]], "mask_empty"), ("a.png", "mask_unread")],
)
def test_a_good_box_is_kept_where_its_mask_is_lost(lost, repair):
    found = _build(annotation(1, 1, SIZED, segmentation=lost))
    assert _boxes(found) == [CORNERS] and found.items[0]["rle"] is None
    assert +found.repairs == {repair: 1}


def test_a_mask_of_the_size_before_the_turn_rejects_all_that_was_drawn_with_it():
    before = {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT - 30, 30]}
    found = _build(annotation(1, 1, segmentation=before), annotation(2, 1, segmentation=[]), turned=True)
    assert _reasons(found) == ["drawn_before_turn"] * 2 and not found.items
    assert _reasons(_build(annotation(1, 1, segmentation=before))) == ["mask_size_mismatch"]


def test_boxes_far_outside_of_the_upright_image_were_drawn_before_its_turn():
    tall = (WIDTH, HEIGHT)[::-1]
    boxes = [annotation(number, 1, box, segmentation=[]) for number, box in enumerate([(230, 10, 60, 100), SIZED], 1)]
    assert _reasons(_build(*boxes, size=tall, turned=True)) == ["drawn_before_turn"] * 2
    # Upright ones lie in the upright image, or leave it a little.
    good = [annotation(1, 1, (20, 180, 100, 110), segmentation=[]), annotation(2, 1, (150, 10, 55, 9), segmentation=[])]
    assert not _build(*good, size=tall, turned=True).rejects


def test_ids_of_categories_may_be_text():
    found = _build(annotation(1, 1, category_id="3"), annotation(2, 1, category_id="cat"), annotation(3, 1))
    assert [reject.detail for reject in found.rejects] == ["category_id cat is the name of a category: write its id, 3"]
    assert len(found.items) == 2
