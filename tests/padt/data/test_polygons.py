"""Polygons of masks are the masks again, for COCO's own reader too, holes and touching corners included."""

import time

import numpy as np
import pytest

from padt.data.polygons import polygons
from padt.data.rle import encode

mask_utils = pytest.importorskip("pycocotools.mask")


def filled(rings: list[list[int]], height: int, width: int) -> np.ndarray:
    """As COCO's API reads an annotation's segmentation."""
    assert all(len(ring) >= 8 for ring in rings)
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(rings, height, width))).astype(bool)


def test_a_rectangle_has_its_four_corners_and_an_empty_mask_no_ring() -> None:
    mask = np.zeros((6, 8), bool)
    assert polygons(encode(mask)) == []
    mask[2:5, 3:7] = True
    assert polygons(encode(mask)) == [[3, 2, 7, 2, 7, 5, 3, 5]]


def test_pixels_that_touch_at_a_corner_are_two_rings() -> None:
    assert polygons(encode(np.eye(2, dtype=bool))) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]


def test_a_ring_goes_around_its_hole_by_a_cut() -> None:
    mask = np.ones((3, 3), bool)
    mask[1, 1] = False
    (ring,) = polygons(encode(mask))
    points = list(zip(ring[::2], ring[1::2], strict=True))
    assert set(points) == {(0, 0), (3, 0), (3, 3), (0, 3), (0, 1), (1, 1), (2, 1), (2, 2), (1, 2)}
    assert points.count((0, 1)) == points.count((1, 1)) == 2
    x, y = np.array(points).T
    assert abs((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2 == 8


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 0.95])
def test_any_mask_comes_back_exactly(share: float) -> None:
    rng = np.random.default_rng(int(share * 100))
    for _ in range(100):
        mask = rng.random(rng.integers(1, 24, 2)) < share
        rings = polygons(encode(mask))
        area = 0.0
        for ring in rings:
            x, y = np.array(ring).reshape(-1, 2).T
            area += (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
        assert area == mask.sum()
        if rings:
            np.testing.assert_array_equal(filled(rings, *mask.shape), mask)


def test_many_holes_in_a_row_need_no_recursion_and_little_time() -> None:
    mask = np.ones((3, 8001), bool)
    mask[1, 1::2] = False
    began = time.process_time()
    (ring,) = polygons(encode(mask))
    assert len(ring) > 4 * 4000 * 2
    assert time.process_time() - began < 5
