"""What an image can be recognised by in another data set: its source's id, its bytes, and what it looks like."""

import hashlib
import posixpath
import re

import numpy as np
from PIL import Image

from padt.data.image import upright

LOOK_BITS = 128
NEAR_BITS = 6
"""Looks that differ in at most this many of their bits are taken for the same picture.

Measured on 80 photographs of COCO: copies saved again as JPEG (quality 95 to 50) or WebP, or at half the size, differ
in 1 to 3 bits on average and nearly all in at most 7; two different photographs in at least 27.
"""

_SIDE = 8
_COCO = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})")
_OBJECTS365 = re.compile(r"objects365_v[12]_\d{8}")


def content_hash(content: bytes) -> str:
    """SHA-256 of an encoded image, 64 hexadecimal digits: what ``sha256sum`` prints for the file."""
    return hashlib.sha256(content).hexdigest()


def look_hash(image: Image.Image) -> str | None:
    """Difference hash of a picture, 32 hexadecimal digits: equal or nearly so for copies in other sizes and formats.

    The upright picture is reduced to 9x9 grey pixels; the bits say which of two neighbours is the brighter, first side
    by side and then one below the other. None for pictures that have no grey form (such as Lab).
    """
    try:
        pixels = upright(image).convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BILINEAR)
    except ValueError:
        return None
    grey = np.asarray(pixels, dtype=np.int16)
    across = grey[:_SIDE, 1:] > grey[:_SIDE, :-1]
    down = grey[1:, :_SIDE] > grey[:-1, :_SIDE]
    return np.packbits(np.stack([across, down])).tobytes().hex()


def source_id(key: str, path: str | None) -> str:
    """What the publisher of an image calls it, equal in all sets that hold it.

    COCO numbers its photographs once: ``000000000790.jpg`` of train2017, ``COCO_train2014_000000000790.jpg`` of RefCOCO
    and the same in any other set are ``coco:790``. Objects365's file names are unique too. Other names say nothing
    outside their own set, so there it is the row's key.

    Args:
        key: of the row.
        path: file name, path or URL of the image; None where there is no image.
    """
    stem = posixpath.basename(path or "").rpartition(".")[0]
    if match := _COCO.fullmatch(stem):
        return f"coco:{int(match[1])}"
    if _OBJECTS365.fullmatch(stem):
        return f"objects365:{stem.removeprefix('objects365_')}"
    return key
