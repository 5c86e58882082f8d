"""The page at ``/``: files of this folder, sent with headers that let a browser load nothing else."""

import os
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles

_FOLDER = Path(__file__).parent
_SCRIPTS = ("page.js", "answers.js", "drawing.js", "masks.js", "picture.js", "text.js")
_SAMPLES = ("one-shape.png", "two-shapes.png", "three-shapes.png")
# Paths of the page on the server, and the files behind them.
FILES = (
    {"/": "index.html", "/page.css": "page.css"}
    | {f"/{name}": name for name in _SCRIPTS}
    | {f"/samples/{name}": f"samples/{name}" for name in _SAMPLES}
)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    # Kept, but asked about each time (by ETag), so that page and script are never of two versions.
    "Cache-Control": "no-cache",
}


def add_page(api: FastAPI) -> None:
    """Add the page's routes to an application. They are no part of its description for programs."""
    for path in FILES:
        api.add_route(path, _send, methods=["GET"], include_in_schema=False)


async def _send(request: Request) -> Response:
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    response = await StaticFiles(directory=_FOLDER).get_response(os.path.normpath(FILES[path]), request.scope)
    response.headers.update(HEADERS)
    return response
