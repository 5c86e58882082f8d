"""``POST /v1/chat/completions``: conversations, in the shapes of OpenAI's API."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from padt.errors import UserError
from padt.inference.requests import chat_request
from serve.api.bodies import JSON_TYPE, check_accept, read_body
from serve.api.chat import ChatRequest, ChatResponse, Completion, read_chat
from serve.api.description import CHAT_BODY, CHAT_STREAM, ERRORS
from serve.api.errors import RequestError
from serve.api.events import HEARTBEAT, SSE_TYPE, Stream, event
from serve.api.pictures import is_address
from serve.api.rendering import Rendering
from serve.api.schemas import visible
from serve.ingress.answering import Piece, Prepared, bit_by_bit, error_of, whole
from serve.ingress.desk import Desk, desk_of
from serve.observability import records

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    response_model=ChatResponse,
    responses={**ERRORS, 200: CHAT_STREAM},
    openapi_extra={"requestBody": CHAT_BODY},
    summary="Go on with a conversation about pictures",
)
async def chat(request: Request) -> Response:
    """OpenAI's shapes: its clients work here. Objects come in the field `padt` of the message."""
    began = time.perf_counter()
    desk = desk_of(request)
    check_accept(request, JSON_TYPE, SSE_TYPE)
    with desk.body(request.state.client), records.timed("preprocess"):
        body = await read_body(request, desk.max_body_bytes, desk.args.body_timeout_s)
    asked = read_chat(body.fields)
    if asked.model != desk.args.name:
        message = f"The model {asked.model[:80]!r} is not here: ask for {desk.args.name!r}."
        raise RequestError(404, "model_not_found", message, param="model")
    about = Completion.of(request.state.request_id, desk.args.name)
    if asked.stream:
        return Stream(streamed(desk, request, asked, about, began), SSE_TYPE)
    with openai_statuses(), desk.places(1, request.state.client):
        (answer,) = await whole(desk, await prepare(desk, request, asked, began))
    with records.timed("encode"):
        return Response(await asyncio.to_thread(about.whole(answer).model_dump_json), media_type=JSON_TYPE)


async def streamed(
    desk: Desk, http: Request, asked: ChatRequest, about: Completion, began: float
) -> AsyncGenerator[bytes, None]:
    """The server-sent events of an answer.

    Raises:
        RequestError: before the first bytes, where it cannot be answered, now or ever; later it becomes an event.
    """
    with desk.places(1, http.state.client):
        with openai_statuses():
            ready = await prepare(desk, http, asked, began)
        yield event("", about.piece({"role": "assistant", "content": ""}))
        try:
            async with aclosing(bit_by_bit(desk, ready)) as parts:
                async for part in parts:
                    if part is None:
                        yield HEARTBEAT
                    elif isinstance(part, Piece):
                        delta = {"content": part.data["text"]} if part.name == "text" else {"padt": part.data}
                        yield event("", about.piece(delta))
                    else:
                        (answer,) = part
                        body = await asyncio.to_thread(answer.model_dump, mode="json")
                        yield event("", about.piece({"padt": {"answer": body}}, answer.finish_reason))
                        if asked.stream_options is not None and asked.stream_options.include_usage:
                            yield event("", about.usage(answer.usage))
                        yield event("", "[DONE]")
        except Exception as error:
            yield event("", error_of(http, error))


async def prepare(desk: Desk, http: Request, asked: ChatRequest, began: float) -> Prepared:
    """Open the pictures, and make a job of the conversation.

    Raises:
        RequestError: 422, a picture or a turn is not what it should be.
    """
    sources = asked.sources
    for place, url in sources.items():
        if not (is_address(url) or url[:5].lower() == "data:"):
            message = f"{place}: this is no data URL: send data:image/...;base64,...."
            raise RequestError(422, "invalid_image", message, param=place)
    with records.timed("preprocess"):
        pictures = await desk.pictures(list(sources.values()), list(sources))
    left = iter(pictures)
    try:
        _, conversation = chat_request(asked.plain(lambda: next(left).image), files=False)
    except UserError as error:
        raise RequestError(422, "invalid_request", str(error), param="messages") from error
    turns: Any = conversation.prompt
    try:
        visible(turns[-1].text)
    except ValueError as error:
        raise RequestError(422, "invalid_request", f"The last message {error}.", param="messages") from error
    length = sum(len(turn.text.encode("utf-8")) for turn in turns)
    job = desk.job(http, conversation, pictures, asked.sampling, asked.longest, asked.grounding.mask != "none", length)
    rendering = Rendering(desk.args.name, pictures, asked.grounding.mask, asked.grounding.score_threshold)
    return Prepared([job], ["chat"], rendering, began, time.perf_counter() - began)


@contextmanager
def openai_statuses() -> Iterator[None]:
    """OpenAI's API knows no 422: what is wrong with a request is a 400."""
    try:
        yield
    except RequestError as error:
        if error.status != 422:
            raise
        raise RequestError(400, error.code, str(error), param=error.param) from error
