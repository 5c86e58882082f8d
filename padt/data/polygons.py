"""Masks as polygons along the edges of their pixels, exact to the pixel.

A ring runs around 4-connected pixels of the object, in pixels of the image with the origin at the top left corner of
the first pixel. COCO's polygons have no holes, and its readers fill whatever a ring surrounds. So a ring that surrounds
holes goes into each of them over a cut without width and back: filled by any rule it is the mask again.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from padt.data.rle import RLE, bounds, crop, decode

# Which of the pixels around a lattice point are the object's: above left, above right, below left, below right.
_ABOVE_LEFT, _ABOVE_RIGHT, _BELOW_LEFT, _BELOW_RIGHT = 1, 2, 4, 8
Point = tuple[int, int]


def _turns(code: int) -> list[tuple[int, int]]:
    """Corners of the outline at a point: whether it goes (left 0 or right 1, up 0 or down 1) from there."""
    a, b, c, d = (bool(code & bit) for bit in (_ABOVE_LEFT, _ABOVE_RIGHT, _BELOW_LEFT, _BELOW_RIGHT))
    if (a, d) == (True, True) and (b, c) == (False, False):
        return [(0, 0), (1, 1)]
    if (a, d) == (False, False) and (b, c) == (True, True):
        return [(0, 1), (1, 0)]
    return [(int(b != d), int(c != d))] if (a != c) != (b != d) else []


_TURNS = [_turns(code) for code in range(16)]
_CORNERS = np.array([len(turns) for turns in _TURNS])


def polygons(rle: RLE) -> list[list[int]]:
    """Rings ``[x0, y0, x1, y1, ...]`` of a run-length mask, in pixels; none for an empty mask.

    Raises:
        RLEError: the mask is damaged.
    """
    span = bounds(rle)
    if span is None:
        return []
    mask = np.pad(decode(crop(rle, *span)), 1)
    outline = _Outline(mask)
    shift = np.array(span[:2])
    return [(np.array(ring) + shift).reshape(-1).tolist() for ring in outline.rings()]


class _Outline:
    """The corners of a mask, each with the next one along its row and along its column."""

    def __init__(self, mask: np.ndarray) -> None:
        code = mask[:-1, :-1].astype(np.uint8)
        for bit, part in ((2, mask[:-1, 1:]), (4, mask[1:, :-1]), (8, mask[1:, 1:])):
            code += bit * part.view(np.uint8)
        ys, xs = np.nonzero(_CORNERS[code])
        codes = code[ys, xs]
        counts = _CORNERS[codes]
        second = np.repeat(np.arange(len(xs)), counts)
        turns = np.array([turn for value in codes.tolist() for turn in _TURNS[value]])
        self._mask = mask
        self.x, self.y, self._codes = xs[second], ys[second], codes[second]
        across, along = turns[:, 0], turns[:, 1]
        self._beside = _partners(np.lexsort((across, self.x, self.y)))
        by_column = np.lexsort((along, self.y, self.x))
        self._below = _partners(by_column)
        # Vertical edges from top to bottom, in order of column and row.
        self._edges = by_column[::2]
        self._edge_of = np.empty(len(by_column), np.int64)
        self._edge_of[by_column] = np.arange(len(by_column)) // 2

    def rings(self) -> Iterator[list[Point]]:
        """Rings around the object's parts, each with its holes."""
        paths = self._paths()
        inside = {start: self._codes[start] & _BELOW_RIGHT == 0 for start in paths}
        holes = self._cuts([start for start in paths if inside[start]])
        pieces = {start: self._with_cuts(path, holes) for start, path in paths.items()}
        for start in paths:
            if not inside[start]:
                yield self._joined(start, pieces, inside)

    def _paths(self) -> dict[int, list[int]]:
        """Corners of each closed path by its first one, which is the leftmost of its topmost."""
        beside, below = self._beside.tolist(), self._below.tolist()
        seen = bytearray(len(beside))
        paths = {}
        for start in range(len(beside)):
            if seen[start]:
                continue
            path, node = [], start
            while True:
                path += [node, beside[node]]
                seen[node] = seen[beside[node]] = True
                node = below[beside[node]]
                if node == start:
                    break
            paths[start] = path
        return paths

    def _cuts(self, holes: list[int]) -> dict[int, list[tuple[int, int, int]]]:
        """For each vertical edge the cuts that end there: row, column, and the first corner of the hole."""
        cuts: dict[int, list[tuple[int, int, int]]] = {}
        tall = self._mask.shape[0]
        keys = self.x[self._edges] * tall + self.y[self._edges]
        for hole in holes:
            x, y = int(self.x[hole]), int(self.y[hole])
            row = self._mask[y, : x + 1] & self._mask[y + 1, : x + 1]
            end = int(np.flatnonzero(~row)[-1])
            edge = int(np.searchsorted(keys, end * tall + y, side="right")) - 1
            cuts.setdefault(edge, []).append((y, end, hole))
        return cuts

    def _with_cuts(self, path: list[int], cuts: dict[int, list[tuple[int, int, int]]]) -> list[Point | int]:
        """The points of a path; a number stands for the hole that a cut leads to from the point before it."""
        pieces: list[Point | int] = []
        for place, node in enumerate(path):
            pieces.append((int(self.x[node]), int(self.y[node])))
            if place % 2 and (found := cuts.get(int(self._edge_of[node]))):
                down = self.y[path[(place + 1) % len(path)]] > self.y[node]
                for y, x, hole in sorted(found, reverse=not down):
                    pieces += [(x, y), hole, (x, y)]
        return pieces

    def _joined(self, start: int, pieces: dict[int, list[Point | int]], inside: dict[int, Any]) -> list[Point]:
        points: list[Point] = []
        left: list[Iterator[Point | int]] = [iter(pieces[start])]
        while left:
            piece = next(left[-1], None)
            if piece is None:
                left.pop()
            elif isinstance(piece, tuple):
                if not points or points[-1] != piece:
                    points.append(piece)
            else:
                # Around a hole the other way.
                hole = pieces[piece]
                left.append(iter([hole[0], *reversed(hole)]))
        if points[-1] == points[0]:
            points.pop()
        return points


def _partners(order: np.ndarray) -> np.ndarray:
    """Each corner's other end, where sorted corners are the two ends of an edge in turn."""
    partner = np.empty_like(order)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    return partner
