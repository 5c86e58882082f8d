"""What a set shows as a whole is told with its number and an example; sets that are as they should be say nothing."""

import random

import pytest

from tests.pipelines.coco_files import annotation, image_bytes, options_for, prepare_here, write_coco

WIDTH, HEIGHT = 300, 200


def _notes(folder, annotations, orientation=None, size=(WIDTH, HEIGHT)):
    images = [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
    write_coco(folder, 0, annotations=annotations, images=images)
    (folder / "images" / "a.jpg").write_bytes(image_bytes(WIDTH, HEIGHT, orientation))
    manifest = prepare_here(options_for(folder, folder / "set"))
    assert all(note.example == "coco/train/1" for note in manifest.notes)
    page = (folder / "set" / "report.html").read_text()
    assert ('class="alarm"' in page) == bool(manifest.notes)
    return {note.code: note.count for note in manifest.notes}


def _corners(count, seed=0):
    draw = random.Random(seed)
    for _ in range(count):
        x, y = draw.uniform(5, WIDTH * 0.7), draw.uniform(5, HEIGHT * 0.7)
        yield x, y, draw.uniform(x + 20, WIDTH), draw.uniform(y + 20, HEIGHT)


def _written(form, **fields):
    return [annotation(number, 1, form(*box), segmentation=[], **fields) for number, box in enumerate(_corners(30), 1)]


def test_boxes_as_coco_has_them_say_nothing(tmp_path):
    boxes = _written(lambda x0, y0, x1, y1: (x0, y0, x1 - x0, y1 - y0))
    assert _notes(tmp_path, [*boxes, annotation(99, 1, iscrowd=1)]) == {}


def test_corners_in_place_of_sizes_are_told(tmp_path):
    assert _notes(tmp_path, _written(lambda *corners: corners))["boxes_beyond_as_sizes"] >= 6


def test_small_corners_are_told_by_their_areas(tmp_path):
    objects = [annotation(number, 1, (5, 5, 30 + number, 40), segmentation=[]) for number in range(1, 8)]
    for each in objects:
        each["area"] = (each["bbox"][2] - 5) * 35
    assert _notes(tmp_path, objects) == {"areas_of_corners": 7}


def test_per_cent_in_place_of_pixels_are_told(tmp_path):
    to_percent = lambda x0, y0, x1, y1: (x0 / 3, y0 / 2, (x1 - x0) / 3, (y1 - y0) / 2)  # noqa: E731
    assert _notes(tmp_path, _written(to_percent)) == {"boxes_below_100": 30}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"bbox": [10, 20, 70, 60]}, "box_reread"),
        ({"segmentation": [], "attributes": {"rotation": 30.0}}, "box_turned"),
        ({"segmentation": [[1, 2, 3, 4]]}, "mask_unread"),
        ({"segmentation": [[900, 900, 950, 900, 950, 950]]}, "mask_empty"),
        ({"bbox": [40, 50, 150, 100]}, "boxes_unlike_masks"),
        ({"iscrowd": 1}, "crowds"),
        ({"bbox": [250, 100, 80, 50], "segmentation": []}, "box_clipped"),
    ],
)
def test_what_was_put_right_or_will_be_skipped_is_told(tmp_path, fields, code):
    assert _notes(tmp_path, [annotation(1, 1, **fields)]) == {code: 1}


def test_sizes_before_the_exif_orientation_are_told(tmp_path):
    assert _notes(tmp_path, [annotation(1, 1)], orientation=6) == {"size_swapped": 1}
