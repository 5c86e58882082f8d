"""What Serve's own proxy says in the place of an ingress: in the one error shape, and when to come back.

It speaks where no ingress answers, and for a moment after an ingress has said that all its places are taken: the way to
the ingress and back costs ten times what the refusal does, and under overload takes that time from the answers.

A proxy loads this where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.ingress.proxy:middlewares`` is in the
environment of its node (``padt serve`` sets it for a local Ray). Answers of applications pass as they are.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.errors import error_response
from serve.ingress.gate import sane_id
from serve.observability.metrics import instrument

RETRY_AFTER_S = 2
# So long the proxy repeats a refusal for all places being taken. Fewer of them become free meanwhile than questions
# wait at the engine, which so never lacks work.
REPEAT_S = 0.05
_FULL = b'"code":"overloaded"'
_REQUEST_ID = b"x-request-id"
_LOST = (503, "ingress_lost", "The server stopped over this request.")
# Status of the proxy -> status, code and message for the client.
_WORDS = {
    404: (503, "not_served", "No application answers here: it is starting, or stopping."),
    408: (504, "timeout", "No answer within the server's time."),
    500: _LOST,
    503: (503, "overloaded", "The server takes no more requests at the moment."),
}


@dataclass(frozen=True)
class _Refusal:
    """An ingress's answer that all its places are taken.

    Attributes:
        headers, body: of the answer; without the request's id.
        until: when the ingress is asked again (``time.monotonic``).
    """

    headers: list[tuple[bytes, bytes]]
    body: bytes
    until: float


class ProxyErrors:
    """Rewrites the proxy's own refusals, which are plain text, and repeats those of an ingress that is full."""

    def __init__(self, app: ASGIApp, count: Callable[[str], None] = lambda path: None) -> None:
        """Stand before Serve's proxy.

        Args:
            app: the proxy.
            count: called with the path at each refusal that is repeated, of which no ingress hears.
        """
        self._app = app
        self._count = count
        # By path: only those of questions are ever full.
        self._full: dict[str, _Refusal] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; Serve's own paths (``/-/routes``, ``/-/healthz``) keep their words."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            return await self._app(scope, receive, send)
        full = self._full.get(scope["path"]) if scope["method"] == "POST" else None
        if full is not None and time.monotonic() < full.until:
            self._count(scope["path"])
            await send({"type": "http.response.start", "status": 503, "headers": [*full.headers, _id_of(scope)]})
            return await send({"type": "http.response.body", "body": full.body})
        begun = refused = False
        # The head of an answer 503, until its body says what it is about.
        head: list[tuple[bytes, bytes]] | None = None

        async def refuse(answer: tuple[int, str, str]) -> None:
            nonlocal begun, refused
            begun = refused = True
            status, code, words = answer
            wait = {_REQUEST_ID.decode(): _id_of(scope)[1].decode()}
            if status == 503:
                wait["Retry-After"] = str(RETRY_AFTER_S)
            await error_response(status, code, f"{words} Try again in {RETRY_AFTER_S} s.", wait)(scope, receive, send)

        async def heard(message: Message) -> None:
            nonlocal begun, head
            if message["type"] == "http.response.start" and message["status"] in _WORDS and _is_plain(message):
                await refuse(_WORDS[message["status"]])
            elif not refused:
                begun = True
                if message["type"] == "http.response.start":
                    head = message["headers"] if message["status"] == 503 else None
                elif head is not None:
                    self._remember(scope["path"], head, message.get("body", b""))
                    head = None
                await send(message)

        await self._app(scope, receive, heard)
        if not begun:
            # The ingress has died over the request, of which the proxy says nothing at all.
            await refuse(_LOST)

    def _remember(self, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        if _FULL in body:
            kept = [(name, value) for name, value in headers if name.lower() != _REQUEST_ID]
            self._full[path] = _Refusal(kept, body, time.monotonic() + REPEAT_S)


def _id_of(scope: Scope) -> tuple[bytes, bytes]:
    """The header that names a request: its own id, or a fresh one."""
    own: list[bytes] = [value for name, value in scope["headers"] if name.lower() == _REQUEST_ID]
    return _REQUEST_ID, sane_id(own[0].decode("latin-1") if own else "").encode()


def _is_plain(start: Message) -> bool:
    kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
    return bool(kinds) and kinds[0].startswith(b"text/plain")


def middlewares() -> list[Middleware]:
    """Serve's proxy calls this when it starts."""
    return [Middleware(ProxyErrors, count=_counter())]


def _counter() -> Callable[[str], None]:
    count = instrument("padt_refusals_repeated_total")
    return lambda path: count(1, {"path": path})
