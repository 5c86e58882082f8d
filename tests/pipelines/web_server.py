"""A small web server with the moods of real ones."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Web:
    """A server over a folder.

    Attributes:
        url: of the folder.
        moods: answers to the next requests in place of the files: codes, or codes with headers; None is the file.
        refused: names that are answered with 403.
        ranges: whether ranges are understood.
        asked: paths that were asked for, as they came.
    """

    url: str
    moods: list[int | tuple[int, dict[str, str]] | None] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    ranges: bool = False
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """Serve a folder on this machine until the block ends."""
    web = Web("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked.append(self.path)
            mood = web.moods.pop(0) if web.moods else None
            if mood is not None:
                self._answer(*((mood, {}) if isinstance(mood, int) else mood))
                return
            name = unquote(urlsplit(self.path).path).lstrip("/")
            if name in web.refused:
                self._answer(403)
            elif not (folder / name).is_file():
                self._answer(404)
            else:
                self._file((folder / name).read_bytes())

        def do_HEAD(self) -> None:
            path = folder / unquote(urlsplit(self.path).path).lstrip("/")
            self._answer(200 if path.is_file() else 404, size=path.stat().st_size if path.is_file() else 0)

        def _file(self, content: bytes) -> None:
            asked = self.headers.get("Range")
            if not web.ranges or asked is None:
                self._answer(200, content=content)
                return
            start, end = (int(each) for each in asked.removeprefix("bytes=").split("-"))
            if start >= len(content):
                self._answer(416)
            else:
                self._answer(206, content=content[start : end + 1])

        def _answer(
            self, code: int, headers: dict[str, str] | None = None, content: bytes = b"", size: int = 0
        ) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(size or len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
