"""Batches under a budget: nothing lost, nothing doubled, no batch above it, the same number for all ranks."""

import numpy as np
import pytest

from padt.errors import UserError
from pipelines.loader.batching import Batching, budget_batches


def lengths(count, seed=0):
    rng = np.random.default_rng(seed)
    patches = rng.integers(4, 400, count)
    return patches + rng.integers(10, 300, count), patches


def cut(batches):
    return [[batches.part(place, rank) for rank in range(batches.parts)] for place in range(len(batches))]


@pytest.mark.parametrize(("parts", "max_samples", "window"), [(1, 64, 4), (3, 64, 32), (8, 5, 1), (2, 1, 7)])
def test_an_epoch_holds_each_sample_once_within_the_budget(parts, max_samples, window):
    # One sample too many in a batch is an out-of-memory error after hours; one too few is never trained on.
    tokens, patches = lengths(1000)
    budget = Batching(max_tokens=4000, max_patches=2000)
    options = {"max_samples": max_samples, "parts": parts, "seed": 3, "window": window}
    batches = budget_batches(tokens, patches, budget, epoch=1, **options)
    flat = [part for ranks in cut(batches) for part in ranks]
    assert sorted(np.concatenate(flat)) == list(range(1000))
    for part in flat:
        assert 1 <= len(part) <= max_samples
        assert len(part) * tokens[part].max() <= 4000 and patches[part].sum() <= 2000
    again = budget_batches(tokens, patches, budget, epoch=1, **options)
    assert all(np.array_equal(a, b) for a, b in zip(flat, [p for r in cut(again) for p in r], strict=True))
    other = budget_batches(tokens, patches, budget, epoch=2, **options)
    assert not np.array_equal(batches.order, other.order)


def test_batches_hold_similar_lengths():
    # The budget counts padding: without sorting, a third of it would be spent on nothing.
    tokens, patches = lengths(5000)

    def padding(window):
        batches = budget_batches(
            tokens, patches, Batching(8000), max_samples=64, parts=2, seed=0, epoch=0, window=window
        )
        flat = [part for ranks in cut(batches) for part in ranks]
        return 1 - tokens.sum() / sum(len(part) * tokens[part].max() for part in flat)

    assert padding(16) < 0.03 < 0.3 * padding(1)


def test_ranks_get_neighbours_in_length():
    tokens, patches = lengths(5000)
    batches = budget_batches(tokens, patches, Batching(8000), max_samples=64, parts=4, seed=0, epoch=0)
    longest = np.array([[tokens[part].max() for part in ranks] for ranks in cut(batches)])
    assert np.median(np.ptp(longest, axis=1)) < 0.05 * np.ptp(tokens)
    # Long and short batches still alternate through the epoch.
    assert not np.all(np.diff(longest[:, 0]) >= 0)


def test_samples_that_do_not_go_round_are_repeated_or_left_out():
    # All batches hold one sample here: with seven samples and four ranks nothing can be halved.
    tokens = patches = np.full(7, 10)
    filled = budget_batches(tokens, patches, Batching(10), max_samples=9, parts=4, seed=0, epoch=0)
    assert len(filled) == 2 and set(np.concatenate(np.concatenate(cut(filled)))) == set(range(7))
    dropped = budget_batches(tokens, patches, Batching(10), max_samples=9, parts=4, seed=0, epoch=0, last="drop")
    assert len(dropped) == 1 and len(set(np.concatenate(np.concatenate(cut(dropped))))) == 4


def test_wrong_budgets_name_their_key():
    with pytest.raises(UserError, match="no budget"):
        Batching()
    with pytest.raises(UserError, match=r"max_patches is 0"):
        Batching(max_patches=0)
