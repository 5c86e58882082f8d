"""Which patches of an image an object covers.

Patch ``(r, c)`` of a grid ``(grid_h, grid_w)`` is the part ``[r h/grid_h, (r+1) h/grid_h)`` by
``[c w/grid_w, (c+1) w/grid_w)`` of the original image of ``h`` x ``w`` pixels: what one 28x28 cell of the resized image
shows. Coverage is the exact share of that rectangle which the object fills, pixels being squares; no mask is painted
and nothing is resized.
"""

from collections.abc import Sequence

import numpy as np

from padt.data.rle import RLE, runs, size
from padt.errors import UserError

FOREGROUND_SHARE = 1.0 / 28.0
# Sums of areas that are exactly 1/28 may come out a rounding error below it.
_ROUNDING = 1e-9


def coverage_of_rle(rle: RLE, grid_h: int, grid_w: int) -> np.ndarray:
    """Share of each patch that a run-length mask covers, ``(grid_h, grid_w)`` float64 in [0, 1].

    The number of object pixels before position ``t`` of the column-major scan is piecewise linear in ``t`` with its
    knots at the ends of the runs, so the part of a pixel column above any (fractional) height is one interpolation; so
    is, over the columns' running sums, the part left of any (fractional) width.

    Raises:
        padt.data.rle.RLEError: the mask is damaged.
    """
    height, width = size(rle)
    lengths = runs(rle)
    coverage = np.zeros((grid_h, grid_w))
    ends = np.cumsum(lengths)
    inside = lengths[1::2] > 0
    if not inside.any():
        return coverage
    starts, stops = ends[0::2][: inside.size][inside], ends[1::2][inside]
    first, last = int(starts[0] // height), int((stops[-1] - 1) // height) + 1

    knots = np.stack([starts, stops], axis=1).reshape(-1)
    filled = np.cumsum(stops - starts)
    before = np.stack([np.concatenate([[0], filled[:-1]]), filled], axis=1).reshape(-1)
    # Runs that touch (one ends where the next begins) would give two knots at one place: keep the first of each.
    distinct = np.concatenate([[True], np.diff(knots) > 0])
    rows = np.arange(grid_h) * (height / grid_h)
    scan = (np.arange(first, last)[:, None] * height + rows).reshape(-1)
    above = np.interp(np.append(scan, last * height), knots[distinct], before[distinct])
    columns = np.diff(above).reshape(last - first, grid_h)

    left_of = np.zeros((last - first + 1, grid_h))
    np.cumsum(columns, axis=0, out=left_of[1:])
    bounds = np.clip(np.arange(grid_w + 1) * (width / grid_w) - first, 0, last - first)
    whole = np.minimum(bounds.astype(np.int64), last - first - 1)
    at_bounds = left_of[whole] + (bounds - whole)[:, None] * columns[whole]
    np.divide(np.diff(at_bounds, axis=0).T, (height / grid_h) * (width / grid_w), out=coverage)
    return np.clip(coverage, 0.0, 1.0, out=coverage)


def coverage_of_box(box: Sequence[float] | np.ndarray, grid_h: int, grid_w: int) -> np.ndarray:
    """Share of each patch, ``(grid_h, grid_w)`` float64, that a box ``xyxy`` normalised to [0, 1] covers."""
    x0, y0, x1, y1 = (float(value) for value in box)
    return np.outer(_overlap(y0 * grid_h, y1 * grid_h, grid_h), _overlap(x0 * grid_w, x1 * grid_w, grid_w))


def foreground(coverage: np.ndarray) -> np.ndarray:
    """Coverage ``(grid_h, grid_w)`` -> bool ``(grid_h, grid_w)``: at least 1/28 is covered (the released rule)."""
    return np.asarray(coverage) >= FOREGROUND_SHARE - _ROUNDING


def pack_patches(patches: np.ndarray) -> bytes:
    """Foreground patches ``(grid_h, grid_w)`` as bits: row-major, least significant first (as Arrow's bitmaps)."""
    return np.packbits(np.asarray(patches, dtype=bool).reshape(-1), bitorder="little").tobytes()


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
