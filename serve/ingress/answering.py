"""From prepared questions to answers, whole or bit by bit: the part that all routes share."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from serve.api.answers import AnswerBody
from serve.api.errors import RequestError, error_body
from serve.api.events import merged
from serve.api.rendering import Rendering, Written, milliseconds
from serve.ingress import asking
from serve.ingress.desk import Desk, trouble_of
from serve.messages import Job, Outcome
from serve.observability import records

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Prepared:
    """Questions that are ready for the engine.

    Attributes:
        jobs: one for each question.
        tasks: of the questions.
        rendering: how their answers are written.
        began: when the request came (``time.perf_counter``).
        decode_s: how long it took to get so far.
    """

    jobs: list[Job]
    tasks: list[str]
    rendering: Rendering
    began: float
    decode_s: float

    def body(self, number: int, outcome: Outcome) -> AnswerBody:
        """The outcome of a question, if it has a prediction, as it is sent."""
        began = time.perf_counter()
        body = self.rendering.answer(self.tasks[number], outcome)
        now = time.perf_counter()
        first, last = {"decode": self.decode_s}, {"encode": now - began, "total": now - self.began}
        body.milliseconds = {**milliseconds(first), **body.milliseconds, **milliseconds(last)}
        return body


@dataclass(frozen=True)
class Piece:
    """Something of an answer on its way.

    Attributes:
        answer: number of the question.
        name: ``text`` or ``object``.
        data: see ``serve.api.rendering.Written.take``.
    """

    answer: int
    name: str
    data: dict[str, Any]


async def whole(desk: Desk, ready: Prepared) -> list[AnswerBody]:
    """The answers to all questions.

    Raises:
        RequestError: one of them has none.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_predicted(desk, job)) for job in ready.jobs]
    except ExceptionGroup as errors:
        # The first is the reason why the others were given up.
        raise errors.exceptions[0] from errors
    with records.timed("encode"):
        return [await asyncio.to_thread(ready.body, number, task.result()) for number, task in enumerate(tasks)]


async def bit_by_bit(desk: Desk, ready: Prepared) -> AsyncGenerator[Piece | list[AnswerBody] | None, None]:
    """The answers to all questions as they come, and at the end the whole ones; None while nothing comes.

    Raises:
        RequestError: one of the questions has no answer.
    """
    written = [Written(ready.rendering) for _ in ready.jobs]
    outcomes: dict[int, Outcome] = {}
    async for some in merged([asking.ask_stream(desk.engine, job, desk.args) for job in ready.jobs]):
        if some is None:
            yield None
            continue
        number, items = some
        if isinstance(end := items[-1], Outcome):
            outcomes[number] = _checked(desk, end)
        for name, data in await asyncio.to_thread(written[number].take, items):
            yield Piece(number, name, data)
    with records.timed("encode"):
        bodies = [await asyncio.to_thread(ready.body, number, outcomes[number]) for number in range(len(ready.jobs))]
    yield bodies


def error_of(http: Request, error: Exception) -> dict[str, Any]:
    """What is told of an error where a status was sent before; the log gets what nobody foresaw."""
    if isinstance(error, RequestError):
        records.failed(error.code)
        return error.body
    logger.error("The stream of request %s failed", http.state.request_id, exc_info=error)
    records.failed("internal_error")
    return error_body(500, "internal_error", "The server failed on this request; its log says why.")


async def _predicted(desk: Desk, job: Job) -> Outcome:
    return _checked(desk, await asking.ask(desk.engine, job, desk.args))


def _checked(desk: Desk, outcome: Outcome) -> Outcome:
    if outcome.prediction is None:
        raise trouble_of(outcome, desk.args.retry_after_s)
    return outcome
