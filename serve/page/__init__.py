"""The page at ``/``: files of this folder, sent with headers that let a browser load nothing else."""

from pathlib import Path

from fastapi import APIRouter, Request
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
router = APIRouter()


async def send_file(request: Request) -> Response:
    """A file of the page; 304 where the browser has it already."""
    file = FILES[request.scope["route"].path]
    response = await StaticFiles(directory=_FOLDER).get_response(file, request.scope)
    response.headers.update(HEADERS)
    return response


for _path in FILES:
    router.add_api_route(_path, send_file, methods=["GET", "HEAD"], include_in_schema=False)
