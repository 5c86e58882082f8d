"""The compiled step: padded shapes and other kernels, the same answers."""

import pytest
import torch

from padt.errors import UserError
from padt.inference.engine import Engine, EngineLimits
from padt.inference.predict import GenerationSettings, caption_request, detect_request, predict
from tests.padt.inference.test_engine import SHORT, mixed
from tests.padt.inference.test_predict import assert_same, picture
from tests.padt.tiny import tiny_model

LIMITS = EngineLimits(max_rows=5, max_length=300, cache_mb=0)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answers_are_those_of_predict(attention):
    """Rows join and leave, so that each number of rows comes, with padding and without."""
    model = tiny_model()
    model.set_attn_implementation(attention)
    engine = Engine(model, LIMITS, compile="eager")
    asked = mixed(9)
    lengths = [3, 24, 9, 17, 5, 30, 1, 12, 40]
    tickets = []
    for (images, request), length in zip(asked, lengths, strict=True):
        tickets.append(engine.submit(images, request, GenerationSettings(max_new_tokens=length)))
        engine.step()
        engine.step()
    engine.run_until_idle()
    for (images, request), length, ticket in zip(asked, lengths, tickets, strict=True):
        expected = predict(model, [images], [request], GenerationSettings(max_new_tokens=length))[0]
        assert_same(ticket.result(0), expected)
    assert not any(tensor.any() for tensor in engine._passes._slots.tensors), "padding must leave nothing behind"


def test_a_traced_graph_gives_the_same_answers(random_model):
    engine = Engine(random_model, EngineLimits(max_rows=2, max_length=256, cache_mb=0), compile="aot_eager")
    asked = mixed(3)
    tickets = [engine.submit(*one, SHORT) for one in asked]
    engine.run_until_idle()
    for (images, request), ticket in zip(asked, tickets, strict=True):
        assert_same(ticket.result(0), predict(random_model, [images], [request], SHORT)[0])


def test_shapes_are_few_and_reach_the_limits(random_model):
    shapes = Engine(random_model, EngineLimits(max_rows=6, max_length=700), compile="eager")._passes.compiled.shapes()
    assert shapes == [(rows, length) for length in (256, 512, 700) for rows in (1, 2, 4, 6)]


def test_nothing_is_compiled_after_the_warm_up(random_model):
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    engine = Engine(random_model, EngineLimits(max_rows=3, max_length=300), compile="eager")
    engine._passes.compiled._compiled = torch.compile(
        engine._passes.compiled._step, backend=backend, dynamic=False, fullgraph=True
    )
    engine._passes.compiled._known.clear()
    engine.warm_up()
    assert len(seen) == len(engine._passes.compiled.shapes()) == 6
    tickets = [
        engine.submit(picture(seed=n), caption_request(), GenerationSettings(max_new_tokens=60)) for n in range(4)
    ]
    engine.run_until_idle()
    assert len(seen) == 6 and all(ticket.done for ticket in tickets)


def test_a_step_that_fails_is_done_again_in_parts_that_overwrite_nobody(random_model, monkeypatch):
    """A half of the rows is not padded into the slots of the other half."""
    asked = [(picture(60 + 28 * n, 90, n), detect_request(["person"])) for n in range(5)]
    engine = Engine(random_model, EngineLimits(max_rows=8, max_length=300, cache_mb=0), compile="eager")
    tickets = [engine.submit(*one, SHORT) for one in asked]
    compiled = engine._passes.compiled
    calls = []

    class Failing:
        def __call__(self, *args):
            calls.append(len(args[0]))
            if len(calls) % 2 and len(args[0]) > 1:
                raise RuntimeError("out of memory")
            return compiled(*args)

    monkeypatch.setattr(engine._passes, "compiled", Failing())
    engine.run_until_idle()
    assert len(calls) > 10 and max(calls) >= 3
    for ticket, (images, request) in zip(tickets, asked, strict=True):
        assert_same(ticket.result(0), predict(random_model, [images], [request], SHORT)[0])


def test_a_model_that_cannot_be_compiled_is_known_at_once(random_model):
    with pytest.raises(UserError, match="leave compile out"):
        Engine(random_model, LIMITS, compile="no such back end")


@pytest.mark.slow
def test_torchs_own_compiler_gives_the_same_answers(random_model):
    engine = Engine(random_model, EngineLimits(max_rows=2, max_length=256, cache_mb=0), compile=True)
    asked = mixed(3)
    tickets = [engine.submit(*one, SHORT) for one in asked]
    engine.run_until_idle()
    for (images, request), ticket in zip(asked, tickets, strict=True):
        assert_same(ticket.result(0), predict(random_model, [images], [request], SHORT)[0])
