"""Pictures of a request: out of base64, decoded upright, and scaled down to what the model may see."""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from PIL import Image

from padt.data.image import PATCH, ResizePolicy, open_image
from padt.errors import ImageError
from serve.api.errors import RequestError

_STATUS_OF_IMAGE_REASON = {"image_too_large": 413}
# Base64 as it comes: wrapped into lines, or with the letters that are safe in URLs.
_PLAIN_BASE64 = bytes.maketrans(b"-_", b"+/")
_SPACE = b" \t\r\n"


@dataclass(frozen=True)
class Picture:
    """A picture as the engine gets it.

    Attributes:
        image: upright, RGB, within the budget of patches.
        size: width and height of the upright picture as it came, in pixels.
        digest: of the file's content.
    """

    image: Image.Image
    size: tuple[int, int]
    digest: bytes


def is_address(source: str | bytes) -> bool:
    """Whether a picture is only named by its place in the web."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def picture_bytes(source: str | bytes, param: str = "image") -> bytes:
    """Bytes of a picture that comes as base64, as a data URL, or as a file.

    Raises:
        RequestError: 422, it is none of these.
    """
    if isinstance(source, bytes):
        return source
    text = source
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            message = f"{param}: the data URL must read data:image/...;base64,...."
            raise RequestError(422, "invalid_image", message, param=param)
    try:
        return decode_base64(text)
    except (binascii.Error, ValueError) as error:
        message = f"{param}: this is not base64 ({error}): encode the file's bytes."
        raise RequestError(422, "invalid_image", message, param=param) from error


def decode_base64(text: str) -> bytes:
    """Bytes of standard or URL-safe base64, in one line or wrapped, padded or not.

    Raises:
        ValueError: it is no base64.
    """
    try:
        plain = text.encode("ascii").translate(_PLAIN_BASE64, _SPACE)
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is no letter of base64") from error
    return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)


def open_picture(encoded: bytes, max_pixels: int, max_patches: int, param: str = "image") -> Picture:
    """Decode a picture and scale it down where it would have too many patches.

    Raises:
        RequestError: 422, it is unreadable or too long and thin; 413, it has more pixels than allowed.
    """
    try:
        image = open_image(encoded, pixel_budget=max_pixels)
        return Picture(within_patches(image, max_patches), image.size, hashlib.sha256(encoded).digest())
    except ImageError as error:
        status = _STATUS_OF_IMAGE_REASON.get(error.reason, 422)
        raise RequestError(status, error.reason, f"{param}: {error}", param=param) from error


def within_patches(image: Image.Image, max_patches: int) -> Image.Image:
    """The image, scaled down by the model's own rule where it would have more patches than allowed.

    The model cuts the result into exactly these patches, so the answer is the one of a processor with that budget.

    Raises:
        ImageError: the image is too long and thin.
    """
    policy = ResizePolicy(min_pixels=PATCH * PATCH, max_pixels=max_patches * PATCH * PATCH)
    unlimited = ResizePolicy(
        min_pixels=PATCH * PATCH, max_pixels=max(policy.max_pixels, 4 * image.width * image.height)
    )
    rows, columns = unlimited.grid(image.height, image.width)
    if rows * columns <= max_patches:
        return image
    height, width = policy.size(image.height, image.width)
    return image.resize((width, height), Image.Resampling.BICUBIC)
