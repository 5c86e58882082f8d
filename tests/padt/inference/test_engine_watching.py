"""What an engine tells those who watch it: work done, room left, and a model that hangs."""

import threading
import time

import pytest

from padt.inference.engine import Engine, EngineLimits
from padt.inference.predict import GenerationSettings, caption_request, refer_request
from tests.padt.inference.test_engine import LONG, SHORT, SMALL, answers, mixed
from tests.padt.inference.test_predict import picture


def test_reports_of_steps_add_up_to_the_answers(random_model):
    reports = []
    engine = Engine(random_model, EngineLimits(max_rows=4, max_length=512), on_step=reports.append)
    tickets = [engine.submit(*one, SHORT) for one in mixed(9)]
    engine.run_until_idle()
    ends = [ticket.end(0) for ticket in tickets]
    written = sum(end.completion_tokens + (end.reason == "stop") for end in ends)
    assert sum(report.work.tokens for report in reports) == engine.tokens == written
    found = sum(len(end.prediction.objects) for end in ends)
    assert sum(report.work.objects for report in reports) == engine.objects == found > 0
    assert sum(report.admitted for report in reports) == 9
    assert sum(report.rows > 0 for report in reports) == engine.steps
    assert max(report.rows for report in reports) == 4 and reports[0].waiting == 5 and reports[-1].waiting == 0
    assert sum(report.rows for report in reports) == written - 9, "each row's first token comes with its prompt"
    for report in reports:
        assert (report.work.prefill_s > 0) == (report.admitted > 0)
        assert (report.work.decode_s > 0) == (report.rows > 0)
        assert (report.work.objects_s > 0) == (report.work.objects > 0)
    for end, (_, request) in zip(ends, mixed(9), strict=True):
        assert end.completion_tokens == len(end.prediction.token_ids)
        patches = sum(frame.patches for frame in end.prediction.images)
        assert end.prompt_tokens > patches and request.prompt


def test_an_answer_that_is_cut_short_has_its_tokens_counted(random_model):
    engine = Engine(random_model, SMALL)
    ticket = engine.submit(picture(seed=LONG[0]), caption_request(), GenerationSettings(max_new_tokens=100))
    waiting = engine.submit(picture(seed=LONG[1]), caption_request(), GenerationSettings(max_new_tokens=100))
    waiting.cancel()
    for _ in range(4):
        engine.step()
    ticket.cancel()
    engine.run_until_idle()
    assert ticket.end().completion_tokens == 5 and waiting.end().completion_tokens == 0


def test_a_watcher_that_fails_stops_nothing(random_model, caplog):
    def fail(report):
        raise ValueError("no disk")

    found = answers(Engine(random_model, SMALL, on_step=fail), mixed(2))
    assert len(found) == 2 and "no disk" in caplog.text


def test_the_cache_counts_each_picture_and_prefix_once(random_model):
    engine = Engine(random_model, SMALL)
    image = picture(seed=5)
    answers(engine, [(image, refer_request("one thing"))])
    assert (engine.cache.hits, engine.cache.misses) == (0, 2)
    answers(engine, [(image, refer_request("another"))])
    assert (engine.cache.hits, engine.cache.misses) == (2, 2)
    assert 0 < engine.cache.nbytes <= engine.cache.capacity


def test_a_model_that_hangs_is_noticed(random_model, monkeypatch):
    """From any thread, in the midst of a step as before the first; and an engine with nothing to do never hangs."""
    engine = Engine(random_model, SMALL)
    time.sleep(0.1)
    assert engine.stalled_s == 0.0
    going, go_on = threading.Event(), threading.Event()
    decode = engine._passes.decode

    def hang(rows):
        if engine.steps == 2:
            going.set()
            assert go_on.wait(60)
        decode(rows)

    monkeypatch.setattr(engine._passes, "decode", hang)
    start = time.perf_counter()
    ticket = engine.submit(picture(), caption_request(), SHORT)
    assert engine.stalled_s <= time.perf_counter() - start, "what was before the request does not count"
    time.sleep(0.05)
    assert engine.stalled_s >= 0.05, "a request that nobody takes does"
    with engine.running():
        assert going.wait(60)
        before = engine.stalled_s
        time.sleep(0.2)
        assert engine.stalled_s >= before + 0.2
        go_on.set()
        ticket.result(60)
    assert engine.stalled_s == 0.0


@pytest.mark.parametrize("requests", [1, 3])
def test_an_admission_that_hangs_is_noticed(random_model, monkeypatch, requests):
    engine = Engine(random_model, SMALL)
    going, go_on = threading.Event(), threading.Event()
    look = engine._passes._look

    def hang(rows):
        going.set()
        assert go_on.wait(60)
        look(rows)

    monkeypatch.setattr(engine._passes, "_look", hang)
    tickets = [engine.submit(*one, SHORT) for one in mixed(requests)]
    with engine.running():
        assert going.wait(60)
        time.sleep(0.2)
        assert engine.stalled_s >= 0.2
        go_on.set()
    assert all(ticket.done for ticket in tickets)
