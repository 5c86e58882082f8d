"""``POST /v1/batch``: JSON lines in, JSON lines out, both while the other is still going on."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.api.batch import LINE_TYPES, Line, lines_of
from serve.api.bodies import Body, check_accept, content_type
from serve.api.description import BATCH_BODY, BATCH_STREAM, ERRORS
from serve.api.errors import RequestError, error_body
from serve.api.events import Stream
from serve.api.schemas import read_predict
from serve.ingress.desk import Desk, desk_of
from serve.ingress.predict import answered

logger = logging.getLogger("ray.serve")
router = APIRouter()
# Whoever sends all lines before reading an answer must not wait for a server that waits for its answers to be read.
_UNREAD_BYTES = 32 * 2**20
# A line that finds no place tries again after so long, and then ever more seldom.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0
_TAKEN = ("overloaded", "too_many_requests")


@router.post(
    "/v1/batch",
    response_class=Response,
    responses={**ERRORS, 200: BATCH_STREAM},
    openapi_extra={"requestBody": BATCH_BODY},
    summary="Ask many questions about many pictures",
)
async def batch(request: Request) -> Response:
    """Each line is a request of its own: one that is broken costs itself only. Answers come in order of completion."""
    desk = desk_of(request)
    check_accept(request, *LINE_TYPES)
    content_type(request, LINE_TYPES)
    return Stream(Batch(desk, request).answers(), LINE_TYPES[0], watch=False)


class Batch:
    """One batch on its way."""

    def __init__(self, desk: Desk, http: Request) -> None:
        self._desk = desk
        self._http = http
        self._free = asyncio.Semaphore(desk.args.max_batch_lines_at_once)
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._unread = 0
        self._read = asyncio.Event()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._ahead = 0
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone = False
        self._all_read = False

    async def answers(self) -> AsyncGenerator[bytes, None]:
        """The lines of the answer. Whoever goes away ends the work.

        Raises:
            RequestError: 503, before the first line: too many batches run.
        """
        with self._desk.batches.one(self._http.state.client):
            reading = [asyncio.create_task(self._receive()), asyncio.create_task(self._take_lines())]
            try:
                yield b""
                while not self._finished():
                    answer = await self._answers.get()
                    if answer is None:
                        continue
                    yield answer
                    self._unread -= len(answer)
                    self._read.set()
                for task in reading:
                    if task.done():
                        task.result()
            finally:
                for task in (*reading, *self._tasks):
                    task.cancel()

    def _finished(self) -> bool:
        return self._gone or (self._all_read and not self._tasks and self._answers.empty())

    async def _receive(self) -> None:
        """Read ahead, so that a client who goes is noticed while the lines that have come are still worked on."""
        while (message := await self._http.receive())["type"] != "http.disconnect":
            if chunk := message.get("body", b""):
                self._ahead += len(chunk)
                self._chunks.put_nowait(chunk)
            if not message.get("more_body", False):
                self._chunks.put_nowait(None)
            while self._ahead > self._desk.max_body_bytes:
                self._room.clear()
                await self._room.wait()
        self._gone = True
        self._answers.put_nowait(None)

    async def _received(self) -> AsyncGenerator[bytes, None]:
        while (chunk := await self._chunks.get()) is not None:
            self._ahead -= len(chunk)
            self._room.set()
            yield chunk

    async def _take_lines(self) -> None:
        args = self._desk.args
        try:
            async for line in lines_of(self._received(), self._desk.max_body_bytes, args.body_timeout_s):
                while self._unread > _UNREAD_BYTES:
                    self._read.clear()
                    await self._read.wait()
                await self._free.acquire()
                task = asyncio.create_task(self._answer(line))
                self._tasks.add(task)
                task.add_done_callback(self._done)
        finally:
            self._all_read = True
            self._answers.put_nowait(None)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free.release()
        self._answers.put_nowait(None)

    async def _answer(self, line: Line) -> None:
        try:
            status, body = 200, await self._answered(line)
        except RequestError as error:
            status, body = error.status, json.dumps(error.body)
        except Exception as error:
            logger.error("Line %d of request %s failed", line.number, self._http.state.request_id, exc_info=error)
            told = error_body(500, "internal_error", "The server failed on this line; its log says why.")
            status, body = 500, json.dumps(told)
        answer = line.answer(status, body)
        self._unread += len(answer)
        self._answers.put_nowait(answer)

    async def _answered(self, line: Line) -> str:
        """The answer to a line, as JSON; one that finds no place waits for it.

        Raises:
            RequestError: it cannot be answered.
        """
        asked, sources = read_predict(Body(await asyncio.to_thread(line.fields)))
        if asked.stream:
            raise RequestError(422, "invalid_request", "stream: a line of a batch is answered whole.", param="stream")
        began, wait = time.perf_counter(), _FIRST_WAIT_S
        while True:
            try:
                answer = await answered(self._desk, self._http, asked, sources, began)
                return await asyncio.to_thread(answer.model_dump_json)
            except RequestError as error:
                left = began + self._desk.args.request_timeout_s - time.perf_counter()
                if error.code not in _TAKEN or left < wait:
                    raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)
