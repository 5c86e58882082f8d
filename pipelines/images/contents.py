"""Images on their way into a set: fetched, and measured."""

import io
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from padt.data.image import DEFAULT_PIXEL_BUDGET, orientation, read_picture
from padt.errors import ImageError
from pipelines.dedup.hashes import look_hash
from pipelines.io.archives import archive_url
from pipelines.io.images import read_image
from pipelines.io.transport import RefusedError, without_keys

# Pixels of a side that the hash of the look is made from, at least.
_FEWEST_PIXELS = 48
# EXIF orientations that exchange width and height.
_TURNED = (5, 6, 7, 8)


class Measured(NamedTuple):
    """Width and height of an image after its EXIF orientation, and the hash of its look (``look_hash``)."""

    width: int
    height: int
    look: str | None


def measure(content: bytes, pixel_budget: int = DEFAULT_PIXEL_BUDGET, name: str = "the image") -> Measured:
    """Size and look of an encoded image, having read it to its end.

    JPEGs are decoded at an eighth of their size: all their data is read, so a file that is cut off is found, at a
    fraction of the time.

    Raises:
        ImageError: the image is unreadable, cut off, or larger than the budget.
    """
    return read_picture(io.BytesIO(content), _measured, pixel_budget, name)


def _measured(image: Image.Image) -> Measured:
    width, height = image.size
    if orientation(image) in _TURNED:
        width, height = height, width
    image.draft("L", (max(_FEWEST_PIXELS, image.size[0] // 8), max(_FEWEST_PIXELS, image.size[1] // 8)))
    image.load()
    return Measured(width, height, look_hash(image))


Picture = tuple[str, bytes]
"""Where an image was found, and its encoded bytes."""


class ImagesAhead:
    """Images that are asked for in a known order: those on the network are fetched ahead.

    A request to an object store takes tens of milliseconds, most of them waiting; one after the other, they would take
    longer than all the work on the images.
    """

    def __init__(self, places: Iterable[tuple[str, ...]], ahead: int = 16) -> None:
        """Args: places: of the images, in order (``read_first``); ahead: most images that are held or under way."""
        self._left = deque(urls for urls in places if _is_far(urls[0]))
        self._ahead = ahead
        self._under_way: deque[tuple[tuple[str, ...], Future[Picture]]] = deque()
        self._pool = ThreadPoolExecutor(ahead) if self._left else None

    def read(self, urls: tuple[str, ...]) -> Picture:
        """The image at one of its places; images before it that nobody asked for are passed over.

        Raises:
            ImageError, UserError: see ``read_first``.
        """
        if self._pool is None or not _is_far(urls[0]):
            return read_first(urls)
        self._fetch(self._pool)
        while self._under_way:
            fetched, future = self._under_way.popleft()
            if fetched == urls:
                self._fetch(self._pool)
                return future.result()
            future.cancel()
            self._fetch(self._pool)
        return read_first(urls)

    def _fetch(self, pool: ThreadPoolExecutor) -> None:
        while self._left and len(self._under_way) < self._ahead:
            urls = self._left.popleft()
            self._under_way.append((urls, pool.submit(read_first, urls)))


def read_first(urls: tuple[str, ...]) -> Picture:
    """The image at the first of some places that has one.

    Raises:
        ImageError: none has it, or the one that is there cannot be read.
        UserError: the network failed, or a server refuses to give the image; see ``read_image``.
    """
    errors: list[ImageError | RefusedError] = []
    for url in urls:
        try:
            return url, read_image(url)
        except RefusedError as error:
            # Some stores say so of what is not there.
            errors.append(error)
        except ImageError as error:
            if error.reason != "image_missing":
                raise
            errors.append(error)
    refused = [error for error in errors if isinstance(error, RefusedError)]
    if not refused and len(urls) > 1:
        raise ImageError(
            "image_missing", f"{errors[0]}, nor does it under {len(urls) - 1} other names, as {without_keys(urls[-1])}"
        )
    raise (refused or errors)[0]


def _is_far(url: str) -> bool:
    # Files in an archive are read one at a time anyhow.
    return "://" in url and archive_url(url) is None and not url.startswith(("file://", "local://"))
