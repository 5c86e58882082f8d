"""Masks on disk and over the wire must be the very same as every other COCO tool's."""

import time

import numpy as np
import pytest

from padt.data import rle
from padt.errors import UserError

coco_mask = pytest.importorskip("pycocotools.mask")


def _masks():
    rng = np.random.default_rng(3)
    yield np.zeros((5, 7), dtype=bool)
    yield np.ones((5, 7), dtype=bool)
    yield np.eye(9, dtype=bool)
    for height, width in [(1, 1), (1, 40), (40, 1), (33, 57), (480, 640), (1200, 90)]:
        for share in (0.002, 0.3, 0.97):
            yield rng.random((height, width)) < share
        blob = np.zeros((height, width), dtype=bool)
        blob[height // 4 : height // 2 + 1, width // 3 : width // 2 + 1] = True
        yield blob


def test_encoding_is_pycocotools_bit_for_bit():
    for mask in _masks():
        ours, theirs = rle.encode(mask), coco_mask.encode(np.asfortranarray(mask))
        assert ours["counts"] == theirs["counts"].decode("ascii")
        assert ours["size"] == list(theirs["size"])


def test_decoding_and_area_agree_for_text_bytes_and_lists():
    for mask in _masks():
        text = rle.encode(mask)
        forms = [text, {**text, "counts": text["counts"].encode()}, {**text, "counts": rle.runs(text).tolist()}]
        for form in forms:
            np.testing.assert_array_equal(rle.decode(form), mask)
            assert rle.area(form) == mask.sum() == coco_mask.area({**text, "counts": text["counts"].encode()})


def test_uncompressed_runs_give_the_same_text_as_pycocotools():
    for mask in _masks():
        height, width = mask.shape
        lengths = rle.runs(rle.encode(mask))
        theirs = coco_mask.frPyObjects({"size": [height, width], "counts": lengths.tolist()}, height, width)
        assert rle.from_runs(lengths, height, width)["counts"] == theirs["counts"].decode("ascii")


@pytest.mark.parametrize(
    "broken",
    [
        {"size": [4, 4], "counts": [3, 4]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4, 4], "counts": [1.5, 14.5]},
        {"size": [4, 4], "counts": "P"},
        {"size": [4, 4], "counts": "é"},
        {"size": [4, 4], "counts": "\x7f"},
        {"size": [4, 4], "counts": None},
        {"size": [4], "counts": [16]},
        {"counts": [16]},
    ],
)
def test_a_damaged_mask_is_a_clear_error(broken):
    with pytest.raises(UserError, match="mask"):
        rle.decode(broken)


def test_a_photograph_sized_mask_is_encoded_quickly():
    mask = np.random.default_rng(0).random((480, 640)) < 0.5
    smooth = np.zeros((480, 640), dtype=bool)
    smooth[100:300, 100:500] = True
    rle.encode(mask)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        rle.encode(smooth)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.005


def test_mirrored_and_cut_masks_are_those_of_the_pixels():
    # Augmentation moves masks by their runs: a pixel beside its place would teach wrong patches.
    rng = np.random.default_rng(4)
    for mask in _masks():
        encoded, (height, width) = rle.encode(mask), mask.shape
        assert rle.mirror(encoded) == rle.encode(mask[:, ::-1])
        x0, y0 = rng.integers(0, width), rng.integers(0, height)
        x1, y1 = rng.integers(x0 + 1, width + 1), rng.integers(y0 + 1, height + 1)
        part = mask[y0:y1, x0:x1]
        assert rle.crop(encoded, x0, y0, x1, y1) == rle.encode(part)
        rows, columns = np.nonzero(mask)
        spanned = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None
        assert rle.bounds(encoded) == spanned
    with pytest.raises(rle.RLEError, match="does not lie in"):
        rle.crop(encoded, 0, 0, width + 1, height)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 17), (64, 200), (480, 640)])
def test_a_mask_at_another_size_has_the_nearest_pixels(height: int, width: int):
    for mask in _masks():
        rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
        columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
        assert rle.resize(rle.encode(mask), height, width) == rle.encode(mask[np.ix_(rows, columns)])
