"""Groups are told apart and ordered as people count, and calibration is what its definition says."""

import numpy as np
import pytest

from padt.metrics.analysis.shares import Share, calibration_error, in_powers, score_bins, shares, size_of, summed


def test_shares_count_and_their_groups_are_in_order():
    things = [("9-16", True), ("10", False), ("2", True), ("2", False), ("3-4", True), ("2", True)]
    made = shares(things)
    assert [(one.name, one.right, one.total) for one in made] == [
        ("2", 2, 3),
        ("3-4", 1, 1),
        ("9-16", 1, 1),
        ("10", 0, 1),
    ]
    assert [one.name for one in shares([("large", True), ("small", True)], ("small", "medium", "large"))] == [
        "small",
        "large",
    ]


def test_the_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263, and none of 20.
    assert Share("", 81, 263).interval == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert Share("", 0, 20).interval == pytest.approx((0.0, 0.1611), abs=1e-4)
    low, high = Share("", 1, 1).interval
    assert 0 < low < 0.3 and high == 1


def test_counts_fall_into_powers_of_two_and_areas_into_cocos_sizes():
    assert [in_powers(value) for value in (0, 1, 2, 3, 4, 5, 8, 9)] == [
        "0",
        "1",
        "2",
        "3-4",
        "3-4",
        "5-8",
        "5-8",
        "9-16",
    ]
    assert summed({"3": 2, "4": 5, "0": 1}) == {"3-4": 7, "0": 1}
    assert [size_of(area) for area in (0, 1023.9, 1024, 9216, 9216.1)] == [
        *("small", "small", "medium", "medium", "large")
    ]


def test_calibration_error_is_the_mean_gap_of_equally_full_bins():
    scores, right = np.array([0.9, 0.1, 0.9, 0.1]), np.array([1.0, 0.0, 0.0, 0.0])
    bins = score_bins(scores, right, bins=2)
    assert [(one.low, one.high, one.score, one.right, one.number) for one in bins] == [
        (0.1, 0.1, 0.1, 0.0, 2),
        (0.9, 0.9, 0.9, 0.5, 2),
    ]
    assert calibration_error(scores, right, bins=2) == pytest.approx((0.1 * 2 + 0.4 * 2) / 4)
    assert calibration_error(np.zeros(0), np.zeros(0)) == 0 and len(score_bins(scores, right, bins=10)) == 4
