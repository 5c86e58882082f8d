"""Whose turn it is in the engine's queue: clients share it, however much one of them asks."""

from types import SimpleNamespace

import pytest

from padt.errors import UserError
from padt.inference.engine import Engine, EngineBusyError, EngineLimits
from padt.inference.engine.waiting import WaitingRows
from padt.inference.predict import GenerationSettings, caption_request, predict
from padt.inference.requests import text_request
from tests.padt.inference.test_engine import SHORT, mixed
from tests.padt.inference.test_predict import assert_same, picture

BRIEF = GenerationSettings(max_new_tokens=4)


class Budget:
    """An admission of so many tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    def fits(self, prompt):
        if prompt > self.tokens:
            return False
        self.tokens -= prompt
        return True


def row(client, size=1, submitted=0.0):
    return SimpleNamespace(client=client, prompt=size, submitted=submitted, ticket=SimpleNamespace(cancelled=False))


def queue_of(*rows, **limits):
    queue = WaitingRows(EngineLimits(**limits))
    for each in rows:
        queue.add(each)
    return queue


def clients(rows):
    return "".join(each.client for each in rows)


def test_clients_take_turns_and_each_ones_requests_keep_their_order():
    rows = [row("a") for _ in range(5)] + [row("b"), row("c"), row("b")]
    queue = queue_of(*rows)
    taken = queue.take(100, Budget(100))
    assert clients(taken) == "abcabaaa"
    assert [each for each in taken if each.client == "a"] == rows[:5]
    assert len(queue) == 0 and queue.oldest() is None


def test_a_hundred_requests_hold_another_client_up_by_one_admission():
    queue = queue_of(*(row("many", 10) for _ in range(100)))
    assert clients(queue.take(1, Budget(10))) == "many"
    queue.add(row("one", 10))
    # Each admission has room for one request.
    assert [clients(queue.take(1, Budget(10))) for _ in range(3)] == ["many", "one", "many"]
    queue.add(row("one", 10))
    assert [clients(queue.take(1, Budget(10))) for _ in range(2)] == ["many", "one"]


def test_a_large_request_keeps_its_turn():
    """Small ones of other clients must not slip past it for ever."""
    queue = queue_of(row("a", 2), row("large", 9), row("b", 2), row("c", 2))
    assert clients(queue.take(100, Budget(10))) == "a"
    queue.add(row("a", 2))
    assert clients(queue.take(100, Budget(10))) == "large"
    assert clients(queue.take(100, Budget(10))) == "bca"


def test_nobody_starves():
    """Whatever comes meanwhile, a request waits for at most one of each other client and the one before it."""
    queue = queue_of(*(row(name) for name in "abcd" for _ in range(3)))
    waited = {}
    for turn in range(200):
        (taken,) = queue.take(1, Budget(1))
        assert turn - waited.get(taken.client, turn - 4) <= 4
        waited[taken.client] = turn
        queue.add(row(taken.client))


def test_cancelled_requests_leave_and_a_client_without_any_loses_its_turn():
    rows = [row("a"), row("a"), row("b")]
    queue = queue_of(*rows)
    rows[0].ticket.cancelled = rows[2].ticket.cancelled = True
    assert set(map(id, queue.take_cancelled())) == {id(rows[0]), id(rows[2])} and queue.take_cancelled() == []
    assert queue.take(5, Budget(5)) == [rows[1]] and len(queue) == 0


def test_a_client_has_its_own_share_of_the_queue():
    queue = queue_of(row("a"), row("a"), row("b"), max_waiting=4, max_waiting_per_client=2)
    with pytest.raises(EngineBusyError, match="max_waiting_per_client") as refused:
        queue.add(row("a"))
    assert refused.value.client == "a"
    queue.add(row("c"))
    with pytest.raises(EngineBusyError, match="4 requests are waiting") as refused:
        queue.add(row("d"))
    assert refused.value.client is None
    with pytest.raises(UserError, match="max_waiting_per_client"):
        EngineLimits(max_waiting_per_client=0)


def test_the_engine_serves_clients_in_turn_with_unchanged_answers(random_model):
    engine = Engine(random_model, EngineLimits(max_rows=1, max_length=512, max_waiting_per_client=12))
    asked = mixed(12)
    order = []

    def submit(client, images, request):
        def hear(event, client=client):
            if hasattr(event, "reason"):
                order.append(client)

        return engine.submit(images, request, BRIEF, client=client, listener=hear)

    tickets = [submit("many", *one) for one in asked]
    with pytest.raises(EngineBusyError):
        engine.submit(None, "more", BRIEF, client="many")
    engine.step()
    other = submit("other", [], text_request("hello"))
    engine.run_until_idle()
    assert order.index("other") <= 2
    assert other.result(0).token_ids == predict(random_model, None, "hello", BRIEF)[0].token_ids
    for (images, request), ticket in zip(asked, tickets, strict=True):
        assert_same(ticket.result(0), predict(random_model, [images], [request], BRIEF)[0])


def test_a_large_picture_is_one_admission_for_those_that_run(random_model):
    """Rows that run write a token in each step, whatever is admitted in it; a step admits no more than its budget."""
    reports = []
    limits = EngineLimits(max_rows=8, max_length=1024, admit_patches=300, cache_mb=0)
    engine = Engine(random_model, limits, on_step=reports.append)
    running = engine.submit(picture(seed=1), caption_request(), GenerationSettings(max_new_tokens=40))
    engine.step()
    large = [engine.submit(picture(480, 420, seed), caption_request(), SHORT) for seed in range(3)]
    reports.clear()
    for _ in range(3):
        engine.step()
    # 17 x 15 patches each: one large picture a step, and the running answer goes on beside it.
    assert [(report.admitted, report.rows, report.waiting) for report in reports] == [(1, 2, 2), (1, 3, 1), (1, 4, 0)]
    engine.run_until_idle()
    assert running.done and all(ticket.done for ticket in large)
