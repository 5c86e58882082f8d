"""Asking an engine that dies, gives up, hangs or is given up: what the client gets, and what is left running."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

pytest.importorskip("ray.serve")

from ray.exceptions import ActorDiedError  # noqa: E402

from padt.inference.events import TextPiece  # noqa: E402
from padt.inference.requests import caption_request  # noqa: E402
from serve.api.errors import RequestError  # noqa: E402
from serve.ingress.asking import ask, ask_stream  # noqa: E402
from serve.messages import Job, Outcome  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402

ARGS = ServerArgs(request_timeout_s=60.0, retry_after_s=3)
HASTY = ARGS.model_copy(update={"request_timeout_s": 0.05})
JOB = Job((), caption_request(), request_id="r-1")
PIECE, GOOD, LOST = TextPiece("a"), Outcome({"text": "a"}), Outcome(trouble="lost", message="its thread has died")
DIED, WAIT = ActorDiedError(), "wait"


class Call:
    """What a handle gives: awaitable and iterable, and remembers whether it was cancelled."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __await__(self) -> Any:
        return self.__anext__().__await__()

    async def __anext__(self) -> Any:
        if not self.script:
            raise StopAsyncIteration
        step = self.script.pop(0)
        if step is WAIT:
            await asyncio.Event().wait()
        if isinstance(step, Exception):
            raise step
        return step


class Handle:
    """A deployment handle whose calls follow scripts, one for each call."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = [list(script) for script in scripts]
        self.calls: list[Call] = []

    def options(self, **options: Any) -> "Handle":
        return self

    answer = stream = property(lambda self: self)

    def remote(self, job: Job) -> Call:
        self.calls.append(Call(self.scripts.pop(0)))
        return self.calls[-1]


async def collected(stream: AsyncIterator[list[Any]]) -> list[Any]:
    return [item async for items in stream for item in items]


def asked(handle: Handle, args: ServerArgs = ARGS) -> Outcome:
    return asyncio.run(ask(handle, JOB, args))  # type: ignore[arg-type]


def streamed(handle: Handle, args: ServerArgs = ARGS) -> list[Any]:
    return asyncio.run(collected(ask_stream(handle, JOB, args)))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [DIED, LOST])
def test_a_lost_answer_is_asked_for_once_more(loss: Any) -> None:
    handle = Handle([loss], [GOOD])
    assert asked(handle) is GOOD and len(handle.calls) == 2
    handle = Handle([[loss] if loss is LOST else loss], [[PIECE], [GOOD]])
    assert streamed(handle) == [PIECE, GOOD] and len(handle.calls) == 2


@pytest.mark.parametrize("run", [asked, streamed])
def test_an_answer_lost_twice_is_an_error_to_come_back_from(run: Callable[[Handle], Any]) -> None:
    handle = Handle([DIED], [DIED], [GOOD])
    with pytest.raises(RequestError) as caught:
        run(handle)
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "engine_lost", 3)
    assert len(handle.calls) == 2


@pytest.mark.parametrize("loss", [DIED, [LOST], StopAsyncIteration()])
def test_what_was_streamed_is_not_begun_again(loss: Any) -> None:
    handle = Handle([[PIECE], loss], [[PIECE], [GOOD]])
    with pytest.raises(RequestError) as caught:
        streamed(handle)
    assert caught.value.code == "engine_lost" and len(handle.calls) == 1


@pytest.mark.parametrize(("run", "script"), [(asked, [WAIT]), (streamed, [[PIECE], WAIT])])
def test_an_answer_that_takes_too_long_is_cancelled(run: Callable[..., Any], script: list[Any]) -> None:
    handle = Handle(script, [GOOD])
    with pytest.raises(RequestError) as caught:
        run(handle, HASTY)
    assert (caught.value.status, caught.value.code) == (504, "timeout")
    assert [call.cancelled for call in handle.calls] == [True]


def test_the_time_of_both_tries_counts_together() -> None:
    with pytest.raises(RequestError) as caught:
        asked(Handle([DIED], [WAIT]), HASTY)
    assert caught.value.code == "timeout"


def test_whoever_leaves_a_stream_has_it_cancelled() -> None:
    handle = Handle([[PIECE], WAIT])

    async def leave() -> None:
        async with aclosing(ask_stream(handle, JOB, ARGS)) as stream:  # type: ignore[arg-type]
            assert await anext(stream) == [PIECE]

    asyncio.run(leave())
    assert handle.calls[0].cancelled


def test_an_answer_that_came_is_not_cancelled() -> None:
    handle = Handle([GOOD])
    asked(handle)
    assert not handle.calls[0].cancelled


def test_an_error_of_the_engine_is_not_tried_again() -> None:
    handle = Handle([ValueError("wrong")], [GOOD])
    with pytest.raises(ValueError, match="wrong"):
        asked(handle)
    assert len(handle.calls) == 1
