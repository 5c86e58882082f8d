"""Images on their way in: opening, upright orientation, and the grid of patches that the model will see."""

import io
import math
import os
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from padt.data.image_metadata import without_metadata
from padt.errors import ImageError, UserError

VIT_PATCH = 14
PATCH = 28
DEFAULT_MIN_PIXELS = 3136
DEFAULT_MAX_PIXELS = 12_845_056
DEFAULT_PIXEL_BUDGET = 100_000_000
MAX_ASPECT_RATIO = 200

Read = TypeVar("Read")
ImageSource = bytes | str | os.PathLike | Image.Image | np.ndarray
# What Pillow and its decoders raise on damaged files, besides its own error.
UNREADABLE = (
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error, RuntimeError),
    *(LookupError, TypeError, OverflowError, MemoryError),
)
# What turns an image upright, by its EXIF orientation; 1 and what is no orientation turn nothing.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where an opened image keeps its orientation.
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
# Bytes of a file that are read a second time, without its metadata.
_MOST_REREAD = 256 * 2**20
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")


@dataclass(frozen=True)
class ResizePolicy:
    """How an upright image is resized before it is cut into patches.

    The rule is that of Qwen2.5-VL's ``smart_resize``, equal number for number (tested); it stands here because
    transformers takes seconds to import, and every data worker needs nothing else of it.

    Attributes:
        factor: both sides of the resized image are multiples of this (pixels); one patch is ``factor`` x ``factor``.
        min_pixels: smallest area of the resized image.
        max_pixels: largest area of the resized image.
    """

    factor: int = PATCH
    min_pixels: int = DEFAULT_MIN_PIXELS
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        if self.factor != PATCH:
            raise UserError(f"factor {self.factor} is not supported: Qwen2.5-VL's patches are {PATCH}x{PATCH} pixels.")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise UserError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels} are not a range: "
                "give 0 < min_pixels <= max_pixels."
            )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels after resizing.

        Raises:
            ImageError: the sides differ by more than a factor of 200.
        """
        check_shape(height, width)
        sides = (height, width)
        resized = [round(side / self.factor) * self.factor for side in sides]
        if resized[0] * resized[1] > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            resized = [max(self.factor, math.floor(side / shrink / self.factor) * self.factor) for side in sides]
        elif resized[0] * resized[1] < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            resized = [math.ceil(side * grow / self.factor) * self.factor for side in sides]
        return resized[0], resized[1]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches, ``(grid_h, grid_w)``, of an upright image of ``height`` x ``width`` pixels."""
        resized_height, resized_width = self.size(height, width)
        return resized_height // self.factor, resized_width // self.factor

    def to_dict(self) -> dict[str, int]:
        """Plain values, as the manifest of a data set stores them."""
        return asdict(self)


def check_shape(height: int, width: int, name: str = "An image") -> None:
    """Refuse images that Qwen2.5-VL's resize rule refuses.

    Raises:
        ImageError: the sides differ by more than a factor of 200.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageError(
            "image_aspect_ratio",
            f"{name} of {width}x{height} pixels is too long and thin: crop it so that its sides differ by at "
            f"most a factor of {MAX_ASPECT_RATIO}.",
        )


def image_formats() -> tuple[str, ...]:
    """Formats that are opened: those of pictures. Pillow knows more, and hands some (EPS) to other programs to run."""
    known = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
    return (*known, "AVIF") if features.check("avif") else known


def open_image(source: ImageSource, pixel_budget: int = DEFAULT_PIXEL_BUDGET) -> Image.Image:
    """Decode an image, turn it upright after its EXIF orientation, and convert it to RGB.

    Transparent areas become white; 16-bit greyscale is scaled to 8 bits; of an animation the first frame is taken.

    Args:
        source: encoded bytes, a local path, or an image already decoded (of Pillow, or an array ``(height, width, 3)``
            of bytes).
        pixel_budget: refuse larger images before their pixels are decoded.

    Raises:
        ImageError: the file is missing, unreadable or truncated, or larger than the budget; or the source is nothing
            of these.
    """
    name = str(source) if isinstance(source, str | os.PathLike) else "the image"
    if isinstance(source, np.ndarray):
        source = _picture_of(source)
    if isinstance(source, Image.Image):
        _check_budget(source.size, pixel_budget, name)
        try:
            # A picture that was opened but not read is still a file that may be damaged.
            return _upright_rgb(source)
        except Image.DecompressionBombError as error:
            raise ImageError("image_too_large", f"{name} is too large ({error}): scale it down.") from error
        except UNREADABLE as error:
            raise ImageError("image_unreadable", f"{name} {unreadable_reason(error)}.") from error
    with _open_bytes(source, name) as handle:
        return read_picture(handle, _upright_rgb, pixel_budget, name)


def read_picture(
    handle: BinaryIO,
    read: Callable[[Image.Image], Read],
    pixel_budget: int = DEFAULT_PIXEL_BUDGET,
    name: str = "the image",
) -> Read:
    """Open an encoded image with Pillow and read something of it.

    Files whose pixels are whole while what is written beside them (ICC profile, texts, EXIF block) is damaged or too
    large for Pillow are read without it.

    Args:
        handle: the encoded image, from its beginning.
        read: called with the opened image, whose pixels are not decoded yet.
        pixel_budget: refuse larger images before their pixels are decoded.
        name: of the image, for messages.

    Raises:
        ImageError: the image is unreadable or truncated, or larger than the budget.
    """
    with warnings.catch_warnings():
        # Pillow's bomb warning is replaced by the explicit budget; others speak of metadata.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            try:
                return _read(handle, read, pixel_budget, name)
            except UNREADABLE as error:
                handle.seek(0)
                plain = without_metadata(handle.read(_MOST_REREAD))
                if plain is None:
                    raise
                try:
                    return _read(io.BytesIO(plain), read, pixel_budget, name)
                except UNREADABLE:
                    # What was wrong with the file as it is says more.
                    raise error from None
        except Image.DecompressionBombError as error:
            size = _announced_size(handle)
            if size is not None:
                _check_budget(size, pixel_budget, name)
            # Some formats only say within how large their pictures are.
            raise ImageError("image_too_large", f"{name} is too large ({error}): scale it down.") from error
        except UNREADABLE as error:
            raise ImageError("image_unreadable", f"{name} {unreadable_reason(error)}.") from error


def _read(handle: BinaryIO, read: Callable[[Image.Image], Read], pixel_budget: int, name: str) -> Read:
    with Image.open(handle, formats=image_formats()) as image:
        _check_budget(image.size, pixel_budget, name)
        return read(image)


def unreadable_reason(error: Exception) -> str:
    """What is wrong with a file that Pillow cannot read, in words that are the same in every run."""
    # Pillow's own words name its file object, with the place in memory.
    no_format = isinstance(error, UnidentifiedImageError)
    reason = "of no format that Pillow knows" if no_format else _ADDRESS.sub("the file", str(error))
    return f"is not a readable image ({reason or type(error).__name__}): check that the file is whole"


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an opened image, 1 to 8; 1 (upright) where it has none, or none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except UNREADABLE:
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """The image turned upright by its EXIF orientation; the image itself where there is nothing to turn.

    Unlike Pillow's ``exif_transpose`` it does not write the EXIF block anew, which many blocks of cameras forbid.
    """
    turn = _TURNS.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    # Nobody shall turn it again.
    for name in _ORIENTED:
        turned.info.pop(name, None)
    return turned


def _check_budget(size: tuple[int, int], budget: int, name: str) -> None:
    width, height = size
    if width * height > budget:
        raise ImageError(
            "image_too_large",
            f"{name} has {width}x{height} pixels, more than the budget of {budget:,}: scale it down.",
        )
    if not width * height:
        raise ImageError("image_unreadable", f"{name} has {width}x{height} pixels: there is nothing to see.")


def _announced_size(handle: BinaryIO) -> tuple[int, int] | None:
    """Width and height that the header of a file announces which ``Image.open`` has refused as a bomb."""
    handle.seek(0)
    start = handle.read(16)
    for factory, accept in Image.OPEN.values():
        if accept is not None and accept(start) is True:
            handle.seek(0)
            try:
                return factory(handle, "").size
            except (*UNREADABLE, Image.DecompressionBombError):
                continue
    return None


def _open_bytes(source: bytes | bytearray | memoryview | str | os.PathLike, name: str) -> BinaryIO:
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if "://" in name:
        raise ImageError("image_missing", f"{name} is a URL: download the picture and give its path.")
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            "image_unreadable",
            f"A picture is a {type(source).__name__}: give a path, encoded bytes, a Pillow image, or a numpy array of "
            "height x width x 3 bytes (uint8).",
        )
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise ImageError("image_missing", f"{name} cannot be opened ({error.strerror}): check the path.") from error


def _picture_of(values: np.ndarray) -> Image.Image:
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[2] != 3 or not values.size:
        raise ImageError(
            "image_unreadable",
            f"An array of shape {values.shape} and type {values.dtype} is no picture: give height x width x 3 bytes "
            "(uint8, RGB).",
        )
    return Image.fromarray(np.ascontiguousarray(values))


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    opened, image = image, upright(image)
    if image.mode == "RGB":
        return image.copy() if image is opened else image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        scale = 65535.0 if values.max(initial=0.0) > 255 else 255.0
        image = Image.fromarray((values.clip(0, scale) / scale * 255).round().astype(np.uint8), "L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")
