"""``POST /v1/predict``: questions about pictures, answered whole or bit by bit."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from padt.errors import UserError
from padt.inference.events import ObjectFound, TextPiece
from padt.inference.requests import ask
from serve.api.answers import AnswerBody, AnswersBody, PredictedObjectBody, answer_body, object_body
from serve.api.bodies import FORM_TYPE, JSON_TYPE, check_accept, read_body
from serve.api.description import ERRORS, PREDICT_BODY, PREDICT_STREAM
from serve.api.errors import RequestError, error_body
from serve.api.events import HEARTBEAT, SSE_TYPE, Stream, event, merged
from serve.api.pictures import Picture
from serve.api.schemas import PredictRequest, Question, read_predict
from serve.ingress import asking
from serve.ingress.desk import Desk, desk_of, trouble_of
from serve.messages import Job, Outcome, StreamItem
from serve.observability import records

logger = logging.getLogger("ray.serve")
router = APIRouter()


@dataclass
class Prepared:
    """Questions that are ready for the engine.

    Attributes:
        request: what was asked for.
        pictures: what it is about.
        jobs: one for each question.
        began: when the request came (``time.perf_counter``).
        decode_s: how long it took to get so far.
    """

    request: PredictRequest
    pictures: list[Picture]
    jobs: list[Job]
    began: float
    decode_s: float = 0.0


@router.post(
    "/v1/predict",
    response_model=AnswerBody | AnswersBody,
    responses={**ERRORS, 200: PREDICT_STREAM},
    openapi_extra={"requestBody": PREDICT_BODY},
    summary="Ask about pictures",
)
async def predict(request: Request) -> Response:
    """Detect classes, find what a sentence describes, caption, or send a free prompt; one question or several."""
    began = time.perf_counter()
    desk = desk_of(request)
    check_accept(request, JSON_TYPE, SSE_TYPE)
    with desk.bodies.one(), records.timed("preprocess"):
        body = await read_body(
            request, desk.max_body_bytes, desk.args.body_timeout_s, (JSON_TYPE, FORM_TYPE), desk.args.max_images
        )
    asked, sources = read_predict(body)
    if asked.stream:
        return Stream(streamed(desk, request, asked, sources, began), SSE_TYPE)
    answer = await answered(desk, request, asked, sources, began)
    # Masks make bodies large, so they are written by pydantic directly, once, and not in the event loop.
    with records.timed("encode"):
        return Response(await asyncio.to_thread(answer.model_dump_json), media_type=JSON_TYPE)


async def answered(
    desk: Desk, http: Request, asked: PredictRequest, sources: Sequence[str | bytes], began: float
) -> AnswerBody | AnswersBody:
    """The whole answer to a request.

    Raises:
        RequestError: it cannot be answered, now or ever.
    """
    # Whoever cannot be answered now is told so before the picture costs anything.
    with desk.places(len(asked.asked), http.state.client):
        ready = await prepare(desk, http, asked, sources, began)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(outcome_of(desk, job)) for job in ready.jobs]
        except ExceptionGroup as errors:
            # The first is the reason why the others were given up.
            raise errors.exceptions[0] from errors
        with records.timed("encode"):
            bodies = [
                await asyncio.to_thread(whole_answer, desk.args.name, ready, number, task.result())
                for number, task in enumerate(tasks)
            ]
    return together(ready, bodies)


async def outcome_of(desk: Desk, job: Job) -> Outcome:
    """An outcome with a prediction.

    Raises:
        RequestError: there is none.
    """
    outcome = await asking.ask(desk.engine, job, desk.args)
    if outcome.prediction is None:
        raise trouble_of(outcome, desk.args.retry_after_s)
    return outcome


async def streamed(
    desk: Desk, http: Request, asked: PredictRequest, sources: Sequence[str | bytes], began: float
) -> AsyncGenerator[bytes, None]:
    """The server-sent events of a request's answer.

    Raises:
        RequestError: before the first bytes, where it cannot be answered, now or ever; later it becomes an event.
    """
    with desk.places(len(asked.asked), http.state.client):
        ready = await prepare(desk, http, asked, sources, began)
        # Something at once, so that everybody on the way knows that there is an answer.
        yield HEARTBEAT
        try:
            answers = [Answering(ready, number) for number in range(len(ready.jobs))]
            outcomes: dict[int, Outcome] = {}
            async for some in merged([asking.ask_stream(desk.engine, job, desk.args) for job in ready.jobs]):
                if some is None:
                    yield HEARTBEAT
                    continue
                number, items = some
                end = items[-1]
                if isinstance(end, Outcome):
                    if end.prediction is None:
                        raise trouble_of(end, desk.args.retry_after_s)
                    outcomes[number] = end
                for part in await asyncio.to_thread(answers[number].take, items):
                    yield part
            bodies = [
                await asyncio.to_thread(whole_answer, desk.args.name, ready, number, outcomes[number])
                for number in range(len(ready.jobs))
            ]
            yield event("done", await asyncio.to_thread(together(ready, bodies).model_dump_json))
        except RequestError as error:
            records.failed(error.code)
            yield event("error", error.body)
        except Exception as error:
            logger.error("The stream of request %s failed", http.state.request_id, exc_info=error)
            records.failed("internal_error")
            message = "The server failed on this request; its log says why."
            yield event("error", error_body(500, "internal_error", message))


async def prepare(
    desk: Desk, http: Request, asked: PredictRequest, sources: Sequence[str | bytes], began: float
) -> Prepared:
    """Open the pictures once, and make a job of each question.

    Raises:
        RequestError: a picture or a question is not what it should be.
    """
    with records.timed("preprocess"):
        pictures = await desk.pictures(sources)
    jobs = [to_job(desk, http, asked, question, pictures) for question in asked.asked]
    return Prepared(asked, pictures, jobs, began, time.perf_counter() - began)


def to_job(desk: Desk, http: Request, asked: PredictRequest, question: Question, pictures: Sequence[Picture]) -> Job:
    """A question as the engine takes it.

    Raises:
        RequestError: 422, its words cannot be asked.
    """
    try:
        words = ask(question.task, question.words)
    except UserError as error:
        raise RequestError(422, "invalid_request", str(error)) from error
    length = len(str(words.prompt).encode("utf-8", "replace"))
    return desk.job(http, words, pictures, asked, asked.max_new_tokens, asked.mask != "none", length)


@dataclass
class Answering:
    """An answer on its way: turns what the engine says into events.

    Attributes:
        ready: what was asked.
        number: of the question.
    """

    ready: Prepared
    number: int
    _written: int = field(default=0, init=False)
    _found: int = field(default=0, init=False)

    def take(self, items: Sequence[StreamItem]) -> list[bytes]:
        """The events of what the engine has said."""
        events = []
        for item in items:
            if isinstance(item, TextPiece):
                events.append(event("text", {"answer": self.number, "text": item.text}))
                self._written += len(item.text)
            elif isinstance(item, ObjectFound) and item.object.score >= self.ready.request.score_threshold:
                place = {"answer": self.number, "number": self._found, "at": self._written}
                body = object_of(self.ready, item.object.to_dict())
                events.append(event("object", {**place, "object": body.model_dump(mode="json")}))
                self._found += 1
        return events


def object_of(ready: Prepared, found: dict[str, Any]) -> PredictedObjectBody:
    """An object in pixels of the picture as it came."""
    picture = ready.pictures[found["image"]]
    return object_body(found, picture.image.size, picture.size, ready.request.mask)


def whole_answer(name: str, ready: Prepared, number: int, outcome: Outcome) -> AnswerBody:
    """An outcome with a prediction as the body of an answer."""
    began = time.perf_counter()
    assert outcome.prediction is not None
    least = ready.request.score_threshold
    objects = [object_of(ready, found) for found in outcome.prediction["objects"] if found["score"] >= least]
    sizes = [picture.size for picture in ready.pictures]
    body = answer_body(name, ready.request.asked[number].task, outcome, objects, sizes)
    now = time.perf_counter()
    times = {"encode": now - began, "total": now - ready.began}
    body.milliseconds = {
        "decode": round(ready.decode_s * 1e3, 1),
        **body.milliseconds,
        **{phase: round(seconds * 1e3, 1) for phase, seconds in times.items()},
    }
    return body


def together(ready: Prepared, bodies: list[AnswerBody]) -> AnswerBody | AnswersBody:
    """One answer as it is; answers to a list of questions as a list."""
    if ready.request.questions is None:
        return bodies[0]
    first = bodies[0]
    return AnswersBody(model=first.model, version=first.version, fingerprint=first.fingerprint, answers=bodies)
