"""VRTs stand for an object only if they lie on it, in the number that training asks for."""

import numpy as np
import pytest

from padt.data.vrt import choose_vrts
from padt.errors import UserError

# A plus sign on a grid of five columns.
PLUS = np.array([2, 7, 10, 11, 12, 13, 14, 17, 22])


def draws(rule, patches=PLUS, count=5, seeds=200):
    return [choose_vrts(patches, 5, rule, count, np.random.default_rng(seed)) for seed in range(seeds)]


@pytest.mark.parametrize("rule", ["random", "distinct", "extreme", "all"])
def test_only_foreground_is_chosen(rule):
    assert {vrt for chosen in draws(rule) for vrt in chosen} <= set(PLUS.tolist())
    assert all(type(vrt) is int for vrt in draws(rule)[0])


def test_random_repeats_only_where_there_are_too_few():
    assert all(len(set(chosen)) == 5 for chosen in draws("random"))
    few = draws("random", np.array([3, 4]))
    assert all(len(chosen) == 5 for chosen in few) and {len(set(chosen)) for chosen in few} == {1, 2}


def test_every_patch_has_the_same_chance():
    counts = np.bincount([vrt for chosen in draws("random", seeds=2000) for vrt in chosen], minlength=25)[PLUS]
    assert np.abs(counts / 2000 - 5 / 9).max() < 0.06


def test_distinct_never_repeats():
    assert all(sorted(chosen) == [3, 4] for chosen in draws("distinct", np.array([3, 4])))
    assert all(len(set(chosen)) == 5 for chosen in draws("distinct"))


def test_all_are_all_in_order():
    assert draws("all", seeds=1) == [tuple(PLUS.tolist())]


def test_extremes_are_an_inner_one_then_left_top_right_bottom():
    for inner, left, top, right, bottom in draws("extreme"):
        assert inner in (7, 11, 12, 13, 17) and (left, top, right, bottom) == (10, 2, 14, 22)
    assert all(set(chosen) <= {3, 4} and len(chosen) == 5 for chosen in draws("extreme", np.array([3, 4])))


def test_numpy_s_old_generator_draws_as_released():
    state = np.random.RandomState(3)
    expected = np.random.RandomState(3).choice(PLUS, 5, replace=False)
    assert choose_vrts(PLUS, 5, "random", 5, state) == tuple(expected.tolist())


def test_nothing_to_choose_from_and_unknown_rules_are_refused():
    with pytest.raises(UserError, match="foreground"):
        choose_vrts(np.array([], int), 5, "random", 5, np.random.default_rng(0))
    with pytest.raises(UserError, match="VRT rule 'best' is unknown"):
        choose_vrts(PLUS, 5, "best", 5, np.random.default_rng(0))
