"""The engine's limits, and what fails in it: a request that cannot be answered costs no other anything."""

import pytest

from padt.errors import ImageError, UserError
from padt.inference.engine import Engine, EngineBusyError, EngineLimits
from padt.inference.predict import GenerationSettings, caption_request, detect_request, predict
from padt.inference.requests import text_request
from tests.padt.inference.test_engine import LONG, SHORT, SMALL, answers
from tests.padt.inference.test_predict import assert_same, picture
from tests.padt.tiny import tiny_model


def test_what_is_beyond_the_limits_is_refused_when_submitted(random_model):
    engine = Engine(
        random_model, EngineLimits(max_rows=2, max_length=200, admit_tokens=150, admit_patches=50, max_waiting=2)
    )
    with pytest.raises(UserError, match="send smaller or fewer pictures"):
        engine.submit(picture(400, 300), caption_request(), SHORT)
    with pytest.raises(UserError, match="send less text or smaller pictures"):
        engine.submit(None, "word " * 40, SHORT)
    with pytest.raises(UserError, match="max_new_tokens of at most 1[0-9][0-9]"):
        engine.submit(None, "word", GenerationSettings(max_new_tokens=190))
    with pytest.raises(UserError, match="num_beams=1"):
        engine.submit(None, "word", GenerationSettings(num_beams=2))
    with pytest.raises(UserError, match="needs an image"):
        engine.submit(None, caption_request(), SHORT)
    with pytest.raises(ImageError, match="not a readable image"):
        engine.submit(b"no picture", caption_request(), SHORT)
    assert engine.waiting_rows == 0
    tickets = [engine.submit(None, "word", SHORT) for _ in range(2)]
    with pytest.raises(EngineBusyError, match="try again later"):
        engine.submit(None, "word", SHORT)
    engine.run_until_idle()
    assert all(ticket.end().reason in ("stop", "length") for ticket in tickets)
    with pytest.raises(UserError, match="max_rows"):
        EngineLimits(max_rows=0)


def test_an_answer_may_fill_its_slot_to_the_end(random_model):
    prompt = len(random_model.processor.prompt_ids("hello"))
    engine = Engine(random_model, EngineLimits(max_rows=2, max_length=prompt + 40))
    settings = GenerationSettings(max_new_tokens=40)
    (found,) = answers(engine, [([], text_request("hello"))], settings)
    assert found.token_ids == predict(random_model, None, "hello", settings)[0].token_ids


@pytest.mark.parametrize(
    ("name", "from_step"),
    [("_look", 0), ("_prefill", 0), ("_vrt_logits", 0), ("_vrt_logits", 3), ("decode", 3), ("objects", 0)],
)
def test_an_error_ends_its_own_request_only(random_model, name, from_step, monkeypatch, caplog):
    """Whatever fails for one request, wherever: the others are answered as if nothing had been."""
    asked = [(picture(60 + 28 * n, 90, n), detect_request(["person"])) for n in range(5)]
    engine = Engine(random_model, EngineLimits(max_rows=8, max_length=512))
    tickets = [engine.submit(*one, SHORT) for one in asked]
    marked = tickets[2]

    def failing(work):
        def run(items, *args):
            rows = [item[0] if isinstance(item, tuple) else item for item in items]
            if any(row.ticket is marked for row in rows) and engine.steps >= from_step:
                raise RuntimeError("out of memory")
            return work(items, *args)

        return run

    monkeypatch.setattr(engine._passes, name, failing(getattr(engine._passes, name)))
    engine.run_until_idle()
    monkeypatch.undo()
    assert marked.end().reason == "error" and caplog.text.count("A request has failed") == 1
    with pytest.raises(RuntimeError, match="out of memory"):
        marked.result()
    for ticket, (images, request) in zip(tickets, asked, strict=True):
        if ticket is not marked:
            assert_same(ticket.result(0), predict(random_model, [images], [request], SHORT)[0])
    assert not any(tensor.any() for tensor in engine._passes._slots.tensors)


def test_a_listener_that_fails_cancels_its_request(random_model, caplog):
    def fail(event):
        raise ValueError("the client is gone")

    engine = Engine(random_model, SMALL)
    gone = engine.submit(
        picture(seed=LONG[0]), caption_request(), GenerationSettings(max_new_tokens=300), listener=fail
    )
    other = engine.submit(picture(), caption_request(), SHORT)
    engine.run_until_idle()
    assert gone.end().reason == "cancelled" and other.result() and engine.steps < 30
    assert "the client is gone" in caplog.text


def test_a_model_without_masks_for_each_row_is_refused(random_model):
    model = tiny_model()
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match='attn_implementation="sdpa"'):
        Engine(model)
    model = tiny_model()
    model.processor = None
    with pytest.raises(UserError, match="no processor"):
        Engine(model)
