"""Which patches of an image an object covers.

Patch ``(r, c)`` of a grid ``(grid_h, grid_w)`` is the part ``[r h/grid_h, (r+1) h/grid_h)`` by
``[c w/grid_w, (c+1) w/grid_w)`` of the original image of ``h`` x ``w`` pixels: what one 28x28 cell of the resized image
shows. Coverage is the exact share of that rectangle which the object fills, pixels being squares; no mask is painted
and nothing is resized.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from padt.data.rle import RLE, pieces, size
from padt.errors import UserError

FOREGROUND_SHARE = 1.0 / 28.0
# Sums of areas that are exactly 1/28 may come out a rounding error below it.
_ROUNDING = 1e-9
# Columns of pixels, over all masks, that are looked at together.
_MOST_COLUMNS = 1 << 15


def coverage_of_rle(rle: RLE, grid_h: int, grid_w: int) -> np.ndarray:
    """Share of each patch that a run-length mask covers, ``(grid_h, grid_w)`` float64 in [0, 1].

    Raises:
        padt.data.rle.RLEError: the mask is damaged.
    """
    return coverage_of_rles([rle], grid_h, grid_w)[0]


def coverage_of_rles(masks: Sequence[RLE], grid_h: int, grid_w: int) -> np.ndarray:
    """Share of each patch that run-length masks of one image cover, ``(masks, grid_h, grid_w)`` float64 in [0, 1].

    A run is cut where a pixel column ends. Of each piece only its two ends are looked at: an end adds what lies between
    it and the next bound of a patch to its own patch, and a whole patch's height to all below, which the running sum
    does. All numbers are whole (a pixel is ``grid_h`` by ``grid_w`` units, a patch ``height`` by ``width``), so the
    sums are exact.

    Raises:
        padt.data.rle.RLEError: a mask is damaged.
    """
    height, width = size(masks[0])
    column, top, bottom = pieces(masks)
    mask, x = np.divmod(column, max(1, width))
    # A pixel column may lie in several columns of patches: in more than two where patches are narrower than pixels.
    straddled = 1 if width % grid_w == 0 else 1 - (-grid_w // max(1, width))
    across = x * grid_w // max(1, width) + np.arange(straddled)[:, None]
    right = np.minimum((x + 1) * grid_w, (across + 1) * width)
    share = np.maximum(right - np.maximum(x * grid_w, across * width), 0)
    # Two rows more than the grid has: for an end at the lower edge of the image, and what it adds below.
    line = (mask * grid_w + np.minimum(across, grid_w - 1)) * (grid_h + 2)
    places, units = [], []
    for end, weight in ((top, share), (bottom, -share)):
        down = end * grid_h // max(1, height)
        rest = (down + 1) * height - end * grid_h
        places += [line + down, line + down + 1]
        units += [weight * rest, weight * (height - rest)]
    shape = (len(masks), grid_w, grid_h + 2)
    added = np.bincount(np.concatenate(places).reshape(-1), np.concatenate(units).reshape(-1), math.prod(shape))
    covered = np.cumsum(added.reshape(shape), axis=2)[:, :, :grid_h]
    return np.ascontiguousarray(covered.transpose(0, 2, 1)) / max(1, height * width)


def coverage_of_box(box: Sequence[float] | np.ndarray, grid_h: int, grid_w: int) -> np.ndarray:
    """Share of each patch, ``(grid_h, grid_w)`` float64, that a box ``xyxy`` normalised to [0, 1] covers."""
    x0, y0, x1, y1 = (float(value) for value in box)
    return np.outer(_overlap(y0 * grid_h, y1 * grid_h, grid_h), _overlap(x0 * grid_w, x1 * grid_w, grid_w))


def foreground(coverage: np.ndarray) -> np.ndarray:
    """Coverage ``(grid_h, grid_w)`` -> bool ``(grid_h, grid_w)``: at least 1/28 is covered (the released rule)."""
    return np.asarray(coverage) >= FOREGROUND_SHARE - _ROUNDING


def packed_foreground(objects: Sequence[Mapping[str, Any]], grid_h: int, grid_w: int) -> list[bytes]:
    """Foreground patches of the objects of one image, each packed (``pack_patches``).

    Args:
        objects: what a shard stores of each: ``rle``, or where that is None ``box``, xyxy normalised to [0, 1].
        grid_h: rows of the image's patch grid.
        grid_w: its columns.

    Raises:
        padt.data.rle.RLEError: a mask is damaged.
    """
    masks = [rle for item in objects if (rle := item.get("rle")) is not None]
    # What is made on the way grows with the columns of pixels.
    some = max(1, _MOST_COLUMNS // max(1, size(masks[0])[1])) if masks else 1
    packed = (
        bits.tobytes()
        for first in range(0, len(masks), some)
        for bits in _packed(foreground(coverage_of_rles(masks[first : first + some], grid_h, grid_w)))
    )
    return [
        pack_patches(foreground(coverage_of_box(item["box"], grid_h, grid_w)))
        if item.get("rle") is None
        else next(packed)
        for item in objects
    ]


def _packed(patches: np.ndarray) -> np.ndarray:
    return np.packbits(patches.reshape(len(patches), -1), axis=1, bitorder="little")


def pack_patches(patches: np.ndarray) -> bytes:
    """Foreground patches ``(grid_h, grid_w)`` as bits: row-major, least significant first (as Arrow's bitmaps)."""
    return _packed(np.asarray(patches, dtype=bool)[None]).tobytes()


def unpack_patches(packed: bytes, count: int) -> np.ndarray:
    """Foreground flags ``(count,)`` bool of a packed bitmap, ``count`` = ``grid_h * grid_w``.

    Raises:
        UserError: the bitmap does not belong to a grid of that many patches.
    """
    if len(packed) != (count + 7) // 8:
        raise UserError(
            f"A patch bitmap of {len(packed)} bytes does not fit a grid of {count} patches: the data set was prepared "
            "with another resize policy or is damaged; run `padt prepare` again."
        )
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count, bitorder="little").astype(bool)


def _overlap(low: float, high: float, cells: int) -> np.ndarray:
    """Length that ``[low, high)`` shares with each unit cell ``[i, i + 1)``, ``(cells,)``."""
    edges = np.arange(cells + 1, dtype=np.float64)
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0.0, 1.0)
