"""Files on web servers, read from the beginning on, whatever the network does in the middle."""

import io
from typing import Any

from pipelines.io.transport import patiently, status_of, transport_errors

# Bytes that are asked for at once.
_BLOCK_BYTES = 16 * 2**20
# Parts of a file that was packed for the way could not be unpacked.
_AS_IT_IS = {"Accept-Encoding": "identity"}


def fetch(fs: Any, url: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end`` of a file on the web; all of it from servers that know no ranges.

    Raises:
        FileNotFoundError, OSError, UserError: see ``pipelines.io.transport.patiently``.
    """

    def request() -> bytes:
        try:
            return bytes(fs.cat_file(url, start=start, end=end, headers=_AS_IT_IS))
        except transport_errors() as error:
            if status_of(error) == 416:  # The file ends before the range.
                return b""
            raise

    return patiently(url, request)


class WebFile(io.RawIOBase):
    """A file on the web to be read once, block by block; each block is asked for until it is there."""

    def __init__(self, fs: Any, url: str) -> None:
        self._fs, self._url = fs, url
        self._block = memoryview(b"")
        self._next = 0
        self._whole = False
        # A file that cannot be had is an error of whoever opens it.
        self._fetch()

    def readable(self) -> bool:
        """Always: the file is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Next bytes of the file, as many as are at hand; 0 at its end."""
        if not self._block and not self._whole:
            self._fetch()
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._block))
        view[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def _fetch(self) -> None:
        content = fetch(self._fs, self._url, self._next, self._next + _BLOCK_BYTES)
        self._whole = len(content) != _BLOCK_BYTES
        if not self._whole and not self._next:
            # A server that knows no ranges would give a file of just this size again and again.
            size = patiently(self._url, lambda: self._fs.info(self._url)["size"])
            self._whole = size == _BLOCK_BYTES
        self._next += len(content)
        self._block = memoryview(content)
