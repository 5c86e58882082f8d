"""What happens to every request before a route sees it: its id, foreign origins, and whether its sender may ask."""

import ipaddress
import re
import uuid
from collections.abc import Iterable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import page
from serve.api.errors import error_response
from serve.ingress.keys import KeyRing
from serve.settings import ServerArgs

REQUEST_ID = "x-request-id"
_SANE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
# Whoever watches over the server, and whoever opens the page to enter a key, has none.
OPEN_PATHS = frozenset({*page.FILES, "/healthz", "/readyz", "/docs", "/openapi.json"})


class Gate:
    """ASGI application in front of another one.

    A request that passes has ``request_id`` and ``client`` (the name of its key, or empty) in ``scope["state"]``. Every
    answer names the request's id.
    """

    def __init__(self, app: ASGIApp, args: ServerArgs, keys: KeyRing, proxied: bool = False) -> None:
        """Stand before an application.

        Args:
            app: what a request that may pass reaches.
            args: which origins are let in, and whether strangers are.
            keys: who may ask.
            proxied: Serve's proxy is in front, which adds the id that a request comes with to the answer itself.
        """
        self._args = args
        self._proxied = proxied
        self._keys = keys
        self._app = app
        if args.allow_origins:
            self._app = CORSMiddleware(
                app,
                allow_origins=args.allow_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", REQUEST_ID],
                expose_headers=[REQUEST_ID, "retry-after"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        own = headers.get(REQUEST_ID.encode(), "")
        request_id = sane_id(own)
        state = scope.setdefault("state", {})
        state["request_id"], state["client"] = request_id, ""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and not (self._proxied and request_id == own):
                message = {**message, "headers": [*message["headers"], (REQUEST_ID.encode(), request_id.encode())]}
            await send(message)

        # The browser asks without a key whether it may ask with one.
        asks_ahead = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
        if not (asks_ahead or is_open(scope.get("path", "/").removeprefix(scope.get("root_path", "")))):
            if self._keys.needed:
                client = self._keys.name_of(headers.get(b"authorization", ""))
                if client is None:
                    message = "This server needs a key: send the header 'Authorization: Bearer KEY'."
                    refusal = error_response(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})
                    return await refusal(scope, receive, named)
                state["client"] = client
            elif not (self._args.allow_anyone or is_local(scope.get("client"))):
                message = (
                    "This server has no keys, so it answers its own machine only: set keys_file or PADT_API_KEYS, or "
                    "allow_anyone if everybody who reaches it may ask."
                )
                return await error_response(403, "no_keys", message)(scope, receive, named)
        await self._app(scope, receive, named)


def sane_id(own: str) -> str:
    """The id that a request came with, if it can stand in logs and headers, or a fresh one."""
    return own if _SANE_ID.fullmatch(own) else uuid.uuid4().hex


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_PATHS


def is_local(client: Iterable | None) -> bool:
    """Whether a peer ``(address, port)`` is this machine; one that is unknown is not."""
    address = str(next(iter(client or ()), ""))
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
