"""Server-sent events: how they are written, merged from several answers, and sent until the client goes."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SSE_TYPE = "text/event-stream"
# Proxies close connections over which nothing comes; a comment is no event.
HEARTBEAT_S = 15.0
HEARTBEAT = b": still here\n\n"
Item = TypeVar("Item")


def event(name: str, data: str | Mapping[str, Any]) -> bytes:
    """An event; ``data`` is JSON in one line, or becomes it. An empty name is left out."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"{f'event: {name}' + chr(10) if name else ''}data: {text}\n\n".encode()


async def merged(
    sources: Sequence[AsyncGenerator[Item, None]], heartbeat_s: float = HEARTBEAT_S
) -> AsyncGenerator[tuple[int, Item] | None, None]:
    """What several iterators yield, as it comes.

    Closing this one closes them all.

    Yields:
        The iterator's number and its item; None where nothing has come for ``heartbeat_s``.

    Raises:
        Exception: what one of them raises.
    """
    # Bounded, so that whoever reads slowly is written for slowly.
    items: asyncio.Queue[tuple[int, Item] | BaseException | None] = asyncio.Queue(maxsize=len(sources) + 8)

    async def pump(number: int, source: AsyncGenerator[Item, None]) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    await items.put((number, item))
        except Exception as error:
            await items.put(error)
        else:
            await items.put(None)

    tasks = [asyncio.create_task(pump(number, source)) for number, source in enumerate(sources)]
    left = len(tasks)
    try:
        while left:
            try:
                item = await asyncio.wait_for(items.get(), heartbeat_s)
            except TimeoutError:
                yield None
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


class Stream(Response):
    """An answer that is sent as it is made. What is raised before its first bytes becomes an answer of its own."""

    def __init__(self, parts: AsyncGenerator[bytes, None], media_type: str, watch: bool = True) -> None:
        """Send nothing yet.

        Args:
            parts: bytes as they come; closed when the client has gone.
            media_type: of the whole.
            watch: look for the client's leaving; whoever reads the request's body on the way must do it itself.
        """
        super().__init__(media_type=media_type, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._parts = parts
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make and send the answer."""
        failed: Exception | None = None
        async with anyio.create_task_group() as group:
            if self._watch:
                group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
            try:
                await self._send_all(send)
            except Exception as error:
                # The group would wrap it, and the handlers of errors would not know it.
                failed = error
            group.cancel_scope.cancel()
        if failed is not None:
            raise failed

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._parts) as parts:
            first = await anext(parts)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
