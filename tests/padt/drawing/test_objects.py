"""Pictures are how people check data and predictions: nothing may be missing, misplaced or illegible."""

import numpy as np
import pytest
from PIL import Image

from padt.data import rle
from padt.drawing.objects import DrawnObject, colour_of, contact_sheet, draw_objects


def _grey(width, height):
    return Image.new("RGB", (width, height), (120, 120, 120))


def _changed(before, after):
    """Where two pictures of one size differ."""
    return np.abs(np.asarray(before).astype(int) - np.asarray(after).astype(int)).sum(axis=2) > 0


@pytest.mark.parametrize("size", [(112, 112), (140, 112), (640, 480), (2000, 1400)])
def test_small_pictures_are_scaled_up_and_large_ones_are_kept(size):
    drawn = draw_objects(_grey(*size), [])
    assert drawn.width / drawn.height == pytest.approx(size[0] / size[1])
    assert drawn.size == size if max(size) >= 960 else max(drawn.size) >= 840


def test_the_image_itself_is_not_changed():
    image = _grey(100, 80)
    draw_objects(image, [DrawnObject("cat", 0.5, (10, 10, 50, 50))], (2, 3), "text")
    assert np.asarray(image).min() == np.asarray(image).max() == 120


def test_a_mask_is_tinted_exactly_where_it_is():
    mask = np.zeros((1000, 1000), dtype=bool)
    mask[200:400, 500:900] = True
    changed = _changed(_grey(1000, 1000), draw_objects(_grey(1000, 1000), [DrawnObject("", mask=mask)]))
    np.testing.assert_array_equal(changed, mask)


def test_a_mask_of_a_small_picture_grows_with_it():
    mask = np.zeros((112, 112), dtype=bool)
    mask[28:56, :28] = True
    drawn = draw_objects(_grey(112, 112), [DrawnObject("", mask=mask)])
    factor = drawn.width // 112
    blank = draw_objects(_grey(112, 112), [])
    np.testing.assert_array_equal(_changed(blank, drawn), np.kron(mask, np.ones((factor, factor), dtype=bool)))


def test_patches_and_vrts_lie_in_their_cells():
    size, grid = (1120, 840), (3, 4)
    blank = draw_objects(_grey(*size), [], grid)
    drawn = draw_objects(_grey(*size), [DrawnObject("", patches=(1, 6), vrts=(6,))], grid)
    cells = _changed(blank, drawn).reshape(3, 280, 4, 280).mean(axis=(1, 3))
    assert set(np.flatnonzero(cells > 0.5).tolist()) == {1, 6}
    assert set(np.flatnonzero(cells > 0).tolist()) == {1, 6}
    assert drawn.getpixel((2.5 * 280, 1.5 * 280)) == colour_of(0)


def test_a_box_is_drawn_at_its_edges_in_the_colour_of_its_object():
    objects = [DrawnObject(""), DrawnObject("", box=(100, 200, 700, 800))]
    drawn = draw_objects(_grey(1000, 1000), objects)
    assert drawn.getpixel((101, 500)) == drawn.getpixel((400, 799)) == colour_of(1)
    assert drawn.getpixel((400, 500)) == (120, 120, 120)


@pytest.mark.parametrize("box", [(-50, -50, 2000, 2000), (990, 990, 1200, 1200), (500, 500, 500, 500), (9, 9, 2, 2)])
def test_boxes_outside_or_without_area_do_no_harm(box):
    assert draw_objects(_grey(1000, 1000), [DrawnObject("a label", 1.0, box)]).size == (1000, 1000)


def test_patches_outside_the_grid_do_no_harm():
    assert draw_objects(_grey(200, 200), [DrawnObject("x", patches=(99,), vrts=(4, 99))], (2, 2)).width >= 200


def test_tags_of_many_objects_do_not_hide_each_other():
    boxes = [(100 + 3 * step, 500, 400 + 3 * step, 700) for step in range(5)]
    drawn = np.asarray(draw_objects(_grey(1000, 1000), [DrawnObject("person", 0.9, box) for box in boxes]))
    for number in range(5):
        # The whole tag is a few thousand pixels of its colour; a hidden one would leave the thin box alone.
        assert (drawn == np.asarray(colour_of(number))).all(axis=2).sum() > 1500


def test_a_caption_is_added_below_with_its_lines_wrapped():
    image = _grey(1000, 600)
    short, long = (draw_objects(image, [], caption=text) for text in ("one line", "word " * 200))
    assert short.width == long.width == 1000
    assert 600 < short.height < long.height


def test_contact_sheet_holds_every_picture():
    pictures = [_grey(100, 300), _grey(300, 100), Image.new("RGB", (50, 50), (255, 0, 0))]
    sheet = contact_sheet(pictures, 2, ["one", "two", "a title that is much too long for its cell " * 5], 200)
    assert sheet.width < 2 * 200 + 3 * 20
    assert (np.asarray(sheet) == (255, 0, 0)).all(axis=2).sum() == 200 * 200
    assert (np.asarray(sheet) == (120, 120, 120)).all(axis=2).sum() > 200 * 60


def test_labels_in_any_language_do_not_fail():
    assert draw_objects(
        _grey(300, 200), [DrawnObject("猫 🐈 \u0000", 0.1, (5, 5, 90, 90))], caption="日本語 é\n\n"
    ).height


@pytest.mark.parametrize(("count", "tagged"), [(100, True), (101, False)])
def test_tags_end_where_they_would_hide_the_picture(count, tagged):
    """Finding places for tags takes its time squared: 5,000 objects took minutes."""
    image = Image.new("RGB", (320, 240), "grey")
    boxes = [
        (number % 20 * 15.0, number // 20 * 12.0, number % 20 * 15.0 + 9, number // 20 * 12.0 + 9)
        for number in range(count)
    ]
    with_labels, without = (
        draw_objects(image, [DrawnObject(label, box=box) for box in boxes]) for label in ("cat", "")
    )
    assert (with_labels.tobytes() != without.tobytes()) == tagged


def test_run_lengths_are_drawn_as_their_mask():
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:40, 20:50] = True
    image = Image.new("RGB", (80, 60), "grey")
    pictures = [draw_objects(image, [DrawnObject("cat", mask=each)]) for each in (mask, rle.encode(mask))]
    assert pictures[0].tobytes() == pictures[1].tobytes()
