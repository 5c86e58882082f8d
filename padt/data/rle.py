"""COCO run-length masks, without painting more than is asked for.

A mask of ``height`` x ``width`` pixels is read column by column (column-major) as runs of background, object,
background, and so on; the first run is always background and may be 0 long. ``counts`` holds the runs either as a list
or in COCO's compressed text: each run, from the fourth on as its difference to the run two places before, is cut into
groups of five bits, lowest first, with a sixth bit that says whether more groups follow, and 48 is added to make it a
printable letter.
(Source: the COCO API's mask format; bit for bit the same as ``pycocotools.mask``.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from padt.errors import UserError

RLE = Mapping[str, Any]


class RLEError(UserError):
    """A run-length mask that cannot be read."""


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Run-length mask ``{"size": [height, width], "counts": str}`` of a boolean mask ``(height, width)``."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise RLEError(f"A mask has the shape (height, width), not {mask.shape}: give one mask at a time.")
    height, width = mask.shape
    flat = np.ascontiguousarray(mask.T, dtype=bool).reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lead = [0, 0] if flat.size and flat[0] else [0]
    return from_runs(np.diff(np.concatenate([lead, edges, [flat.size]])), height, width)


def decode(rle: RLE) -> np.ndarray:
    """Boolean mask ``(height, width)`` of a run-length mask.

    Raises:
        RLEError: the runs are damaged or do not fill the size.
    """
    height, width = size(rle)
    lengths = runs(rle)
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def area(rle: RLE) -> int:
    """Number of pixels of the object.

    Raises:
        RLEError: the runs are damaged or do not fill the size.
    """
    return int(runs(rle)[1::2].sum())


def mirror(rle: RLE) -> dict[str, Any]:
    """The mask of the image mirrored left to right, without painting it.

    Raises:
        RLEError: the runs are damaged or do not fill the size.
    """
    height, width = size(rle)
    column, top, bottom = pieces([rle])
    order = np.argsort(-column, kind="stable")
    return _of_pieces(width - 1 - column[order], top[order], bottom[order], height, width)


def crop(rle: RLE, x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    """The part of a mask inside the window ``[x0, x1) x [y0, y1)`` (pixels), as a mask of the window's size.

    Raises:
        RLEError: the runs are damaged or do not fill the size, or the window does not lie in the image.
    """
    height, width = size(rle)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise RLEError(f"The window ({x0}, {y0}) to ({x1}, {y1}) does not lie in a mask of {height}x{width} pixels.")
    column, top, bottom = pieces([rle])
    top, bottom = np.clip(top, y0, y1) - y0, np.clip(bottom, y0, y1) - y0
    kept = (column >= x0) & (column < x1) & (bottom > top)
    return _of_pieces(column[kept] - x0, top[kept], bottom[kept], y1 - y0, x1 - x0)


def resize(rle: RLE, height: int, width: int) -> dict[str, Any]:
    """The mask of the image at another size (pixels), by its nearest pixels, without painting it.

    Raises:
        RLEError: the runs are damaged or do not fill the size.
    """
    old_height, old_width = size(rle)
    column, top, bottom = pieces([rle])
    # A new pixel takes what lies under its centre: row r shows the old row floor((r + 1/2) * old / new).
    top = -((old_height - 2 * top * height) // (2 * old_height))
    bottom = -((old_height - 2 * bottom * height) // (2 * old_height))
    source = (2 * np.arange(width) + 1) * old_width // (2 * width)
    first, stop = np.searchsorted(column, source), np.searchsorted(column, source, side="right")
    counts = stop - first
    chosen = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    target, top, bottom = np.repeat(np.arange(width), counts), top[chosen], bottom[chosen]
    kept = bottom > top
    return _of_pieces(target[kept], top[kept], bottom[kept], height, width)


def bounds(rle: RLE) -> tuple[int, int, int, int] | None:
    """Pixels ``(x0, y0, x1, y1)``, ends exclusive, that the object spans; None for an empty mask.

    Raises:
        RLEError: the runs are damaged or do not fill the size.
    """
    column, top, bottom = pieces([rle])
    if not len(column):
        return None
    return int(column[0]), int(top.min()), int(column[-1]) + 1, int(bottom.max())


def pieces(masks: Sequence[RLE]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Object runs of masks, all of one size, cut where a pixel column ends.

    Returns:
        Column, first row, and row after the last, three of ``(n,)`` int64. Columns are counted on from mask to mask:
        column ``x`` of mask ``i`` is ``i * width + x``.

    Raises:
        RLEError: the runs of a mask are damaged or do not fill the size.
    """
    height, _ = size(masks[0])
    lengths, counts = _runs_of_all(masks)
    ends = np.cumsum(lengths)
    # Every mask begins with background: its second run, and every other one from there, is the object's.
    inside = (_places(counts) % 2 == 1) & (lengths > 0)
    stops = ends[inside]
    starts = stops - lengths[inside]
    first, last = starts // max(1, height), (stops - 1) // max(1, height)
    crossed = last - first + 1
    place = _places(crossed)
    column = np.repeat(first, crossed) + place
    top = np.where(place == 0, np.repeat(starts - first * height, crossed), 0)
    bottom = np.where(column == np.repeat(last, crossed), np.repeat(stops - last * height, crossed), height)
    return column, top, bottom


def _places(counts: np.ndarray) -> np.ndarray:
    """``0, 1, ..., counts[0] - 1, 0, 1, ..., counts[1] - 1``, and so on."""
    if len(counts) == 1:
        return np.arange(counts[0])
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _of_pieces(column: np.ndarray, top: np.ndarray, bottom: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """The mask that pieces, in order of the scan, make up."""
    starts, stops = column * height + top, column * height + bottom
    joined = starts[1:] == stops[:-1]
    starts = starts[np.concatenate([[True], ~joined])] if len(starts) else starts
    stops = stops[np.concatenate([~joined, [True]])] if len(stops) else stops
    edges = np.concatenate([[0], np.stack([starts, stops], axis=1).reshape(-1), [height * width]])
    lengths = np.diff(edges)
    return from_runs(lengths[:-1] if lengths[-1] == 0 and len(lengths) > 1 else lengths, height, width)


def runs(rle: RLE) -> np.ndarray:
    """Run lengths in pixels ``(n,)`` int64, starting with background, whatever form ``counts`` has.

    Raises:
        RLEError: the runs are damaged or do not fill the size.
    """
    height, width = size(rle)
    counts = rle.get("counts")
    if isinstance(counts, str | bytes | bytearray | memoryview):
        lengths, _ = _numbers_of_text(_letters(counts))
        # From the fourth on, every number is a difference to the run two places before.
        lengths[1::2] = np.cumsum(lengths[1::2])
        lengths[2::2] = np.cumsum(lengths[2::2])
    elif isinstance(counts, Sequence | np.ndarray):
        lengths = _runs_of_list(counts)
    else:
        raise RLEError(f"A mask's 'counts' is {type(counts).__name__}: give COCO's compressed text or a list of runs.")
    _check_runs(lengths, lengths.sum(keepdims=True), height, width)
    return lengths


def _runs_of_all(masks: Sequence[RLE]) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths ``(n,)`` of masks of one size, one mask after the other, and how many each has, ``(masks,)``."""
    texts = [text for mask in masks if isinstance(text := mask.get("counts"), str | bytes) and text]
    if len(masks) == 1 or len(texts) < len(masks):
        each = [runs(mask) for mask in masks]
        return np.concatenate(each), np.array([len(lengths) for lengths in each])
    letters = [_letters(text) for text in texts]
    stops = np.cumsum([len(text) for text in letters])
    values, ends = _numbers_of_text(b"".join(letters))
    last = np.searchsorted(ends, stops - 1)
    if not np.array_equal(ends[np.minimum(last, ends.size - 1)], stops - 1):
        raise RLEError("A mask's 'counts' is cut off.")
    counts = np.diff(last + 1, prepend=0)
    number = _places(counts)
    odd, even = number % 2 == 1, (number % 2 == 0) & (number > 0)
    values[odd] = _sums_within(values[odd], counts // 2)
    values[even] = _sums_within(values[even], (counts - 1) // 2)
    _check_runs(values, np.add.reduceat(values, last + 1 - counts), *size(masks[0]))
    return values, counts


def _check_runs(lengths: np.ndarray, covered: np.ndarray, height: int, width: int) -> None:
    """Args: lengths: runs of one mask or several; covered: pixels of each mask, object and background."""
    # Sums of runs beyond the image could wrap around and look right.
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= height * width:
        wrong = lengths.min() if lengths.min() < 0 else lengths.max()
        raise RLEError(f"A mask of {height}x{width} has a run of {wrong} pixels: its 'counts' are damaged.")
    if (covered != height * width).any():
        raise RLEError(
            f"A mask's runs cover {covered[covered != height * width][0]} pixels but its size is {height}x{width} "
            "(height x width): its 'counts' or 'size' are damaged."
        )


def from_runs(lengths: np.ndarray | Sequence[int], height: int, width: int) -> dict[str, Any]:
    """Run-length mask with compressed ``counts`` from run lengths ``(n,)`` in pixels, starting with background."""
    return {"size": [int(height), int(width)], "counts": _text_of_runs(np.asarray(lengths, dtype=np.int64))}


def size(rle: RLE) -> tuple[int, int]:
    """Height and width of a run-length mask in pixels.

    Raises:
        RLEError: ``size`` is missing or is not two whole numbers.
    """
    try:
        height, width = (int(side) for side in rle["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise RLEError("A mask's 'size' must be [height, width] in pixels.") from error
    if height < 0 or width < 0:
        raise RLEError(f"A mask's size {height}x{width} is negative: give [height, width] in pixels.")
    return height, width


def _runs_of_list(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    try:
        values = np.asarray(counts, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise RLEError("A mask's list of runs holds something that is not a number.") from error
    if not (np.abs(values) < 2**53).all() or (values != np.floor(values)).any():
        raise RLEError("A mask's list of runs holds something that is not a whole number.")
    return values.astype(np.int64)


def _letters(counts: str | bytes | bytearray | memoryview) -> bytes:
    try:
        return counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    except UnicodeEncodeError as error:
        raise RLEError("A mask's 'counts' has letters that COCO's compressed text does not use.") from error


def _numbers_of_text(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Numbers in compressed text as they are written, not yet added up, and the place of each one's last letter."""
    letters = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if letters.size == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if letters.min() < 0 or letters.max() > 63:
        raise RLEError("A mask's 'counts' has letters that COCO's compressed text does not use.")
    last = (letters & 32) == 0
    if not last[-1]:
        raise RLEError("A mask's 'counts' is cut off.")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(letters.size) - np.repeat(starts, ends - starts + 1)
    if place.max() > 11:
        raise RLEError("A mask's 'counts' holds a number that is too large: it is damaged.")
    values = np.add.reduceat((letters & 31) << (5 * place), starts)
    negative = (letters[ends] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * (place[ends] + 1)), 0)
    return values, ends


def _sums_within(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Running sums that begin afresh after every ``counts`` values."""
    sums = np.cumsum(values)
    before = np.concatenate([[0], sums])[np.cumsum(counts) - counts]
    return sums - np.repeat(before, counts)


def _text_of_runs(lengths: np.ndarray) -> str:
    values = lengths.copy()
    values[3:] -= lengths[1:-2]
    columns, kept = [], []
    live = np.ones(values.shape, dtype=bool)
    while live.any():
        group = values & 31
        values = values >> 5
        more = np.where((group & 16) != 0, values != -1, values != 0)
        columns.append(group + np.where(more, 32, 0) + 48)
        kept.append(live)
        live = live & more
    if not columns:
        return ""
    return np.stack(columns, axis=1)[np.stack(kept, axis=1)].astype(np.uint8).tobytes().decode("ascii")
