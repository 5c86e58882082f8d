"""Makes the record of each request, and tells the observers when it is over."""

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.observability.records import Observers, RequestRecord, recording

# Asked every few seconds by machines; nobody wants to count or read that.
QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
# What nginx calls it when the client has gone; no client ever sees it.
CLIENT_GONE = 499


class Recorder:
    """ASGI application in front of another one.

    What is behind it finds the record through ``serve.observability.records``, and leaves ``request_id``, ``client``
    and ``error_code`` in ``scope["state"]``.
    """

    def __init__(self, app: ASGIApp, observers: Observers) -> None:
        """Stand before an application."""
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and tell of it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope.get("path", "/").removeprefix(scope.get("root_path", "")) or "/"
        if path in QUIET_PATHS:
            return await self._app(scope, receive, send)
        record = RequestRecord(scope["method"], path, self._observers)
        state = scope.setdefault("state", {})
        began = time.perf_counter()

        sent = False

        async def seen(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)
            sent = message["type"] == "http.response.body" and not message.get("more_body", False)

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not sent:
                # Whoever streams an answer may end it without an error.
                record.code = "disconnected"
            return message

        try:
            with recording(record):
                await self._app(scope, heard, seen)
        except asyncio.CancelledError:
            record.status, record.code = CLIENT_GONE, "disconnected"
            raise
        except Exception:
            # Answered farther out, where whatever nobody foresaw is caught.
            record.status, record.code = 500, "internal_error"
            raise
        finally:
            record.request_id, record.client = state.get("request_id", ""), state.get("client", "")
            record.code = record.code or state.get("error_code", "")
            record.seconds["total"] = time.perf_counter() - began
            self._observers.ended(record)
