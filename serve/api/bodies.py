"""Bodies of requests: read under limits of size and time, as JSON or as a form."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from serve.api.errors import RequestError
from serve.api.strict_json import parse_object

JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"
_FORM_FIELDS = 24


@dataclass(frozen=True)
class Body:
    """What a request has sent.

    Attributes:
        fields: of the JSON object, or the texts of the form.
        files: contents of the form's files ``image``, in order.
        form: it is a form, in which everything is text.
    """

    fields: dict[str, Any]
    files: list[bytes] = field(default_factory=list)
    form: bool = False


async def read_body(
    request: Request, max_bytes: int, timeout_s: float, accepted: tuple[str, ...] = (JSON_TYPE,), max_files: int = 1
) -> Body:
    """The body of a request.

    Args:
        request: its body is not read yet.
        max_bytes: longest body.
        timeout_s: within which the whole body must have come.
        accepted: content types.
        max_files: of a form.

    Raises:
        RequestError: 408 for a body that is too slow, 413 for one that is too large, 415 for another content type or a
            compressed body, 422 for a form without what it needs, 400 for what cannot be read at all.
    """
    kind = content_type(request, accepted)
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    stream = _limited(request, max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            if kind == FORM_TYPE:
                return await _read_form(request, stream, max_files)
            content = b"".join([chunk async for chunk in stream])
    except TimeoutError as error:
        raise too_slow(timeout_s) from error
    except ClientDisconnect as error:
        raise RequestError(400, "disconnected", "The request ended before its body did: send it whole.") from error
    # Many megabytes of base64 would hold up every other request of this process.
    return Body(await asyncio.to_thread(parse_object, content))


def content_type(request: Request, accepted: tuple[str, ...]) -> str:
    """The content type of a request, without parameters.

    Raises:
        RequestError: 415, it is none of those that are accepted, several, in a character set that is not UTF-8, or of
            a compressed body.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _unsupported(f"Bodies in content-encoding {encoding[:40]!r} are not accepted: send it uncompressed.")
    given = request.headers.getlist("content-type")
    kind, _, rest = (given[0] if given else "").partition(";")
    kind = kind.strip().lower()
    if len(given) > 1 or kind not in accepted:
        told = ", ".join(given)[:80] or "(none)"
        raise _unsupported(f"Content type {told!r} is not accepted: send {' or '.join(accepted)}.")
    for parameter in rest.lower().split(";"):
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip(' "') not in ("utf-8", "utf8", "us-ascii"):
            raise _unsupported(f"The character set {value[:40]!r} is not accepted: send UTF-8.")
    return kind


def check_accept(request: Request, *kinds: str) -> None:
    """Refuse a client that would take none of what a route answers with.

    Raises:
        RequestError: 406.
    """
    ranges = [part.partition(";")[0].strip().lower() for part in ",".join(request.headers.getlist("accept")).split(",")]
    wanted = [part for part in ranges if part]
    families = {f"{kind.partition('/')[0]}/*" for kind in kinds}
    if wanted and not {"*/*", "*", *kinds, *families}.intersection(wanted):
        message = f"This path answers with {' or '.join(kinds)}, none of which the header Accept takes: leave it out."
        raise RequestError(406, "not_acceptable", message)


def too_slow(timeout_s: float) -> RequestError:
    """The error about a body that does not come."""
    message = f"The request did not arrive within {timeout_s:g} s: send a smaller picture."
    return RequestError(408, "body_too_slow", message)


async def _read_form(request: Request, stream: AsyncGenerator[bytes, None], max_files: int) -> Body:
    try:
        form = await MultiPartParser(
            request.headers, stream, max_files=max_files, max_fields=_FORM_FIELDS, max_part_size=2**20
        ).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        detail = getattr(error, "message", str(error))
        raise RequestError(400, "invalid_form", f"The form cannot be read ({detail}): check its boundary.") from error
    fields: dict[str, Any] = {}
    files = []
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in ("image", "images"):
                    message = f"The form has a file {name[:80]!r}: name files 'image'."
                    raise RequestError(422, "invalid_form", message, param=name[:80])
                files.append(await value.read())
            elif name in fields:
                raise RequestError(422, "invalid_form", f"The field {name[:80]!r} comes twice.", param=name[:80])
            else:
                fields[name] = value
    finally:
        await form.close()
    return Body(fields, files, form=True)


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    # The declared length may be missing or wrong, so what arrives is counted too.
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


def _too_large(max_bytes: int) -> RequestError:
    limit = max_bytes / 1e6
    return RequestError(413, "body_too_large", f"The request is larger than {limit:g} MB: send a smaller picture.")


def _unsupported(message: str) -> RequestError:
    return RequestError(415, "unsupported_content_type", message)
