"""``POST /v1/predict``: questions about pictures, answered whole or bit by bit."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import Response

from padt.errors import UserError
from padt.inference.requests import ask
from serve.api.answers import AnswerBody, AnswersBody
from serve.api.bodies import FORM_TYPE, JSON_TYPE, check_accept, read_body
from serve.api.description import ERRORS, PREDICT_BODY, PREDICT_STREAM
from serve.api.errors import RequestError
from serve.api.events import HEARTBEAT, SSE_TYPE, Stream, event
from serve.api.pictures import Picture
from serve.api.rendering import Rendering
from serve.api.schemas import PredictRequest, Question, read_predict
from serve.ingress.answering import Piece, Prepared, bit_by_bit, error_of, whole
from serve.ingress.desk import Desk, desk_of
from serve.messages import Job
from serve.observability import records

router = APIRouter()


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
    with desk.body(request.state.client), records.timed("preprocess"):
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
        return together(asked, await whole(desk, await prepare(desk, http, asked, sources, began)))


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
            async with aclosing(bit_by_bit(desk, ready)) as parts:
                async for part in parts:
                    if part is None:
                        yield HEARTBEAT
                    elif isinstance(part, Piece):
                        yield event(part.name, {"answer": part.answer, **part.data})
                    else:
                        yield event("done", await asyncio.to_thread(together(asked, part).model_dump_json))
        except Exception as error:
            yield event("error", error_of(http, error))


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
    rendering = Rendering(desk.args.name, pictures, asked.mask, asked.score_threshold)
    return Prepared(jobs, [each.task for each in asked.asked], rendering, began, time.perf_counter() - began)


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


def together(asked: PredictRequest, bodies: list[AnswerBody]) -> AnswerBody | AnswersBody:
    """One answer as it is; answers to a list of questions as a list."""
    first = bodies[0]
    if asked.questions is None:
        return first
    return AnswersBody(model=first.model, version=first.version, fingerprint=first.fingerprint, answers=bodies)
