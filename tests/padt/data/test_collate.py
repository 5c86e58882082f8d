"""Collation: what the model trains on is what the samples said, padded and counted over the batch."""

import numpy as np
import pytest
import torch
from PIL import Image

from padt.data.collate import IGNORED, collate, mask_target
from padt.data.conversation import Group, ObjectTarget
from padt.data.rle import encode
from padt.data.tasks import Sample
from padt.errors import UserError
from tests.padt.tiny import ROWS


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def square(height, width, top, left, side):
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return encode(mask)


def sample(key, objects, size=(84, 56), words="find"):
    pieces = ["seen: "]
    for vrts, patches, rle in objects:
        pieces += [Group(ObjectTarget("cat", (0.1, 0.2, 0.5, 0.6), patches, rle), vrts), ", "]
    return Sample.single(key, "detect", picture(*size), words, pieces)


@pytest.fixture
def batch_of(processor):
    def make(*samples):
        return collate([processor.encode(each) for each in samples], processor.pad_token_id)

    return make


def test_objects_point_at_their_own_vrts_patches_and_images(batch_of):
    batch = batch_of(
        sample("a", [((0, 5), (0, 1, 5), None)]),
        sample("b", [((2, 2, 1), (1, 2), None), ((3,), (3,), None)], size=(56, 56), words="find more"),
    )
    objects = batch.objects
    assert objects.counts == [2, 3, 1] and objects.images == [0, 1, 1]
    ids = batch.input_ids[objects.vrt_samples, objects.vrt_positions]
    assert (ids - ROWS).tolist() == [0, 5, 2, 2, 1, 3]
    # Patches count over the batch: the first image has six.
    assert objects.vrt_patches.tolist() == [0, 5, 8, 8, 7, 9]
    assert batch.patch_counts == [6, 4]
    assert [row.nonzero().flatten().tolist() for row in batch.foreground] == [[0, 1, 5], [1, 2], [3]]
    torch.testing.assert_close(objects.boxes[0], torch.tensor([0.1, 0.2, 0.5, 0.6]))
    assert batch.pixels.shape[0] == 24 + 16 and batch.grid_thw.tolist() == [[1, 4, 6], [1, 4, 4]]


def test_supervised_rows_predict_the_token_after_them(batch_of):
    batch = batch_of(sample("a", [((0, 5), (0, 1, 5), None)]), sample("b", [], words="a longer question"))
    rows = batch.supervised
    for index in range(2):
        kept = rows.targets[index] != IGNORED
        positions = rows.positions[index][kept]
        assert torch.equal(batch.input_ids[index, positions + 1], rows.targets[index][kept])
        assert batch.attention_mask[index, positions + 1].all()
    of_object = rows.targets[0][rows.groups[0] == 0]
    assert (of_object - ROWS).tolist() == [0, 5]
    assert (rows.groups[1] == -1).all()


def test_a_mask_target_lies_on_the_grid_of_four_by_four_cells():
    target = mask_target(square(112, 168, 28, 56, 56), 8, 12)
    assert target.shape == (32, 48) and target.dtype == bool
    expected = np.zeros((32, 48), bool)
    expected[8:24, 16:32] = True
    np.testing.assert_array_equal(target, expected)


def test_masks_and_their_absence_reach_the_batch(batch_of):
    batch = batch_of(sample("a", [((0,), (0,), square(56, 84, 0, 0, 28)), ((1,), (1,), None)]))
    first, second = batch.objects.masks
    assert second is None and first.shape == (16, 24)
    assert first[:8, :8].all() and first.sum() == 64


def test_samples_without_objects_and_padding(batch_of, processor):
    batch = batch_of(sample("a", []), sample("b", [], words="a much longer question"))
    assert batch.objects.counts == [] and batch.objects.boxes.shape == (0, 4)
    assert batch.foreground.shape == (0, 6)
    lengths = batch.attention_mask.sum(1)
    assert (batch.input_ids[0, lengths[0] :] == processor.pad_token_id).all() and lengths[0] < lengths[1]
    assert batch.keys == ["a", "b"]


def test_a_batch_moves_as_a_whole_and_an_empty_one_is_refused(batch_of):
    batch = batch_of(sample("a", [((0,), (0,), square(56, 84, 0, 0, 28)), ((1,), (1,), None)]))
    moved = batch.to("meta")
    assert moved.objects.masks[0].device.type == moved.supervised.targets.device.type == "meta"
    assert moved.objects.masks[1] is None and moved.keys == ["a"]
    with pytest.raises(UserError, match="at least one sample"):
        collate([], 0)
