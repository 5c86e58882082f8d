"""What Serve's own proxy says when no ingress answers: in the one error shape, and when to come back.

A proxy loads this where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.ingress.proxy:middlewares`` is in the
environment of its node (``padt serve`` sets it for a local Ray). Answers of applications pass as they are.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.errors import error_response

RETRY_AFTER_S = 2
_LOST = (503, "ingress_lost", "The server stopped over this request.")
# Status of the proxy -> status, code and message for the client.
_WORDS = {
    404: (503, "not_served", "No application answers here: it is starting, or stopping."),
    408: (504, "timeout", "No answer within the server's time."),
    500: _LOST,
    503: (503, "overloaded", "The server takes no more requests at the moment."),
}


class ProxyErrors:
    """Rewrites the proxy's own refusals, which are plain text; those of the application are JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; Serve's own paths (``/-/routes``, ``/-/healthz``) keep their words."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            return await self._app(scope, receive, send)
        begun = refused = False

        async def refuse(answer: tuple[int, str, str]) -> None:
            nonlocal begun, refused
            begun = refused = True
            status, code, words = answer
            wait = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
            await error_response(status, code, f"{words} Try again in {RETRY_AFTER_S} s.", wait)(scope, receive, send)

        async def heard(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start" and message["status"] in _WORDS and _is_plain(message):
                await refuse(_WORDS[message["status"]])
            elif not refused:
                begun = True
                await send(message)

        await self._app(scope, receive, heard)
        if not begun:
            # The ingress has died over the request, of which the proxy says nothing at all.
            await refuse(_LOST)


def _is_plain(start: Message) -> bool:
    kinds = [value for name, value in start["headers"] if name.lower() == b"content-type"]
    return bool(kinds) and kinds[0].startswith(b"text/plain")


def middlewares() -> list[Middleware]:
    """Serve's proxy calls this when it starts."""
    return [Middleware(ProxyErrors)]
