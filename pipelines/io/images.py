"""Encoded images, wherever they lie."""

import tarfile
import zipfile
import zlib

from padt.errors import ImageError
from pipelines.io.reading import read_file
from pipelines.io.transport import without_keys

# Largest encoded image: a file of this size is no photograph, and one packed into a zip may claim to be any size.
MOST_IMAGE_BYTES = 256 * 2**20


def read_image(url: str, most: int = MOST_IMAGE_BYTES) -> bytes:
    """Encoded bytes of an image, wherever it lies.

    Args:
        url: local path, fsspec URL, or ``zip://INNER::TARGET``.
        most: refuse files of more bytes; of such a file no more than this is read (or unpacked).

    Raises:
        ImageError: the file is missing, cannot be read, or is too large.
        UserError: the network failed, which says nothing about the image.
    """
    try:
        content = read_file(url, most + 1)
    except FileNotFoundError as error:
        raise ImageError("image_missing", f"{without_keys(url)} does not exist") from error
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        # RuntimeError: a zip's file is locked by a password, or packed in a way that Python does not know.
        raise ImageError("image_unreadable", f"{without_keys(url)}: {error}") from error
    if len(content) > most:
        raise ImageError("image_too_large", f"{without_keys(url)} has more than {most:,} bytes")
    return content
