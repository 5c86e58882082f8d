"""Order of samples: a pure function, each sample once an epoch, equal parts for all ranks."""

import numpy as np
import pytest

from pipelines.loader.shuffle import batch_count, batch_part, epoch_batches, epoch_order, stream, uniform


def test_order_depends_on_seed_and_epoch_alone():
    # If order hung on hidden state, a restarted run would train on other samples than the one it replaces.
    assert np.array_equal(epoch_order(100, 1, 2), epoch_order(100, 1, 2))
    assert not np.array_equal(epoch_order(100, 1, 2), epoch_order(100, 1, 3))
    assert not np.array_equal(epoch_order(100, 1, 2), epoch_order(100, 2, 2))


def test_stream_is_the_same_on_every_machine():
    # A checkpoint moved to another machine must go on with the same draws: these numbers must never change.
    assert stream("sample", 42, 0, "coco|coco/train2017/9|refer|0|0").integers(0, 1000, 4).tolist() == [
        434,
        7,
        335,
        138,
    ]


@pytest.mark.parametrize("window", [1, 2, 7])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_every_sample_comes_once(parts, window):
    # A sample left out or doubled would bias training silently.
    sizes = np.random.default_rng(0).integers(10, 30, 60)
    batches = epoch_batches(sizes, 6, seed=3, epoch=1, window=window)
    assert batches.shape == (10, 6)
    seen = np.concatenate([batch_part(batch, rank, parts) for batch in batches for rank in range(parts)])
    assert sorted(seen) == list(range(60))


def test_last_batch_is_filled_or_dropped():
    # Ranks must agree on the number of batches, or one waits for ever in a collective.
    sizes = np.ones(25)
    filled = epoch_batches(sizes, 10, 0, 0, last="fill")
    assert filled.shape == (3, 10) and set(filled.ravel()) == set(range(25))
    dropped = epoch_batches(sizes, 10, 0, 0, last="drop")
    assert dropped.shape == (2, 10) and len(set(dropped.ravel())) == 20
    assert batch_count(25, 10, "fill") == 3 and batch_count(25, 10, "drop") == 2


def test_fewer_samples_than_a_batch_are_repeated():
    assert epoch_batches(np.ones(3), 8, 0, 0).shape == (1, 8)


def test_batches_have_images_of_similar_size():
    # Without sorting, each batch would be padded to the largest image of the whole set.
    sizes = np.random.default_rng(0).integers(1, 1000, 640)
    spread = np.ptp(sizes[epoch_batches(sizes, 10, 0, 0, window=64)], axis=1).mean()
    assert spread < 0.1 * np.ptp(sizes[epoch_batches(sizes, 10, 0, 0, window=1)], axis=1).mean()
    # Large and small batches still alternate.
    means = sizes[epoch_batches(sizes, 10, 0, 0, window=64)].mean(axis=1)
    assert not np.all(np.diff(means) >= 0)


def test_draws_for_many_samples_hang_on_each_alone():
    # A sample's view must not change because another one was added to the set.
    rows, items = np.arange(20_000) // 4, np.arange(20_000) % 4
    draws = uniform(1, 2, rows, items)
    assert np.array_equal(uniform(1, 2, rows[50:60], items[50:60]), draws[50:60])
    assert not np.array_equal(uniform(1, 3, rows, items), draws)
    assert len(np.unique(draws)) == len(draws)
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 1000).max() < 150
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03
