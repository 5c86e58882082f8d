"""Calibrated scores say how right an object will be, put repeats last, and change nothing where there is none."""

import copy

import numpy as np
import pytest

from padt.errors import UserError
from padt.inference.calibration import (
    FEATURES,
    ScoreCalibration,
    calibrated,
    features_of,
    fit_calibration,
    quality_of,
)
from padt.inference.events import Finished, ObjectFound
from padt.inference.generation import GenerationSettings
from padt.inference.predict import caption_request, predict
from padt.inference.results import PredictedObject
from padt.inference.stream import stream
from padt.metrics.analysis.shares import calibration_error
from padt.pretrained.config import PaDTConfig


def thing(label="dog", score=0.9, box=(0, 0, 10, 10), confidence=0.5, complete=True, image=0) -> PredictedObject:
    return PredictedObject(label, score, box, None, (0,), (0, 1), confidence, complete, image)


def test_features_are_what_an_object_shows_at_its_place_in_the_answer():
    objects = [
        thing(),
        thing("Dog ", box=(0, 0, 10, 5), complete=False),
        thing("cat"),
        thing(image=1),
        thing(score=1.0, confidence=0.0, box=(20, 20, 30, 30)),
    ]
    features = features_of(objects)
    assert features.shape == (5, len(FEATURES)) and np.isfinite(features).all()
    assert features[0].tolist() == pytest.approx([np.log(9), np.log(0.5), 0, 0])
    # The same words with other capitals repeat an object; another label or another image does not.
    assert features[:, 3].tolist() == [0, 0.5, 0, 0, 0] and features[:, 2].tolist() == [0, 1, 0, 0, 0]
    assert np.array_equal(features_of(objects[1:], earlier=objects[:1]), features[1:])


def test_quality_is_the_share_of_thresholds_and_a_true_object_counts_once():
    objects = [thing(box=(0, 0, 10, 7.6)), thing(box=(0, 0, 10, 10)), thing("cat"), thing(box=(5, 0, 15, 10))]
    assert quality_of(objects, [("dog", (0, 0, 10, 10)), ("Dog", (4, 0, 14, 10))]).tolist() == [0, 1, 0, 0.7]
    assert quality_of(objects[:1], [("dog", (0, 0, 10, 10))]).tolist() == [0.6]
    assert quality_of([], [("dog", (0, 0, 10, 10))]).shape == (0,)
    assert quality_of(objects, []).tolist() == [0] * 4


def test_a_fit_finds_the_rule_behind_the_data_and_scores_what_it_has_not_seen():
    draw = np.random.default_rng(0)
    features = np.column_stack([draw.normal(2, 1, 6000), draw.normal(-1, 0.5, 6000), np.zeros(6000), draw.random(6000)])
    rule = ScoreCalibration(-1.0, 0.8, 0.5, 0.0, -3.0)
    quality = (draw.random(6000) < rule.scores(features)).astype(float)
    fitted = fit_calibration(features[:4000], quality[:4000])
    assert list(fitted.to_dict().values()) == pytest.approx(list(rule.to_dict().values()), abs=0.25)
    decoder = 1 / (1 + np.exp(-features[4000:, 0]))
    error = calibration_error(fitted.scores(features[4000:]), quality[4000:])
    assert error < 0.05 < 0.3 < calibration_error(decoder, quality[4000:])


def test_data_without_a_wrong_object_gives_a_finite_fit_and_too_little_data_is_refused():
    fitted = fit_calibration(np.ones((30, 4)), np.ones(30))
    assert np.isfinite(list(fitted.to_dict().values())).all() and fitted.scores(np.ones((1, 4)))[0] > 0.9
    with pytest.raises(UserError, match="3 predicted objects are too few"):
        fit_calibration(np.ones((3, 4)), np.ones(3))


def test_a_repeat_ranks_below_the_object_that_it_repeats():
    values = ScoreCalibration(0.0, 1.0, repeated=-4.0).to_dict()
    objects = [thing(score=0.8), thing(score=0.9), thing("cat", score=0.7)]
    scores = [found.score for found in calibrated(values, objects)]
    assert scores == pytest.approx([0.8, 0.9 / (0.9 + 0.1 * np.exp(4)), 0.7])
    assert calibrated(None, objects) == objects


@pytest.mark.parametrize("values", [{"intercept": 1.0}, {"intercept": 0, "score_logit": 1, "more": 2}])
def test_a_damaged_calibration_is_named(values):
    with pytest.raises(UserError, match="score_calibration in config.json"):
        calibrated(values, [thing()])


def test_predictions_and_streams_use_the_calibration_of_the_model(trained_model, fixture_images, tmp_path):
    images = [sorted(fixture_images.iterdir())[0]]
    model = copy.copy(trained_model)
    model.config = copy.deepcopy(trained_model.config)
    plain = predict(model, images, [caption_request()])[0]
    assert plain.objects
    values = ScoreCalibration(-0.5, 0.7, 0.3, -1.0, -2.0).to_dict()
    model.config.score_calibration = values
    expected = calibrated(values, plain.objects)
    assert [found.score for found in expected] != [found.score for found in plain.objects]
    assert predict(model, images, [caption_request()])[0].objects == tuple(expected)
    settings = GenerationSettings(calibrated=False)
    assert predict(model, images, [caption_request()], settings)[0] == plain
    events = list(stream(model, images[0], caption_request()))
    scores = [event.object.score for event in events if isinstance(event, ObjectFound)]
    assert scores == pytest.approx([found.score for found in expected], abs=1e-5)
    assert isinstance(events[-1], Finished)
    model.config.save_pretrained(tmp_path)
    assert PaDTConfig.from_pretrained(tmp_path).score_calibration == values
