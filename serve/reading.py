"""Reading a request: its body under a size limit, as JSON or multipart, down to an upright image and a question."""

import base64
import binascii
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from PIL import Image
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from padt.data.image import open_image
from padt.errors import ImageError
from serve.schemas import PredictRequest, Question

_STATUS_OF_IMAGE_REASON = {"image_too_large": 413}


class RequestError(Exception):
    """A request that cannot be answered as it is.

    Attributes:
        status: HTTP status, 4xx.
        code: stable name for programs.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


async def read_request(request: Request, max_body_bytes: int) -> tuple[Question, bytes]:
    """The question of a request and its encoded image.

    Raises:
        RequestError: 413 for too large a body, 415 for a content type that is neither JSON nor multipart, 422 for
            fields that are missing, unknown or of the wrong kind, 400 for what cannot be read at all.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)
    stream = _limited(request, max_body_bytes)
    if kind == "application/json":
        body = b"".join([chunk async for chunk in stream])
        return read_json(body)
    if kind == "multipart/form-data":
        return await _read_multipart(request, stream)
    raise RequestError(
        415,
        "unsupported_content_type",
        f"Content type {kind or '(none)'!r} is not accepted: send application/json or multipart/form-data.",
    )


def read_json(body: bytes) -> tuple[Question, bytes]:
    """A JSON body as question and encoded image (see ``read_request`` for the errors)."""
    try:
        parsed = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from error
    text = parsed.image
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestError(422, "invalid_image", "The image's data URL must read data:image/...;base64,....")
    try:
        image = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            422, "invalid_image", f"The field 'image' is not base64 ({error}): encode the file's bytes."
        ) from error
    return parsed, image


def read_form(fields: Mapping[str, Any]) -> Question:
    """The text fields of a form as a question; ``names`` are separated by commas."""
    values: dict[str, Any] = dict(fields)
    if "names" in values:
        values["names"] = [name.strip() for name in str(values["names"]).split(",") if name.strip()]
    try:
        return Question.model_validate(values)
    except ValidationError as error:
        raise _invalid(error) from error


def read_image(encoded: bytes, max_pixels: int) -> Image.Image:
    """Decode an image: upright and RGB.

    Raises:
        RequestError: 422 where it is unreadable, 413 where it has more pixels than allowed.
    """
    try:
        return open_image(encoded, pixel_budget=max_pixels)
    except ImageError as error:
        raise RequestError(_STATUS_OF_IMAGE_REASON.get(error.reason, 422), error.reason, str(error)) from error


async def _read_multipart(request: Request, stream: AsyncGenerator[bytes, None]) -> tuple[Question, bytes]:
    try:
        form = await MultiPartParser(request.headers, stream, max_files=1, max_fields=16).parse()
    except (MultiPartException, KeyError) as error:
        detail = getattr(error, "message", str(error))
        raise RequestError(400, "invalid_form", f"The form cannot be read ({detail}): check its boundary.") from error
    try:
        upload = form.get("image")
        if not isinstance(upload, UploadFile):
            raise RequestError(422, "missing_image", "The form has no file 'image': add the picture as a file part.")
        image = await upload.read()
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
    finally:
        await form.close()
    return read_form(fields), image


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


def _invalid(error: ValidationError) -> RequestError:
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{place}: {message}" if place else message)
    return RequestError(422, "invalid_request", "; ".join(problems) + ".")
