"""JSON lines of ``/v1/batch``: cut out of what arrives, read, and written."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serve.api.bodies import too_slow
from serve.api.errors import RequestError
from serve.api.schemas import validated
from serve.api.strict_json import parse_object

LINE_TYPES = ("application/jsonl", "application/x-ndjson")


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="forbid")

    custom_id: str | None = Field(None, max_length=512)
    body: dict[str, Any]


@dataclass
class Line:
    """A line as it came.

    Attributes:
        number: counted from 1, blank lines included.
        content: without its end.
        error: why it was not kept.
        custom_id: once it is known.
    """

    number: int
    content: bytes = field(default=b"", repr=False)
    error: RequestError | None = None
    custom_id: str | None = None

    def fields(self) -> dict[str, Any]:
        """The request of the line; finds out ``custom_id`` on the way.

        Raises:
            RequestError: 4xx, the line is none.
        """
        if self.error is not None:
            raise self.error
        values = parse_object(self.content)
        if isinstance(own := values.get("custom_id"), str):
            self.custom_id = own[:512]
        return validated(_Envelope, values).body

    def answer(self, status: int, body: str) -> bytes:
        """The line that answers this one; ``body`` is JSON."""
        head = json.dumps({"custom_id": self.custom_id, "line": self.number, "status": status})
        return f'{head[:-1]}, "body": {body}}}\n'.encode()


async def lines_of(chunks: AsyncGenerator[bytes, None], max_bytes: int, timeout_s: float) -> AsyncGenerator[Line, None]:
    """The lines of a body as they come, but for blank ones.

    One that is longer than ``max_bytes`` is passed over and has an error. Where nothing comes for ``timeout_s``, that
    is the error of the last line.
    """
    number, held, too_long = 1, bytearray(), False

    def cut(end: int) -> Line:
        nonlocal number, too_long
        line = Line(number, bytes(held[:end]).strip())
        if too_long or len(line.content) > max_bytes:
            message = f"The line is larger than {max_bytes / 1e6:g} MB: send a smaller picture."
            line = Line(number, b"", RequestError(413, "body_too_large", message))
        number, too_long = number + 1, False
        del held[: end + 1]
        return line

    while True:
        try:
            async with asyncio.timeout(timeout_s):
                chunk = await anext(chunks, None)
        except TimeoutError:
            yield Line(number, b"", too_slow(timeout_s))
            return
        if chunk is None:
            break
        searched = len(held)
        held += chunk
        while (end := held.find(b"\n", searched)) >= 0:
            searched = 0
            line = cut(end)
            if line.content or line.error:
                yield line
        if len(held) > max_bytes:
            too_long = True
            held.clear()
    line = cut(len(held))
    if line.content or line.error:
        yield line
