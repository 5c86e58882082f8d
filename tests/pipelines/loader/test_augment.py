"""Augmentation: what is shown, what is said of it, and what is answered must move together."""

import io

import numpy as np
import pytest
from PIL import Image

from padt.data.image import ResizePolicy
from padt.data.patches import coverage_of_rle, foreground, pack_patches, unpack_patches
from padt.data.rle import decode
from padt.data.tasks import TaskOptions, render
from padt.errors import UserError
from pipelines.loader.augment import AugmentOptions, View, augment, view_row
from pipelines.loader.mirror_text import mirror_text
from tests.pipelines.mini_set import scene_row

POLICY = ResizePolicy()
EVERYTHING = AugmentOptions(flip=0.5, scale=(0.6, 1.6), crop=0.7, crop_area=(0.3, 0.9))


def only(row, column, item):
    """The row as a sample about one sentence or caption sees it."""
    return {**row, "references": [], "captions": []} | ({column: [row[column][item]]} if column else {})


def grid_of(entry, row):
    return unpack_patches(entry["patches"], row["grid_h"] * row["grid_w"]).reshape(row["grid_h"], row["grid_w"])


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the left dog", "the right dog"),
        ("Leftmost man, RIGHT-hand side", "Rightmost man, LEFT-hand side"),
        ("an upright, bright cup left of the bowl", "an upright, bright cup right of the bowl"),
        ("the dog right now on the left", "the dog right now on the right"),
        ("man on right by the door", "man on left by the door"),
        ("guy far lft, rt one", "guy far rt, lft one"),
        # Not certain what is meant, or not to be seen in a mirror.
        ("guy right behind the girl", None),
        ("the only slice left", None),
        ("player number 12 on the left", None),
        ("the left sign that says stop", None),
        ("die Tür links", None),
    ],
)
def test_words_of_direction_change_sides(text, mirrored):
    # "the left dog" about a mirrored picture would teach that left is right.
    assert mirror_text(text) == mirrored
    if mirrored is not None:
        assert mirror_text(mirrored) == text


def test_mirroring_twice_gives_the_row_back():
    for number in range(6):
        row = scene_row(number)
        view = View((0, 0, row["width"], row["height"]), True, POLICY.size(row["height"], row["width"]))
        once = view_row(row, view)
        twice = view_row(once, view)
        assert twice["references"] == [entry for entry in row["references"] if mirror_text(entry["text"]) is not None]
        for entry, other, back in zip(row["objects"], once["objects"], twice["objects"], strict=True):
            assert back["rle"] == entry["rle"] and back["patches"] == entry["patches"]
            assert back["box"] == pytest.approx(entry["box"], abs=1e-12)
            assert np.array_equal(grid_of(other, once), grid_of(entry, row)[:, ::-1])


def test_a_view_equals_the_same_done_to_pixels():
    # Image, masks, patches and boxes of a random window, mirrored and scaled, against plain array slicing.
    rng = np.random.default_rng(1)
    for number in range(6):
        row = scene_row(number)
        height, width = row["height"], row["width"]
        x0, y0 = rng.integers(0, width // 3), rng.integers(0, height // 3)
        x1, y1 = rng.integers(2 * width // 3, width + 1), rng.integers(2 * height // 3, height + 1)
        view = View((int(x0), int(y0), int(x1), int(y1)), True, (140, 84))
        seen = view_row(row, view, min_visible=0.0)
        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        expected = Image.fromarray(np.ascontiguousarray(np.asarray(picture)[y0:y1, x0:x1][:, ::-1]))
        assert np.array_equal(view.image(picture), expected.resize((84, 140), Image.Resampling.BICUBIC))
        assert (seen["grid_h"], seen["grid_w"]) == (5, 3)
        masks = [decode(entry["rle"])[y0:y1, x0:x1][:, ::-1] for entry in row["objects"]]
        masks = [mask for mask in masks if mask.any()]
        for entry, mask in zip(seen["objects"], masks, strict=True):
            assert np.array_equal(decode(entry["rle"]), mask)
            assert entry["patches"] == pack_patches(foreground(coverage_of_rle(entry["rle"], 5, 3)))
            rows, columns = np.nonzero(mask)
            tight = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(np.array(entry["box"]) * np.tile(mask.shape[::-1], 2) - tight).max() <= 1.0


def test_what_a_sample_speaks_of_stays_in_the_picture():
    # A sentence whose target was cut away would be answered with nothing, or with the wrong thing.
    options = TaskOptions()
    changed = 0
    for number in range(8):
        row = scene_row(number)
        for task, column in (("refer", "references"), ("caption", "captions")):
            for item in range(len(row[column])):
                part = only(row, column, item)
                scale = (0.6, 0.9, 1.0, 1.5)[item % 4]
                seen = augment(part, task, scale, np.random.default_rng([number, item]), EVERYTHING, POLICY)
                changed += seen is not part
                plain = render(part, task, 0, np.random.default_rng(0), options)
                sample = render(seen, task, 0, np.random.default_rng(0), options)
                assert len(sample.groups) == len(plain.groups)
                size = POLICY.size(*reversed(seen["image"]["bytes"].size)) if seen is not part else None
                assert size in (None, (28 * seen["grid_h"], 28 * seen["grid_w"]))
    assert changed > 20


def test_a_cut_object_is_neither_asked_for_nor_called_absent():
    row = only(scene_row(2), None, 0)
    whole = row["objects"][0]
    x0, _, x1, _ = (round(value * row["width"]) for value in whole["box"])
    border = x0 + round(0.8 * (x1 - x0))
    assert 0 < border < row["width"]
    seen = view_row(row, View((border, 0, row["width"], row["height"]), False, (112, 56)))
    cut = [entry for entry in seen["objects"] if entry["ann_id"] == whole["ann_id"]]
    assert len(cut) == 1 and not any(cut[0]["patches"])
    names = tuple({entry["label"] for entry in row["objects"]})
    sample = render(seen, "detect", 0, np.random.default_rng(0), TaskOptions(class_names=names, drop_names=0))
    if not any(entry["label"] == whole["label"] and any(entry["patches"]) for entry in seen["objects"]):
        assert f'"{whole["label"]}"' not in sample.prompt


def test_boxes_without_masks_move_too():
    row = only(scene_row(1, masks=False), None, 0)
    width = row["width"]
    seen = view_row(row, View((0, 0, width, row["height"]), True, POLICY.size(row["height"], width)))
    for entry, other in zip(row["objects"], seen["objects"], strict=True):
        assert other["box"] == pytest.approx(
            [1 - entry["box"][2], entry["box"][1], 1 - entry["box"][0], entry["box"][3]]
        )
        assert other["rle"] is None and any(other["patches"])


def test_draws_are_those_of_the_sample():
    row = only(scene_row(0), None, 0)
    first, second, other = (
        augment(row, "detect", 1.2, np.random.default_rng(seed), EVERYTHING, POLICY) for seed in (1, 1, 2)
    )
    assert np.array_equal(first["image"]["bytes"], second["image"]["bytes"]) and first["objects"] == second["objects"]
    assert first["objects"] != other["objects"]
    assert augment(row, "detect", 1.0, np.random.default_rng(1), AugmentOptions(), POLICY) is row


@pytest.mark.parametrize("limits", [{}, {"max_pixels": 60 * 784}, {"min_pixels": 40 * 784}])
def test_no_view_is_larger_than_foretold(limits):
    # Batches are cut by this number: a larger picture would break the memory budget.
    policy, options = ResizePolicy(**limits), AugmentOptions(scale=(0.5, 1.7), crop=0.5)
    rng = np.random.default_rng(0)
    sides, scales = rng.integers(20, 400, (600, 2)), options.scales(rng.random(600))
    assert 0.5 <= scales.min() < 0.6 and 1.6 < scales.max() <= 1.7
    grids = np.array([policy.grid(*side) for side in sides])
    foretold = options.largest_grid(grids[:, 0], grids[:, 1], scales, policy)
    shares = np.where(rng.random(600) < 0.5, 1.0, rng.uniform(0.7, 1.0, 600))
    seen = [
        policy.grid(*(max(1, round(max(1, round(side * share)) * scale)) for side in pair))
        for pair, scale, share in zip(sides.tolist(), scales, shares, strict=True)
    ]
    ratio = np.prod(seen, axis=1) / foretold
    assert ratio.max() <= 1
    assert ratio[shares == 1].mean() > 0.6


def test_wrong_options_name_their_key():
    for wrong in ({"flip": 2}, {"scale": (2, 1)}, {"crop_area": (0, 1)}):
        with pytest.raises(UserError, match=rf"augment\.{next(iter(wrong))}"):
            AugmentOptions(**wrong)
