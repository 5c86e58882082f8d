"""Many requests in order: through the engine or in batches, the answers are ``predict``'s."""

import pytest
import torch

from padt.errors import ImageError, UserError
from padt.inference.answers import answers
from padt.inference.engine import Engine
from padt.inference.predict import GenerationSettings, caption_request, detect_request, predict
from tests.padt.inference.test_engine import LONG, SHORT, mixed
from tests.padt.inference.test_predict import assert_same, picture
from tests.padt.tiny import tiny_model


def lists(asked):
    return [images if isinstance(images, list) else [images] for images, _ in asked], [one for _, one in asked]


@pytest.mark.parametrize("settings", [SHORT, GenerationSettings(max_new_tokens=8, num_beams=2)])
def test_answers_are_those_of_predict_in_order(random_model, settings, monkeypatch):
    images, requests = lists(mixed(7))
    ran = []
    monkeypatch.setattr(Engine, "step", lambda engine, step=Engine.step: ran.append(1) or step(engine))
    found = list(answers(random_model, images, requests, settings, rows=3))
    assert bool(ran) == (settings.num_beams == 1)
    for own, request, prediction in zip(images, requests, found, strict=True):
        assert_same(prediction, predict(random_model, [own], [request], settings)[0])


def test_an_answer_comes_while_longer_ones_are_written(random_model):
    """The first is handed over when it ends, not with the last of its batch."""
    steps = []
    handle = random_model.lm_head.register_forward_hook(lambda *_: steps.append(1))
    settings = GenerationSettings(max_new_tokens=100)
    requests = [detect_request(["person"]), caption_request(), caption_request()]
    images = [[picture(60, 60)], *([picture(seed=seed)] for seed in LONG[:2])]
    try:
        found = answers(random_model, images, requests, settings, rows=3)
        first = next(found)
        after_first = len(steps)
        rest = list(found)
    finally:
        handle.remove()
    assert len(first.token_ids) + 2 >= after_first
    assert max(len(prediction.token_ids) for prediction in rest) == 100 and len(steps) >= 100


def test_samples_follow_from_the_seed_of_torch(random_model):
    wild = GenerationSettings(max_new_tokens=16, temperature=1.5)
    images, requests = lists(mixed(3))
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append([found.token_ids for found in answers(random_model, images, requests, wild)])
    assert runs[0] == runs[1] != runs[2]


def test_large_pictures_and_small_numbers_of_rows_find_room(random_model):
    found = list(
        answers(random_model, [[picture(600, 500)], [picture(60, 60)]], [caption_request()] * 2, SHORT, rows=1)
    )
    assert [prediction.width for prediction in found] == [600, 60]
    assert list(answers(random_model, [], [])) == []


def test_a_model_without_masks_by_row_is_answered_in_batches(monkeypatch):
    model = tiny_model()
    images, requests = lists(mixed(3))
    expected = list(answers(model, images, requests, SHORT))
    monkeypatch.setattr("padt.inference.answers.takes_masks_by_row", lambda model: False)
    monkeypatch.setattr("padt.inference.answers.Engine", None)
    for one, other in zip(answers(model, images, requests, SHORT, rows=2), expected, strict=True):
        assert_same(one, other)


def test_bad_input_is_named(random_model):
    with pytest.raises(UserError, match="needs an image"):
        list(answers(random_model, [[picture()], []], [caption_request()] * 2, SHORT))
    with pytest.raises(ImageError):
        list(answers(random_model, [[picture()], [b"none"]], [caption_request()] * 2, SHORT))
    with pytest.raises(ValueError, match="shorter|longer"):
        list(answers(random_model, [[picture()]], [caption_request()] * 2, SHORT))
