"""Asking the engine: within a time limit, once more where an engine was lost, cancelled when nobody waits any more."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import replace
from typing import TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from serve.api.errors import RequestError
from serve.messages import Job, Outcome, StreamItem
from serve.observability import records
from serve.replica import routing
from serve.settings import ServerArgs

logger = logging.getLogger("ray.serve")

# What Serve raises where a replica is there no more, or not yet; and a stream that ends without its outcome.
LOST = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError, StopAsyncIteration)
TRIES = 2
Result = TypeVar("Result")


async def ask(engine: DeploymentHandle, job: Job, args: ServerArgs) -> Outcome:
    """The whole answer of a job. Whoever stops waiting for it has it cancelled at the engine.

    Raises:
        RequestError: 503, the engine was lost twice; 504, it took longer than ``args.request_timeout_s``.
    """
    deadline = asyncio.get_running_loop().time() + args.request_timeout_s
    for _ in range(TRIES):
        call = engine.options(session_id=_session(job)).answer.remote(job)
        try:
            outcome: Outcome = await _until(deadline, call, args)
        except LOST as error:
            _log_loss(job, error)
            continue
        except BaseException:
            call.cancel()
            raise
        if outcome.trouble != "lost":
            records.answered(job, outcome)
            return outcome
        _log_loss(job, outcome.message)
        job = replace(job, avoid=(*job.avoid, outcome.replica))
    raise lost(args)


async def ask_stream(engine: DeploymentHandle, job: Job, args: ServerArgs) -> AsyncGenerator[list[StreamItem], None]:
    """The answer of a job as it comes; the last item of all is the outcome.

    A job whose engine is lost is asked once more only where nothing had come of the answer. Closing the iterator
    (``contextlib.aclosing``) cancels the job at the engine.

    Raises:
        RequestError: 503, the engine was lost over a part of the answer, or twice; 504, the whole answer took longer
            than ``args.request_timeout_s``.
    """
    deadline = asyncio.get_running_loop().time() + args.request_timeout_s
    for _ in range(TRIES):
        started = False
        call = engine.options(stream=True, session_id=_session(job)).stream.remote(job)
        try:
            while True:
                items: list[StreamItem] = await _until(deadline, anext(call), args)
                end = items[-1]
                if isinstance(end, Outcome) and end.trouble == "lost":
                    _log_loss(job, end.message)
                    job = replace(job, avoid=(*job.avoid, end.replica))
                    break
                started = True
                if isinstance(end, Outcome):
                    # Whoever has the outcome may not come back.
                    records.answered(job, end)
                yield items
                if isinstance(end, Outcome):
                    return
        except LOST as error:
            _log_loss(job, error)
        except BaseException:
            call.cancel()
            raise
        if started:
            break
    raise lost(args)


def lost(args: ServerArgs) -> RequestError:
    """What a client is told whose answer got lost."""
    wait = args.retry_after_s
    return RequestError(503, "engine_lost", f"The engine stopped over this request: try again in {wait} s.", wait)


def _session(job: Job) -> str:
    return routing.session(job.picture_key, avoid=job.avoid)


def _log_loss(job: Job, cause: object) -> None:
    logger.warning("An engine was lost over request %s: %s", job.request_id, cause)


async def _until(deadline: float, waiting: Awaitable[Result], args: ServerArgs) -> Result:
    try:
        async with asyncio.timeout_at(deadline):
            return await waiting
    except TimeoutError as error:
        message = f"No answer within {args.request_timeout_s:g} s: ask for fewer tokens or try again later."
        raise RequestError(504, "timeout", message) from error
