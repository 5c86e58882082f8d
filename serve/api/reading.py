"""Reading a request: its body under a size limit, as JSON or multipart, down to an upright image and a question."""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from PIL import Image
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from padt.data.image import PATCH, ResizePolicy, open_image
from padt.errors import ImageError
from serve.api.errors import RequestError
from serve.api.schemas import PredictRequest, Question

_STATUS_OF_IMAGE_REASON = {"image_too_large": 413}
# Base64 as it comes: wrapped into lines, or with the letters that are safe in URLs.
_PLAIN_BASE64 = bytes.maketrans(b"-_", b"+/")
_SPACE = b" \t\r\n"


async def read_request(request: Request, max_body_bytes: int, timeout_s: float) -> tuple[Question, bytes]:
    """The question of a request and its encoded image.

    Args:
        request: its body is not read yet.
        max_body_bytes: longest body.
        timeout_s: within which the whole body must have come.

    Raises:
        RequestError: 408 for a body that is too slow, 413 for one that is too large, 415 for a content type that is
            neither JSON nor multipart, 422 for fields that are missing, unknown or of the wrong kind, 400 for what
            cannot be read at all.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)
    if kind not in ("application/json", "multipart/form-data"):
        raise RequestError(
            415,
            "unsupported_content_type",
            f"Content type {kind or '(none)'!r} is not accepted: send application/json or multipart/form-data.",
        )
    stream = _limited(request, max_body_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            if kind == "multipart/form-data":
                return await _read_multipart(request, stream)
            body = b"".join([chunk async for chunk in stream])
    except TimeoutError as error:
        raise RequestError(
            408, "body_too_slow", f"The request did not arrive within {timeout_s:g} s: send a smaller picture."
        ) from error
    except ClientDisconnect as error:
        raise RequestError(400, "disconnected", "The request ended before its body did: send it whole.") from error
    # Many megabytes of base64 would hold up every other request of this process.
    return await asyncio.to_thread(read_json, body)


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
        image = decode_base64(text)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            422, "invalid_image", f"The field 'image' is not base64 ({error}): encode the file's bytes."
        ) from error
    return parsed, image


def decode_base64(text: str) -> bytes:
    """Bytes of standard or URL-safe base64, in one line or wrapped, padded or not.

    Raises:
        ValueError: it is no base64.
    """
    plain = text.encode("ascii").translate(_PLAIN_BASE64, _SPACE)
    return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)


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


def within_patches(image: Image.Image, max_patches: int) -> Image.Image:
    """The image, scaled down by the model's own rule where it would have more patches than allowed.

    The model cuts the result into exactly these patches, so the answer is the one of a processor with that budget.

    Raises:
        RequestError: 422, the image is too long and thin.
    """
    policy = ResizePolicy(min_pixels=PATCH * PATCH, max_pixels=max_patches * PATCH * PATCH)
    unlimited = ResizePolicy(
        min_pixels=PATCH * PATCH, max_pixels=max(policy.max_pixels, 4 * image.width * image.height)
    )
    try:
        rows, columns = unlimited.grid(image.height, image.width)
        if rows * columns <= max_patches:
            return image
        height, width = policy.size(image.height, image.width)
    except ImageError as error:
        raise RequestError(422, error.reason, str(error)) from error
    return image.resize((width, height), Image.Resampling.BICUBIC)


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
