"""The HTTP side without Ray: the routes on an engine in this process, by function call or behind a real socket."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.ingress.application import application
from serve.ingress.desk import Desk
from serve.ingress.gate import Gate
from serve.ingress.keys import KEYS_VARIABLE, KeyRing
from serve.settings import ServerArgs
from tests.serve.fake_engine import Answers


class Streaming:
    """A streaming call, as Serve's handles give it."""

    def __init__(self, items: AsyncIterator[Any]) -> None:
        self._items = items
        self._taking: asyncio.Task | None = None
        self._cancelled = False

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._closing = asyncio.ensure_future(self._close())

    async def _close(self) -> None:
        if self._taking is not None and not self._taking.done():
            self._taking.cancel()
            await asyncio.wait([self._taking])
        await self._items.aclose()  # type: ignore[attr-defined]

    async def __anext__(self) -> Any:
        self._taking = asyncio.ensure_future(anext(self._items))  # type: ignore[arg-type]
        return await asyncio.shield(self._taking)


class _Method:
    def __init__(self, start: Any) -> None:
        self.remote = start


class Handle:
    """What a deployment handle offers, for an engine in this process."""

    def __init__(self, engine: Answers) -> None:
        self.answer = _Method(lambda job: asyncio.ensure_future(engine.answer(job)))
        self.stream = _Method(lambda job: Streaming(engine.stream(job)))
        self.state = _Method(lambda: asyncio.ensure_future(engine.state()))

    def options(self, **options: Any) -> "Handle":
        return self


def served(engine: Answers, args: ServerArgs, keys: str = "") -> ASGIApp:
    """The application as a replica runs it, its gate included; ``keys`` as in the environment."""
    gate = Gate(application(), args, KeyRing(None, {KEYS_VARIABLE: keys}))
    desks: list[Desk] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await gate(scope, receive, send)
        # Made where the loop runs.
        if not desks:
            desks.append(Desk(Handle(engine), args))
        scope.setdefault("state", {})["desk"] = desks[0]
        await gate(scope, receive, send)

    app.desks = desks  # type: ignore[attr-defined]
    return app


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """The application behind a socket of this machine; gives its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([taken],), daemon=True)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(timeout=60)


def connect(url: str) -> httpx.Client:
    """A client without the proxies of the environment."""
    return httpx.Client(base_url=url, timeout=60, trust_env=False)
