"""Streams: what is shown while an answer is written must be whole, in order, and end as `predict` ends."""

import threading

import pytest
import torch

from padt.errors import ImageError, UserError
from padt.inference.events import Finished, ObjectFound, TextPiece
from padt.inference.predict import GenerationSettings, caption_request, predict, refer_request
from padt.inference.stream import TextPieces, stream
from tests.padt.inference.test_predict import assert_same, picture

SETTINGS = GenerationSettings(max_new_tokens=40)


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, TextPiece))


@pytest.mark.parametrize("words", ["the red circle", "the blue square"])
def test_a_stream_ends_in_what_predict_answers(toy_model, shapes, words):
    events = list(toy_model.stream(shapes, refer_request(words), SETTINGS, vrts=True))
    (expected,) = toy_model.predict(shapes, refer_request(words), SETTINGS)
    assert isinstance(events[-1], Finished) and not any(isinstance(event, Finished) for event in events[:-1])
    assert_same(events[-1].prediction, expected)
    assert text_of(events) == expected.text
    found = [event for event in events if isinstance(event, ObjectFound)]
    assert [event.number for event in found] == [0]
    assert found[0].object == events[-1].prediction.objects[0]
    # The object comes at its place in the text: after its VRTs, before the words that follow.
    before = text_of(events[: events.index(found[0])])
    assert before.endswith("|>") and text_of(events[events.index(found[0]) :]).startswith(" in this image")


def test_vrts_are_shown_only_if_asked_for(toy_model, shapes):
    events = list(toy_model.stream(shapes, refer_request("the red circle"), SETTINGS))
    assert text_of(events) == 'The "the red circle" refers to  in this image.'


@pytest.mark.parametrize("settings", [SETTINGS, GenerationSettings(max_new_tokens=40, temperature=3.0, top_p=0.9)])
def test_wild_answers_stream_as_they_are_predicted(random_model, settings):
    """Torn bytes, many groups, a cut at the end; sampled answers too, from the same seed."""
    objects = 0
    for seed in range(3):
        torch.manual_seed(seed)
        *events, last = stream(random_model, picture(seed=seed), caption_request(), settings, vrts=True)
        torch.manual_seed(seed)
        (expected,) = predict(random_model, picture(seed=seed), caption_request(), settings)
        assert_same(last.prediction, expected)
        assert last.prediction.truncated == expected.truncated and last.prediction.warnings == expected.warnings
        assert text_of(events) == expected.text
        assert [event.object for event in events if isinstance(event, ObjectFound)] == [*last.prediction.objects]
        objects += len(expected.objects)
    assert objects


def test_no_piece_holds_half_a_character(processor):
    words = 'naïve "café 猫 🐱" ends'
    ids = [*processor.tokenize(words), processor.vrt_offset + 3, *processor.tokenize("é"), processor.vrt_offset]
    assert len(ids) > len(words) + 3, "the test must see characters of several tokens"
    shown, hidden = TextPieces(processor, vrts=True), TextPieces(processor)
    pieces = [shown.feed(token) for token in ids] + [shown.flush()]
    assert "".join(pieces) == words + "<|VRT_3|>é<|VRT_0|>"
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join([hidden.feed(token) for token in ids]) == words + "é"
    torn = processor.tokenize("🐱")[:2]
    cut = TextPieces(processor)
    assert [cut.feed(token) for token in torn] == ["", ""] and "\ufffd" in cut.flush()


def test_closing_a_stream_ends_the_generation(random_model):
    steps = 0

    def count(*_):
        nonlocal steps
        steps += 1

    handle = random_model.lm_head.register_forward_hook(count)
    try:
        events = stream(random_model, picture(), caption_request(), GenerationSettings(max_new_tokens=1000), vrts=True)
        assert steps == 0, "nothing is generated before somebody looks"
        next(events)
        events.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "padt-stream"]
        assert steps < 900
        left = steps
        list(stream(random_model, picture(), caption_request(), GenerationSettings(max_new_tokens=3, masks=False)))
        assert steps > left
    finally:
        handle.remove()


def test_what_fails_while_it_generates_is_raised_where_it_is_read(random_model, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    events = stream(random_model, picture(), caption_request(), SETTINGS)
    monkeypatch.setattr(random_model, "_update_model_kwargs_for_generation", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(events)


def test_a_bad_request_is_refused_before_the_first_event(random_model):
    with pytest.raises(UserError, match="beams cannot be streamed"):
        stream(random_model, picture(), caption_request(), GenerationSettings(num_beams=2))
    with pytest.raises(ImageError, match="not a readable image"):
        stream(random_model, b"no picture", caption_request())
    with pytest.raises(UserError, match="blank"):
        stream(random_model, picture(), " ")


def test_a_conversation_without_a_picture_streams(toy_model):
    *events, last = toy_model.stream(None, "Hello, what can you do?", GenerationSettings(max_new_tokens=12))
    assert text_of(events) == last.prediction.text and last.prediction.images == ()
