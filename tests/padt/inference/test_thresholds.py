"""A promised rate of false alarms holds on data that was not looked at."""

import numpy as np
import pytest

from padt.errors import UserError
from padt.inference.thresholds import RATES, ScoreThresholds, conformal_threshold, threshold_of, units_needed


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_holds_on_average_over_held_out_sets(rate: float) -> None:
    # Scores of a skewed kind, with many units that have no mistake at all.
    rng = np.random.default_rng(7)
    broken = []
    for _ in range(400):
        scores = rng.beta(0.6, 3, 301) * (rng.random(301) < 0.7)
        threshold = conformal_threshold(scores[:300], rate)
        assert threshold is not None
        fresh = rng.beta(0.6, 3, 2000) * (rng.random(2000) < 0.7)
        broken.append((fresh > threshold).mean())
    assert np.mean(broken) <= rate * 1.05
    # It promises no more than it must: the bound is met to within what 300 units can tell apart.
    assert np.mean(broken) >= rate - 2 / 301


@pytest.mark.parametrize(("rate", "units"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.2, 4)])
def test_too_few_units_promise_nothing(rate: float, units: int) -> None:
    assert units_needed(rate) == units
    assert conformal_threshold([0.5] * (units - 1), rate) is None
    assert conformal_threshold([0.5] * units, rate) == 0.5


def test_known_values() -> None:
    scores = [number / 100 for number in range(1, 100)]
    assert conformal_threshold(scores, 0.1) == 0.9
    assert conformal_threshold(scores[::-1], 0.01) == 0.99


def test_thresholds_survive_the_configuration() -> None:
    fitted = ScoreThresholds.fit(absent=[0.3] * 19, wrong=[0.6] * 200)
    assert set(fitted.absent) == {"0.05", "0.1", "0.2"} and set(fitted.wrong) == {f"{rate:g}" for rate in RATES}
    values = fitted.to_dict()
    assert ScoreThresholds.from_dict(values) == fitted
    assert threshold_of(values, "absent", 0.05) == 0.3
    # Between two known rates the stricter one holds.
    assert threshold_of(values, "wrong", 0.07) == 0.6


def test_what_cannot_be_promised_is_an_error_with_the_way_out() -> None:
    values = ScoreThresholds.fit(absent=[0.3] * 19, wrong=[]).to_dict()
    with pytest.raises(UserError, match="at least 99"):
        threshold_of(values, "absent", 0.01)
    with pytest.raises(UserError, match="0 held-out units.*no rate can be promised"):
        threshold_of(values, "wrong", 0.2)
    with pytest.raises(UserError, match="--thresholds"):
        threshold_of(None, "wrong", 0.2)
    with pytest.raises(UserError, match="between 0 and 1"):
        threshold_of(values, "absent", 1.0)
    with pytest.raises(UserError, match="too few to promise"):
        ScoreThresholds.fit([0.1], [0.2])
    with pytest.raises(UserError, match="cannot be read"):
        threshold_of({"absent": 3}, "absent", 0.1)
