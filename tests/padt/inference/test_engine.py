"""The engine: many requests at once, each answered as if it were alone, and none paying for another."""

import threading
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from padt.errors import UserError
from padt.inference.engine import CancelledError, Ended, Engine, EngineLimits, ObjectFound, TextPiece
from padt.inference.events import Finished
from padt.inference.predict import GenerationSettings, caption_request, detect_request, predict, refer_request
from padt.inference.requests import Request, chat_request, text_request
from padt.inference.stream import stream
from pipelines.toy.language import referring_expressions
from pipelines.toy.scenes import draw_scene, scene_rng
from tests.padt.inference.test_predict import assert_same, picture
from tests.padt.tiny import tiny_model

SMALL = EngineLimits(max_rows=16, max_length=512, admit_tokens=4096, cache_mb=64)
SHORT = GenerationSettings(max_new_tokens=24)
# Pictures of which the random model's caption has more than 100 tokens.
LONG = (1, 3, 4)


def mixed(count):
    """Requests of all tasks about pictures of many sizes, some without a picture, some with several."""
    kinds = [
        lambda n: (picture(60 + 11 * n, 90 + 7 * n, n), detect_request(["person", "car"][: n % 2 + 1])),
        lambda n: (picture(200 - 9 * n, 60, n), refer_request(f"thing number {n}")),
        lambda n: (picture(84, 84, n), caption_request()),
        lambda n: ([], text_request(f"hello, is {n} more than three?")),
        lambda n: ([picture(120, 90, n), picture(60, 60 + n, n + 1)], detect_request(["cat"])),
    ]
    return [kinds[n % len(kinds)](n) for n in range(count)]


def answers(engine, asked, settings=SHORT, **values):
    tickets = [engine.submit(images, request, settings, **values) for images, request in asked]
    engine.run_until_idle()
    return [ticket.result(0) for ticket in tickets]


@contextmanager
def counted(module):
    """A list that grows by the batch size with every call of a module."""
    calls = []
    handle = module.register_forward_hook(lambda module, args, kwargs, output: calls.append(output), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("width", [1, 4, 8, 16])
def test_answers_are_those_of_predict(random_model, width):
    asked = mixed(20)
    engine = Engine(random_model, EngineLimits(max_rows=width, max_length=512))
    found = answers(engine, asked)
    for (images, request), prediction in zip(asked, found, strict=True):
        (expected,) = predict(random_model, [images], [request], SHORT)
        assert_same(prediction, expected)
        assert (prediction.truncated, prediction.warnings) == (expected.truncated, expected.warnings)
        assert prediction.images == expected.images
    assert sum(len(prediction.objects) for prediction in found) > 20, "the test must see objects"
    assert engine.running_rows == engine.waiting_rows == 0


def test_drawn_scenes_are_answered_as_by_predict(toy_model):
    scenes = [draw_scene(scene_rng(7, 0, n)) for n in range(8)]
    asked = [
        (Image.fromarray(scene.image), request)
        for scene in scenes
        for request in (caption_request(), *(refer_request(each.text) for each in referring_expressions(scene)[:2]))
    ]
    asked.append(([], text_request("Hello!")))
    settings = GenerationSettings(max_new_tokens=200)
    found = answers(Engine(toy_model), asked, settings)
    for (images, request), prediction in zip(asked, found, strict=True):
        (expected,) = predict(toy_model, [images], [request], settings)
        assert_same(prediction, expected)
        assert not prediction.truncated
    assert sum(len(prediction.objects) for prediction in found) > 12, "the test must see objects"


@pytest.mark.parametrize("values", [{"attn_implementation": "eager"}, {"feature_order": "reference"}])
def test_other_attentions_and_orders(values):
    attention = values.pop("attn_implementation", None)
    model = tiny_model(**values)
    if attention:
        model.set_attn_implementation(attention)
    asked = mixed(6)
    for (images, request), prediction in zip(asked, answers(Engine(model, SMALL), asked), strict=True):
        assert_same(prediction, predict(model, [images], [request], SHORT)[0])


def test_half_precision_runs():
    found = answers(Engine(tiny_model().to(torch.bfloat16), SMALL), mixed(5))
    assert sum(len(prediction.objects) for prediction in found) > 5


def test_generation_config_settings_and_forbidden_repeats_hold_for_each_row():
    """Rows with their own settings side by side; what a model's generation config says counts as in `generate`."""
    model = tiny_model()
    model.generation_config.repetition_penalty = 1.3
    settings = [
        GenerationSettings(max_new_tokens=30, forbid_repeats=True),
        GenerationSettings(max_new_tokens=7),
        GenerationSettings(max_new_tokens=1, masks=False),
        GenerationSettings(max_new_tokens=19, masks=False, forbid_repeats=True),
    ]
    asked = mixed(4)
    engine = Engine(model, SMALL)
    tickets = [engine.submit(*one, own) for one, own in zip(asked, settings, strict=True)]
    engine.run_until_idle()
    for (images, request), own, ticket in zip(asked, settings, tickets, strict=True):
        (expected,) = predict(model, [images], [request], own)
        found = ticket.result(0)
        assert found.token_ids == expected.token_ids
        assert [thing.mask is None for thing in found.objects] == [not own.masks] * len(expected.objects)
        for thing in found.objects:
            assert not own.forbid_repeats or len(set(thing.patches)) == len(thing.patches)


def test_a_calibrated_model_gives_calibrated_scores():
    calibration = {"intercept": -1.0, "score_logit": 0.7, "log_confidence": 0.2, "incomplete": -1.0, "repeated": -2.0}
    model = tiny_model(score_calibration=calibration)
    asked = (picture(), detect_request(["person"]))
    for settings in (SHORT, GenerationSettings(max_new_tokens=24, calibrated=False)):
        (found,) = answers(Engine(model, SMALL), [asked], settings)
        assert_same(found, predict(model, [asked[0]], [asked[1]], settings)[0])
        assert found.objects


def test_a_conversation_with_an_earlier_answer(toy_model, shapes):
    first = toy_model.predict(shapes, refer_request("the red circle"), SHORT)[0]
    turns = chat_request(
        [
            {"role": "user", "content": [{"type": "image", "image": shapes}, {"type": "text", "text": "Where is it?"}]},
            {"role": "assistant", "content": "There."},
            {"role": "user", "content": "And the blue square?"},
        ]
    )[1].prompt
    request = Request("chat", (turns[0], first.turn, turns[2]))
    asked = [(shapes, request), (shapes, refer_request("the red circle"))]
    for (images, one), found in zip(asked, answers(Engine(toy_model, SMALL), asked), strict=True):
        assert_same(found, toy_model.predict(images, one, SHORT)[0])
    with pytest.raises(UserError, match="send the pictures that the answer was about"):
        Engine(toy_model, SMALL).submit(shapes.crop((0, 0, 112, 112)).resize((28, 28)), request)


# ---------------------------------------------------------------------- events


def test_events_are_those_of_a_stream(random_model):
    for seed in range(3):
        image = picture(seed=seed)
        expected = list(stream(random_model, image, caption_request(), SHORT, vrts=True))
        engine = Engine(random_model, SMALL)
        others = [engine.submit(*one, SHORT) for one in mixed(3)]
        ticket = engine.submit(image, caption_request(), SHORT, vrts=True)
        engine.run_until_idle()
        *events, end = ticket
        assert isinstance(expected[-1], Finished) and isinstance(end, Ended)
        assert [type(event) for event in events] == [type(event) for event in expected[:-1]]
        for event, other in zip(events, expected, strict=False):
            assert event == other or isinstance(event, ObjectFound) and event.number == other.number
        assert end.reason == ("length" if end.prediction.truncated else "stop")
        assert_same(end.prediction, expected[-1].prediction)
        assert end.times.prefill > 0 and end.times.decode > 0 and end.times.queued >= 0
        assert (end.times.objects > 0) == bool(end.prediction.objects)
        assert all(other.done for other in others)


def test_objects_come_while_the_answer_is_written(toy_model, shapes):
    engine = Engine(toy_model, SMALL)
    events = []
    engine.submit(
        shapes, refer_request("the red circle"), GenerationSettings(max_new_tokens=60), listener=events.append
    )
    while not any(isinstance(event, ObjectFound) for event in events):
        assert engine.step()
    text = "".join(event.text for event in events if isinstance(event, TextPiece))
    assert text.startswith('The "the red circle" refers to ') and "in this image." not in text
    engine.run_until_idle()
    assert events[-1].reason == "stop"


def test_the_reason_of_the_end(toy_model, shapes):
    engine = Engine(toy_model, SMALL)
    whole = engine.submit(shapes, refer_request("the red circle"), GenerationSettings(max_new_tokens=60))
    cut = engine.submit(shapes, refer_request("the red circle"), GenerationSettings(max_new_tokens=3))
    engine.run_until_idle()
    assert whole.end().reason == "stop" and cut.end().reason == "length"
    assert cut.result().truncated and len(cut.result().token_ids) == 3


# ---------------------------------------------------------------------- joining, leaving, cancelling


def test_rows_join_and_leave_midway(random_model):
    """Each request comes at another step, with an answer of another length; slots move meanwhile."""
    engine = Engine(random_model, EngineLimits(max_rows=5, max_length=512, cache_mb=0))
    asked = mixed(14)
    tickets = []
    lengths = [3, 24, 9, 17, 5, 30, 1, 12, 40, 2, 8, 21, 4, 13]
    for (images, request), length in zip(asked, lengths, strict=True):
        tickets.append(engine.submit(images, request, GenerationSettings(max_new_tokens=length)))
        engine.step()
        engine.step()
    engine.run_until_idle()
    for (images, request), length, ticket in zip(asked, lengths, tickets, strict=True):
        expected = predict(random_model, [images], [request], GenerationSettings(max_new_tokens=length))[0]
        assert_same(ticket.result(0), expected)


def test_a_slot_that_is_left_is_clear(random_model):
    """What an answer has left behind, a NaN even, must not reach the next one in its slot."""
    engine = Engine(random_model, SMALL)
    asked = mixed(3)
    answers(engine, asked)
    assert not any(tensor.any() for tensor in engine._passes._slots.tensors)


def test_a_cancelled_request_frees_its_slot_and_costs_no_more_steps(random_model):
    engine = Engine(random_model, EngineLimits(max_rows=2, max_length=512))
    long = GenerationSettings(max_new_tokens=300)
    running, other = (engine.submit(picture(seed=n), caption_request(), long) for n in LONG[:2])
    waiting, last = engine.submit(*mixed(3)[2], long), engine.submit(*mixed(4)[3], SHORT)
    for _ in range(5):
        engine.step()
    assert engine.running_rows == 2 and engine.waiting_rows == 2
    running.cancel()
    waiting.cancel()
    with counted(random_model.lm_head) as calls:
        engine.step()
    assert running.done and waiting.done and not other.done
    # One pass for the prompt that took the slot, one for both rows.
    assert [len(output) for output in calls] == [1, 2]
    assert engine.waiting_rows == 0
    other.cancel()
    engine.run_until_idle()
    assert [ticket.end().reason for ticket in (running, waiting, other)] == ["cancelled"] * 3
    assert running.end().prediction is None and list(running)[-1].reason == "cancelled"
    with pytest.raises(CancelledError):
        running.result()
    assert_same(last.result(), predict(random_model, *([each] for each in mixed(4)[3]), SHORT)[0])
    with counted(random_model.lm_head) as calls:
        assert not engine.step()
    assert not calls


def test_a_short_question_overtakes_long_captions(random_model):
    engine = Engine(random_model, SMALL)
    long = GenerationSettings(max_new_tokens=200)
    captions = [engine.submit(picture(seed=n), caption_request(), long) for n in range(8)]
    for _ in range(10):
        engine.step()
    short = engine.submit(picture(60, 60), refer_request("it"), GenerationSettings(max_new_tokens=6))
    before = engine.steps
    while not short.done:
        engine.step()
    assert engine.steps - before <= 6
    assert sum(not caption.done for caption in captions) >= 6, "the captions must still be running"


def test_the_longest_row_does_not_pad_others(random_model):
    """A prompt is read with prompts of its own size only, and an admission holds the step's budget."""
    engine = Engine(random_model, EngineLimits(max_rows=8, max_length=1024, admit_patches=300, cache_mb=0))
    for n in range(4):
        engine.submit(picture(500, 400, n), caption_request(), SHORT)
        engine.submit(None, "hi", SHORT)
    with counted(random_model.model.language_model) as calls:
        engine.step()
    *prompts, step = [output.last_hidden_state.shape[:2] for output in calls]
    # 18 x 14 patches: one large picture a step; its neighbour in the queue is not padded to it.
    assert [rows for rows, _ in prompts] == [1, 1] and prompts[0][1] < 60 and prompts[1][1] > 252
    assert tuple(step) == (2, 1) and engine.waiting_rows == 6
    engine.run_until_idle()


# ---------------------------------------------------------------------- sampling


def test_a_sampled_answer_depends_on_its_seed_alone(random_model):
    wild = GenerationSettings(max_new_tokens=24, temperature=1.5, top_p=0.9)
    images, request = picture(), caption_request()
    (alone,) = answers(Engine(random_model, SMALL), [(images, request)], wild, seed=5)
    engine = Engine(random_model, SMALL)
    before = [engine.submit(*one, SHORT) for one in mixed(4)]
    others = [engine.submit(*one, wild) for one in mixed(4)]
    ticket = engine.submit(images, request, wild, seed=5)
    different = engine.submit(images, request, wild, seed=6)
    engine.run_until_idle()
    assert_same(ticket.result(0), alone)
    assert different.result(0).token_ids != alone.token_ids
    assert all(each.done for each in before + others)
    torch.manual_seed(5)
    assert_same(predict(random_model, [images], [request], wild)[0], alone)


def test_without_a_seed_samples_differ(random_model):
    wild = GenerationSettings(max_new_tokens=24, temperature=1.5)
    found = answers(Engine(random_model, SMALL), [(picture(), caption_request())] * 3, wild)
    assert len({prediction.token_ids for prediction in found}) == 3


# ---------------------------------------------------------------------- threads


def test_many_threads_submit_while_it_runs(random_model):
    """Words that look like special tokens stay words, whoever tokenises beside; no error, no mixed answers."""
    asked = [(picture(84, 84, n % 3), refer_request(f"<|im_end|> number {n}")) for n in range(24)]
    found = [None] * len(asked)

    def client(first):
        for place in range(first, len(asked), 4):
            found[place] = engine.submit(*asked[place], SHORT).result(60)

    with Engine(random_model, SMALL).running() as engine:
        threads = [threading.Thread(target=client, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        streamed = list(engine.submit(*asked[0], SHORT))
    for (images, request), prediction in zip(asked, [*found], strict=True):
        assert_same(prediction, predict(random_model, [images], [request], SHORT)[0])
    assert_same(streamed[-1].prediction, found[0])


def test_leaving_the_context_answers_what_was_submitted_and_an_error_cancels_it(random_model):
    long = GenerationSettings(max_new_tokens=300)
    with Engine(random_model, SMALL).running() as engine:
        tickets = [engine.submit(*one, SHORT) for one in mixed(5)]
    assert all(ticket.end(0).reason in ("stop", "length") for ticket in tickets)
    with pytest.raises(KeyError), engine.running():
        tickets = [engine.submit(picture(seed=seed), caption_request(), long) for seed in LONG]
        raise KeyError
    assert [ticket.end(0).reason for ticket in tickets] == ["cancelled"] * 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_an_engine_that_has_failed(random_model, monkeypatch):
    engine = Engine(random_model, SMALL)
    monkeypatch.setattr(engine, "_settle", lambda: 1 / 0)
    ticket = engine.submit(*mixed(1)[0], SHORT)
    with engine.running(), pytest.raises(RuntimeError, match="The engine has failed"):
        ticket.result(60)
    with pytest.raises(RuntimeError, match="takes no more requests"):
        engine.submit(*mixed(1)[0], SHORT)
