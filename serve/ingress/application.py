"""The application of an ingress: its routes, and the one shape of everything that goes wrong in them."""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from padt import __version__
from serve import page
from serve.api.errors import RequestError, error_response
from serve.ingress import batch, chat, predict, status

logger = logging.getLogger("ray.serve")


def application() -> FastAPI:
    """Routes and handlers of errors. Requests must bring a desk in their state (``serve.ingress.desk.desk_of``)."""
    app = FastAPI(
        title="PaDT",
        version=__version__,
        description="Ask about pictures; answers are grounded in their patches: text, boxes, masks and Visual "
        "Reference Tokens. Boxes are x0, y0, x1, y1 in pixels of the upright image.",
        # FastAPI's own pages load their scripts from outside, and are blank where there is no way there.
        docs_url=None,
        redoc_url=None,
        # A redirection would name the address that the proxy sees.
        redirect_slashes=False,
        exception_handlers={RequestError: request_error, HTTPException: http_error},
    )
    app.add_middleware(Unforeseen)
    for part in (predict, chat, batch, status, page):
        app.include_router(part.router)
    return app


async def request_error(request: Request, error: RequestError) -> JSONResponse:
    """What a client can mend, or must wait for."""
    wait = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return error_response(error.status, error.code, str(error), wait, error.param)


async def http_error(request: Request, error: HTTPException) -> JSONResponse:
    """A path that is not there, or a method that it does not take."""
    phrase = HTTPStatus(error.status_code).phrase
    message = f"{request.method[:20]} {request.url.path[:200]}: {phrase}. /docs says what there is."
    return error_response(error.status_code, phrase.lower().replace(" ", "_"), message, dict(error.headers or {}))


class Unforeseen:
    """Answers where something failed that nobody foresaw: details go to the log, not to the client.

    Starlette's handler of such errors raises them once more, and servers close the connection over that, under the next
    request of the same client.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        started = False

        async def seen(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, seen)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            logger.error("Request to %s failed", scope.get("path"), exc_info=error)
            message = "The server failed on this request; its log says why."
            await error_response(500, "internal_error", message)(scope, receive, send)
