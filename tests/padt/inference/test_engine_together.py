"""Answers that nobody listens to: objects and prompts that wait for others give the same answers in fewer runs."""

import pytest

from padt.inference.engine import Engine, EngineLimits
from padt.inference.predict import caption_request, detect_request, predict, refer_request
from tests.padt.inference.test_engine import SHORT, answers, counted, mixed
from tests.padt.inference.test_predict import assert_same, picture

TOGETHER = EngineLimits(max_rows=4, max_length=512, cache_mb=64, objects_together=1000)


def test_answers_are_those_of_predict_in_one_run_of_the_object_decoder(random_model):
    asked = mixed(12)
    engine = Engine(random_model, TOGETHER)
    with counted(random_model.vl_decoder) as runs:
        found = answers(engine, asked)
    assert len(runs) == 1
    for (images, request), prediction in zip(asked, found, strict=True):
        assert_same(prediction, predict(random_model, [images], [request], SHORT)[0])
    assert sum(len(prediction.objects) for prediction in found) > 10, "the test must see objects"
    assert engine.running_rows == engine.waiting_rows == 0


def test_objects_are_decoded_when_so_many_wait_and_answers_leave_their_slots_before(random_model):
    engine = Engine(random_model, EngineLimits(max_rows=2, max_length=512, objects_together=8))
    tickets = [engine.submit(picture(seed=seed), detect_request(["person"]), SHORT) for seed in range(6)]
    ended_in_slots = 0
    with counted(random_model.vl_decoder) as runs:
        while engine.step():
            ended_in_slots += sum(row.reason is not None for row in engine._passes.rows)
    objects = sum(len(ticket.result(0).objects) for ticket in tickets)
    assert ended_in_slots == 0
    assert 1 < len(runs) <= objects // 8 + 1


def test_large_pictures_do_not_pile_up(random_model):
    """Pictures of answers that wait for their objects are bounded, whatever number of objects may wait."""
    limits = EngineLimits(max_rows=1, max_length=256, admit_patches=20, objects_together=1000)
    engine = Engine(random_model, limits)
    tickets = [engine.submit(picture(112, 112, seed), detect_request(["person"]), SHORT) for seed in range(8)]
    most = 0
    while engine.step():
        most = max(most, sum(row.prompt.patches for row in engine._written))
    assert all(ticket.done for ticket in tickets)
    # Those that are there, and the one with which they are too many.
    assert 0 < most <= 4 * limits.admit_patches + 16


def test_who_waits_for_objects_can_cancel_and_a_failure_costs_the_one_it_belongs_to(random_model, monkeypatch):
    engine = Engine(random_model, TOGETHER)
    asked = [(picture(60 + 28 * n, 90, n), detect_request(["person"])) for n in range(5)]
    tickets = [engine.submit(*one, SHORT) for one in asked]
    while not engine._written:
        engine.step()
    gone = next(n for n, ticket in enumerate(tickets) if ticket is engine._written[0].ticket)
    tickets[gone].cancel()
    engine.step()
    assert tickets[gone].end(0).reason == "cancelled"
    failing = tickets[(gone + 1) % 5]

    def objects(items, real=engine._passes.objects):
        if any(row.ticket is failing for row, _ in items):
            raise RuntimeError("no memory")
        return real(items)

    monkeypatch.setattr(engine._passes, "objects", objects)
    engine.run_until_idle()
    with pytest.raises(RuntimeError, match="no memory"):
        failing.result(0)
    for ticket, (images, request) in zip(tickets, asked, strict=True):
        if ticket not in (failing, tickets[gone]):
            assert_same(ticket.result(0), predict(random_model, images, request, SHORT)[0])


def test_prompts_wait_for_free_rows_unless_nothing_runs(random_model):
    reports = []
    limits = EngineLimits(max_rows=4, max_length=512, cache_mb=0, admit_together=3)
    engine = Engine(random_model, limits, on_step=reports.append)
    asked = [(picture(60, 60 + n, n), refer_request(f"thing {n}")) for n in range(11)]
    asked.append((picture(60, 60), caption_request()))
    for (images, request), prediction in zip(asked, answers(engine, asked), strict=True):
        assert_same(prediction, predict(random_model, [images], [request], SHORT)[0])
    admitted = [report.admitted for report in reports if report.admitted]
    assert sum(admitted) == 12 and min(admitted[:-1]) >= 3


def test_limits_fit_what_is_asked(random_model):
    pictures = [(60, 60), (600, 500)]
    asked = [(caption_request(), [size]) for size in pictures] + [(detect_request(["a", "b"]), pictures)]
    limits = EngineLimits.fitting(random_model.processor, asked, 24, 3, cache_mb=0)
    assert (limits.max_rows, limits.max_waiting, limits.cache_mb) == (3, 3, 0)
    engine = Engine(random_model, limits)
    tickets = [engine.submit([picture(*size) for size in sizes], request, SHORT) for request, sizes in asked]
    engine.run_until_idle()
    assert all(ticket.end(0).prediction is not None for ticket in tickets)
    longest = max(ticket.end(0).prompt_tokens for ticket in tickets)
    assert limits.max_length == longest + 24
