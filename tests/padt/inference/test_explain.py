"""Explanations say what the model thought: their numbers add up, and their sheets show them at any size of picture."""

import json

import numpy as np
import pytest
import torch

from padt.drawing.heatmap import draw_nearest_sheet, draw_object_sheet, heat_colours
from padt.inference.explain import explain
from padt.inference.predict import GenerationSettings, detect_request, predict, refer_request
from tests.padt.inference.test_generation import prompts
from tests.padt.inference.test_predict import assert_same, picture

SETTINGS = GenerationSettings(max_new_tokens=30)


def test_the_steps_are_the_models_own_probabilities(toy_model, shapes):
    request = refer_request("the red circle")
    found = explain(toy_model, shapes, request, SETTINGS)
    (expected,) = predict(toy_model, shapes, request, SETTINGS)
    assert_same(found.prediction, expected)
    (thing,), (steps,) = found.prediction.objects, found.steps
    assert [step.patch for step in steps] == list(thing.patches)
    assert [step.token for step in steps] == list(range(*thing.span))
    # From one forward pass over prompt and answer.
    inputs = prompts(toy_model, (shapes, request.prompt))
    length = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([expected.token_ids])], 1)
    grids = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        chances = toy_model(input_ids=ids, attention_mask=torch.ones_like(ids), **grids).logits[0].softmax(-1)
    for step in steps:
        row = chances[length - 1 + step.token, toy_model.config.vrt_offset :].numpy()
        np.testing.assert_allclose(step.heat[0].reshape(-1), row, atol=1e-5)
        assert step.vrt_mass == pytest.approx(row.sum(), abs=1e-5)
        share = row / row.sum()
        assert step.entropy == pytest.approx(-(share * np.log2(np.maximum(share, 1e-30))).sum(), abs=1e-3)
        assert step.probability == pytest.approx(row[step.patch], abs=1e-5)
    assert thing.confidence == pytest.approx(np.exp(np.mean(np.log([step.probability for step in steps]))), rel=1e-3)


def test_the_heat_lies_on_what_is_pointed_at(toy_model, shapes):
    for words, rows, columns in (
        ("the red circle", slice(0, 3), slice(0, 3)),
        ("the blue square", slice(2, 5), slice(3, 6)),
    ):
        (steps,) = explain(toy_model, shapes, refer_request(words), SETTINGS).steps
        assert steps[0].heat[0][rows, columns].sum() > 0.8, words


def test_numbers_for_json(toy_model, shapes):
    found = explain(toy_model, shapes, refer_request("the red circle"), SETTINGS)
    values = json.loads(json.dumps(found.to_dict(top=3)))
    step = values["objects"][0]["steps"][0]
    chances = [entry["probability"] for entry in step["top"]]
    assert len(chances) == 3 and chances == sorted(chances, reverse=True)
    assert step["top"][0]["patch"] == step["patch"] == step["top"][0]["row"] * 6 + step["top"][0]["column"]
    assert chances[0] == pytest.approx(step["probability"]) and 0 <= step["vrt_mass"] <= 1.001


def test_each_image_of_a_request_has_its_own_map(random_model):
    found = explain(random_model, [picture(), picture(60, 120, 3)], detect_request(["cat"]), SETTINGS)
    assert {thing.image for thing in found.prediction.objects} == {0, 1}, "the test must see objects in both"
    for thing, steps in zip(found.prediction.objects, found.steps, strict=True):
        assert [(step.image, step.patch) for step in steps] == [(thing.image, patch) for patch in thing.patches]
        for step in steps:
            assert [heat.shape for heat in step.heat] == [frame.grid for frame in found.prediction.images]
            assert step.heat[step.image].reshape(-1)[step.patch] == pytest.approx(step.probability)
            assert sum(heat.sum() for heat in step.heat) == pytest.approx(step.vrt_mass, abs=1e-5)
    draw_object_sheet(found, len(found.steps) - 1)


def test_an_answer_without_vrts_shows_where_they_were_likeliest(toy_model, shapes):
    found = explain(toy_model, shapes, "Is there a circle?", SETTINGS)
    assert found.steps == () and found.nearest is not None and found.nearest.vrt_mass < 0.5
    assert draw_nearest_sheet(found).width > 300
    words = explain(toy_model, None, "Hello, what can you do?", SETTINGS)
    assert words.nearest is None and draw_nearest_sheet(words).width > 300


@pytest.mark.parametrize("size", [(112, 84), (600, 450), (28, 1400)])
def test_sheets_are_of_one_size_whatever_the_picture(toy_model, shapes, size):
    found = explain(toy_model, shapes.resize(size), refer_request("the red circle"), SETTINGS)
    sheet = draw_object_sheet(found, 0)
    assert sheet.mode == "RGB" and 1000 < sheet.width < 2000 and 300 < sheet.height < 2600
    # The colour bar's top end is there: the maps have their scale.
    top = np.asarray(sheet).reshape(-1, 3)
    assert (np.abs(top - heat_colours(np.ones(1)).round()).max(axis=1) < 4).sum() > 10


def test_the_ramp_grows_lighter_without_a_turn():
    light = heat_colours(np.linspace(0, 1, 50)) @ [0.3, 0.6, 0.1]
    assert (np.diff(light) > 0).all()


def test_long_groups_are_counted_not_drawn(random_model):
    found = explain(random_model, picture(), detect_request(["person"]), GenerationSettings(max_new_tokens=60))
    number = max(range(len(found.steps)), key=lambda place: len(found.steps[place]))
    assert len(found.steps[number]) > 2
    assert draw_object_sheet(found, number, most_steps=2).height < draw_object_sheet(found, number, most_steps=3).height
