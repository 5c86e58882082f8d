"""Half precision answers as float32 does, and what is not finite is counted, never handed out."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from padt.data.rle import decode
from padt.inference.engine import Engine, EngineLimits
from padt.inference.events import Ended, Finished, ObjectFound
from padt.inference.explain import explain
from padt.inference.predict import GenerationSettings, caption_request, detect_request, predict, refer_request
from padt.inference.results import Prediction
from padt.inference.stream import stream
from tests.padt.inference.test_predict import picture
from tests.padt.tiny import tiny_model

SMALL = EngineLimits(max_rows=4, max_length=512)
SETTINGS = GenerationSettings(max_new_tokens=60)


def every_way(model, image, request, settings=SETTINGS):
    """The answer of everything that answers, and the objects that streams have handed out."""
    *events, finished = stream(model, image, request, settings)
    assert isinstance(finished, Finished)
    explanation = explain(model, image, request, settings)
    assert len(explanation.steps) == len(explanation.prediction.objects)
    return {
        "predict": (predict(model, image, request, settings)[0], None),
        "stream": (finished.prediction, [event for event in events if isinstance(event, ObjectFound)]),
        "explain": (explanation.prediction, None),
        "engine": run_engine(model, image, request, settings),
        "batch": (predict(model, [image, picture()], [request, caption_request()], settings)[0], None),
    }


def run_engine(model, image, request, settings):
    engine = Engine(model, SMALL)
    ticket = engine.submit(image, request, settings)
    engine.run_until_idle()
    *events, end = ticket
    assert isinstance(end, Ended) and end.prediction is not None
    return end.prediction, [event for event in events if isinstance(event, ObjectFound)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("words", ["the red circle", "the blue square"])
def test_half_precision_finds_what_float32_finds(toy_model, shapes, dtype, words):
    (expected,) = predict(toy_model, shapes, refer_request(words), SETTINGS)
    assert expected.objects, "the test must see an object"
    # Of some sixteen bits: eleven or eight are the number's digits.
    pixels, share = (0.2, 0.02) if dtype is torch.float16 else (1.5, 0.1)
    for name, (found, _) in every_way(copy.deepcopy(toy_model).to(dtype), shapes, refer_request(words)).items():
        assert found.text == expected.text and not found.not_finite and not found.warnings, name
        for one, other in zip(found.objects, expected.objects, strict=True):
            assert one.box == pytest.approx(other.box, abs=pixels), name
            assert one.score == pytest.approx(other.score, abs=share), name
            assert one.confidence == pytest.approx(other.confidence, abs=share), name
            assert np.mean(decode(one.mask) != decode(other.mask)) < 5e-3, name


def broken(part, value):
    """A model with one weight that is not finite."""
    model = tiny_model()
    with torch.no_grad():
        weights = dict(model.vl_decoder.named_parameters())[part]
        weights.view(-1)[0] = value
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "part",
    [
        "bbox_prediction.4.bias",
        "score_prediction.weight",
        "mask_output_mlp.4.weight",
        "input_projection.1.weight",
        "high_res_transformer2.norm6.weight",
    ],
)
def test_what_is_not_finite_is_counted_and_left_out(random_model, part, value):
    image, request = picture(), detect_request(["person"])
    settings = GenerationSettings(max_new_tokens=24)
    (whole,) = predict(random_model, image, request, settings)
    assert len(whole.objects) > 1
    model = broken(part, value)
    for name, (found, events) in every_way(model, image, request, settings).items():
        assert found.token_ids == whole.token_ids, name
        if part.startswith("bbox") and value == math.inf:
            # An edge at infinity is the picture's own edge.
            assert len(found.objects) == len(whole.objects), name
        else:
            assert found.not_finite == len(whole.objects) and found.objects == (), name
            assert f"{len(whole.objects)} of {len(whole.objects)} objects are not finite" in found.warnings[-1], name
            assert "float32" in found.warnings[-1] and not events, name
        plain = json.dumps(found.to_dict(), allow_nan=False)
        assert Prediction.from_dict(json.loads(plain)).not_finite == found.not_finite


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_end_an_answer_in_the_engine_and_are_told_elsewhere(random_model, temperature):
    model = tiny_model()
    engine = Engine(model, SMALL)
    settings = GenerationSettings(max_new_tokens=24, temperature=temperature)
    fine = engine.submit(picture(), caption_request(), GenerationSettings(max_new_tokens=3))
    engine.run_until_idle()
    with torch.no_grad():
        model.vis_proj[0].weight.view(-1)[0] = math.nan
    broken = engine.submit(picture(seed=2), caption_request(), settings)
    text = engine.submit(None, "hello", GenerationSettings(max_new_tokens=3))
    engine.run_until_idle()
    # Prototypes are a picture's own: what has none goes on.
    assert fine.end().reason == text.end().reason == "length"
    with pytest.raises(FloatingPointError, match="float32"):
        broken.result()
    if not temperature:
        for found in (
            predict(model, picture(seed=2), caption_request(), settings)[0],
            list(stream(model, picture(seed=2), caption_request(), settings))[-1].prediction,
            explain(model, picture(seed=2), caption_request(), settings).prediction,
        ):
            assert "the text means nothing" in found.warnings[-1]
            json.dumps(found.to_dict(), allow_nan=False)
        json.dumps(explain(model, picture(seed=2), caption_request(), settings).to_dict(), allow_nan=False)


def test_one_object_that_is_not_finite_costs_no_other(random_model, monkeypatch):
    """The objects beside it stay, numbered and calibrated as if it had never been written."""
    image, request = picture(), detect_request(["person"])
    calibration = {"intercept": -1.0, "score_logit": 0.7, "log_confidence": 0.2, "incomplete": -1.0, "repeated": -2.0}
    model = tiny_model(score_calibration=calibration)
    settings = GenerationSettings(max_new_tokens=24)
    (whole,) = predict(model, image, request, settings)
    assert len(whole.objects) > 2
    bad = whole.objects[1].patches
    decoder = model.vl_decoder
    original = decoder.forward

    def forward(states, counts, *args, **options):
        boxes, scores, logits = original(states, counts, *args, **options)
        first = 0
        for number, count in enumerate(counts):
            # The object is known by the states that wrote it.
            if count == len(bad) and torch.allclose(states[first : first + count], marked, atol=1e-4):
                boxes[number, 2] = math.nan
            first += count
        return boxes, scores, logits

    marked = states_of(model, image, request, settings, 1)
    monkeypatch.setattr(decoder, "forward", forward)
    expected = [found.patches for place, found in enumerate(whole.objects) if place != 1]
    for name, (found, events) in every_way(model, image, request, settings).items():
        assert [thing.patches for thing in found.objects] == expected, name
        assert found.not_finite == 1 and found.warnings[-1].startswith("1 of "), name
        if events is not None:
            assert [event.number for event in events] == list(range(len(expected))), name
            assert [event.object for event in events] == list(found.objects), name
        assert found.objects[0].score == pytest.approx(whole.objects[0].score, abs=1e-4), name


def states_of(model, image, request, settings, number):
    """States of the VRTs of one object of an answer."""
    kept = []
    handle = model.vl_decoder.register_forward_hook(
        lambda module, args, kwargs, output: kept.append((args[0], args[1])), with_kwargs=True
    )
    predict(model, image, request, settings)
    handle.remove()
    states, counts = kept[0]
    return states.split(counts)[number].clone()
