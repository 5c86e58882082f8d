"""If these break, toy pictures and their annotations no longer agree, or a seed no longer means one picture."""

from collections import Counter

import numpy as np
import pytest

from padt.errors import UserError
from pipelines.toy.scenes import COLOURS, KINDS, SCENE_SIZES, SIZES, SceneOptions, draw_scene, scene_rng


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(scene_rng(11, 0, number)) for number in range(300)]


def test_a_seed_means_one_scene():
    first, again, other = (draw_scene(scene_rng(*key)) for key in ((3, 1, 5), (3, 1, 5), (3, 2, 5)))
    assert np.array_equal(first.image, again.image)
    assert [shape.box for shape in first.shapes] == [shape.box for shape in again.shapes]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(first.shapes, again.shapes, strict=True))
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


def test_boxes_and_areas_are_those_of_the_masks(scenes):
    for scene in scenes:
        for shape in scene.shapes:
            rows, columns = np.nonzero(shape.mask)
            assert shape.mask.shape == scene.image.shape[:2] == (scene.height, scene.width)
            assert shape.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert shape.area == len(rows)


def test_masks_lie_on_pixels_of_their_colour(scenes):
    for scene in scenes:
        assert scene.image.dtype == np.uint8
        for shape in scene.shapes:
            mean = scene.image[shape.mask].mean(0)
            nearest = min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())
            assert nearest == shape.colour


def test_no_pixel_belongs_to_two_shapes_and_all_shapes_can_be_seen(scenes):
    # Smallest visible area that the limits allow for the thinnest kind (triangle, 1.28 square radii and more).
    least = {size: 0.7 * 0.75 * 1.28 * low**2 for size, (low, _) in SIZES.items()}
    for scene in scenes:
        assert sum(shape.mask.astype(int) for shape in scene.shapes).max() == 1
        assert all(shape.area >= least[shape.size] for shape in scene.shapes)


def test_harder_scenes_share_colours_and_have_larger_shapes():
    options = SceneOptions(
        ((140, 140),), min_shapes=2, max_shapes=4, shared_colour=1.0, large=(30.0, 36.0), classes="colour"
    )
    scenes = [draw_scene(scene_rng(11, 0, number), options) for number in range(60)]
    for scene in scenes:
        colours = Counter(shape.colour for shape in scene.shapes)
        assert len(scene.shapes) == 1 or max(colours.values()) == 2
        assert all(shape.category == f"{shape.colour} shape" for shape in scene.shapes)
    assert sum(len(scene.shapes) > 1 for scene in scenes) > 50
    assert max(shape.box[2] - shape.box[0] for scene in scenes for shape in scene.shapes) > 2 * SIZES["large"][1]
    by_kind = draw_scene(scene_rng(11, 0, 3), SceneOptions(classes="kind"))
    assert [shape.category for shape in by_kind.shapes] == [shape.kind for shape in by_kind.shapes]


def test_shapes_of_one_colour_do_not_touch():
    options = SceneOptions(((112, 112),), min_shapes=3, shared_colour=1.0)
    for number in range(40):
        shapes = draw_scene(scene_rng(12, 0, number), options).shapes
        for one, other in ((a, b) for a in shapes for b in shapes if a is not b and a.colour == b.colour):
            grown = np.zeros_like(one.mask)
            grown[:, 4:] |= one.mask[:, :-4]
            grown[4:] |= one.mask[:-4]
            assert not (grown & other.mask).any()


def test_small_and_large_cannot_be_mistaken(scenes):
    extents = {
        size: [
            max(s.box[2] - s.box[0], s.box[3] - s.box[1]) for scene in scenes for s in scene.shapes if s.size == size
        ]
        for size in SIZES
    }
    assert max(extents["small"]) < min(extents["large"])


def test_everything_that_can_occur_occurs_about_equally_often(scenes):
    shapes = [shape for scene in scenes for shape in scene.shapes]
    for names, found in (
        (KINDS, Counter(shape.kind for shape in shapes)),
        (COLOURS, Counter(shape.colour for shape in shapes)),
        (SIZES, Counter(shape.size for shape in shapes)),
        (SCENE_SIZES, Counter(scene.image.shape[:2] for scene in scenes)),
        ((1, 2, 3), Counter(len(scene.shapes) for scene in scenes)),
    ):
        assert set(found) == set(names)
        assert max(found.values()) < 1.6 * min(found.values())


@pytest.mark.parametrize(
    "options", [{"sizes": ((100, 112),)}, {"min_shapes": 0}, {"max_shapes": 9}, {"min_inside": 1.0}, {"sizes": ()}]
)
def test_impossible_scenes_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        SceneOptions(**options)
