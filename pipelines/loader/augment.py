"""Augmentation: another view of a row's picture, with boxes, masks, patches and words that fit it.

A view is a window of the upright picture, mirrored or not, at some scale. Nothing is guessed: patches are computed from
the moved masks, words of direction are swapped, and what a window cuts away is no longer asked for.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from padt.data.image import MAX_ASPECT_RATIO, PATCH, ResizePolicy, open_image
from padt.data.patches import pack_patches, packed_foreground
from padt.data.rle import area, bounds, crop, mirror
from padt.data.tasks import TASKS
from padt.errors import UserError, check_range
from pipelines.loader.mirror_text import mirror_text

Row = dict[str, Any]
Window = tuple[int, int, int, int]

_WINDOW_TRIES = 8
# Words whose meaning depends on what else is in the picture, or on its borders.
_WHOLE_PICTURE = re.compile(
    r"\d|\b(?:middle|cent(?:er|re)|second|third|fourth|fifth|last|corner|edge|border|between|half|whole|entire|background|"
    r"foreground|cropped|cut|partial(?:ly)?|visible|picture|image|photo|screen|frame)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class AugmentOptions:
    """Which views are drawn.

    Attributes:
        flip: probability of mirroring left to right. Sentences and captions must be English.
        scale: smallest and largest factor of the picture's sides; the resize policy's limits still hold.
        crop: probability of showing a window only.
        crop_area: smallest and largest share of the picture that a window shows.
        min_visible: share of an object's area from which on it counts as shown; below, it is neither asked for nor
            called absent, and a window never cuts what the sample's own sentence or caption speaks of below it.
    """

    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    crop: float = 0.0
    crop_area: tuple[float, float] = (0.5, 1.0)
    min_visible: float = 0.5

    def __post_init__(self) -> None:
        for name in ("flip", "crop", "min_visible"):
            check_range(f"data.augment.{name}", getattr(self, name), 0, 1)
        if not 0 < self.scale[0] <= self.scale[1] <= 8:
            raise UserError(f"data.augment.scale is {list(self.scale)}: give [low, high] with 0 < low <= high <= 8.")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise UserError(
                f"data.augment.crop_area is {list(self.crop_area)}: give [low, high] with 0 < low <= high <= 1."
            )

    def scales(self, draws: np.ndarray) -> np.ndarray:
        """Uniform draws ``(n,)`` in [0, 1) -> factors ``(n,)`` of pictures' sides: doubling is as likely as halving."""
        low, high = (math.log(value) for value in self.scale)
        return np.exp(low + (high - low) * draws)

    def largest_grid(
        self, grid_h: np.ndarray, grid_w: np.ndarray, scales: np.ndarray, policy: ResizePolicy
    ) -> np.ndarray:
        """Most patches that a view of pictures with these grids can have at these scales, all ``(n,)``."""
        if self.scale == (1.0, 1.0) and not self.crop:
            return grid_h * grid_w
        # A side of g patches is up to g + 1/2 patches long before rounding, here as at the new scale.
        sides = [np.floor((side + 0.5) * scales + 0.5).astype(np.int64) for side in (grid_h, grid_w)]
        area, limit = np.maximum(sides[0], 1) * np.maximum(sides[1], 1), policy.max_pixels // policy.factor**2
        # Where the policy's limits shape a picture, its sides may be far from these, or round another way in a window.
        smallest = 2 * math.ceil(policy.min_pixels / policy.factor**2)
        whole = np.maximum((grid_h + 1) * (grid_w + 1), smallest)
        bound = (grid_h * grid_w <= smallest) | ((grid_h + 1) * (grid_w + 1) > limit) | (area <= smallest)
        return np.where(bound, np.minimum(np.maximum(area, whole), np.maximum(limit, grid_h * grid_w)), area)


@dataclass(frozen=True)
class View:
    """What of a picture is shown, and how.

    Attributes:
        window: ``(x0, y0, x1, y1)`` pixels of the upright picture, ends exclusive.
        mirrored: left and right are swapped (after cutting).
        size: height and width in pixels after resizing; multiples of a patch within the policy.
    """

    window: Window
    mirrored: bool
    size: tuple[int, int]

    def image(self, image: Image.Image) -> Image.Image:
        """The view of an upright picture."""
        if self.window != (0, 0, image.width, image.height):
            image = image.crop(self.window)
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        height, width = self.size
        return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def augment(
    row: Row, task: str, scale: float, rng: np.random.Generator, options: AugmentOptions, policy: ResizePolicy
) -> Row:
    """A row as one random view of it shows it; the row itself where no other view would do.

    Args:
        row: a row of a shard with the picture's bytes, holding no sentence or caption but those that the sample asks
            for: all of them stay true and shown, or else that part of the view is not drawn.
        task: what the row is read for.
        scale: factor of the picture's sides, drawn beforehand since batches are cut by size.
        rng: source of the draws, always the same number of them.
        options: which views.
        policy: resize policy of the row.

    Raises:
        padt.errors.ImageError: the picture cannot be read.
    """
    draws = rng.random((1 + _WINDOW_TRIES, 3))
    height, width = row["height"], row["width"]
    window: Window = (0, 0, width, height)
    texts = _texts(row, task)
    if draws[0, 0] < options.crop and not any(_WHOLE_PICTURE.search(text) for text in texts):
        window = next(_windows(row, draws[1:], options), window)
    mirrored = bool(draws[0, 1] < options.flip) and all(mirror_text(text) is not None for text in texts)
    x0, y0, x1, y1 = window
    size = policy.size(max(1, round((y1 - y0) * scale)), max(1, round((x1 - x0) * scale)))
    if window == (0, 0, width, height) and not mirrored and size == policy.size(height, width):
        return row
    view = View(window, mirrored, size)
    seen = view_row(row, view, options.min_visible)
    if _lost(row, seen):
        return row
    seen["image"] = {**row["image"], "bytes": view.image(open_image(row["image"]["bytes"]))}
    return seen


def view_row(row: Row, view: View, min_visible: float = 0.5) -> Row:
    """Annotations of a row in a view of its picture; the picture itself is left as it is.

    Objects outside the window leave; those of which less than ``min_visible`` is shown stay without patches. Sentences
    and captions about either leave, and so do those that cannot be told mirrored.
    """
    grid = (view.size[0] // PATCH, view.size[1] // PATCH)
    if view.window != (0, 0, row["width"], row["height"]):
        row = _cut(row, view.window, min_visible)
    if view.mirrored:
        row = _mirror(row)
    patches = _patches(row["objects"], grid)
    objects = [{**entry, "patches": each} for entry, each in zip(row["objects"], patches, strict=True)]
    return {**row, "objects": objects, "grid_h": grid[0], "grid_w": grid[1]}


def _lost(row: Row, seen: Row) -> bool:
    """Whether something that a sentence or caption speaks of has no patch left in a view: it is too small there."""
    for column in ("references", "captions"):
        for before, after in zip(row[column], seen[column], strict=True):
            for i, j in zip(before["objects"], after["objects"], strict=True):
                if any(row["objects"][i]["patches"]) and not any(seen["objects"][j]["patches"]):
                    return True
    return False


def _texts(row: Row, task: str) -> list[str]:
    column = TASKS[task].column
    return [entry["text"] for entry in row[column]] if column else []


def _windows(row: Row, draws: np.ndarray, options: AugmentOptions) -> Iterator[Window]:
    """Windows that show all that the row's sentences and captions speak of, in order of the draws."""
    height, width = row["height"], row["width"]
    wanted = {index for column in ("references", "captions") for entry in row[column] for index in entry["objects"]}
    low, high = options.crop_area
    for share, x, y in draws:
        side = math.sqrt(low + (high - low) * share)
        w, h = max(1, round(width * side)), max(1, round(height * side))
        x0, y0 = math.floor(x * (width - w + 1)), math.floor(y * (height - h + 1))
        if max(w, h) > MAX_ASPECT_RATIO * min(w, h):
            continue
        window = (x0, y0, x0 + w, y0 + h)
        if all(_shown(row["objects"][i], row, window)[1] >= options.min_visible for i in wanted):
            yield window


def _shown(entry: Row, row: Row, window: Window) -> tuple[Row | None, float]:
    """An object in a window (None: not there at all), and the share of its area that is shown."""
    x0, y0, x1, y1 = window
    width, height = row["width"], row["height"]
    # The annotated box stays as it is where nothing is cut: it may be finer than pixels.
    box = [value * side for value, side in zip(entry["box"], (width, height) * 2, strict=True)]
    cut = [max(box[0], x0), max(box[1], y0), min(box[2], x1), min(box[3], y1)]
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        return None, 0.0
    full = (box[2] - box[0]) * (box[3] - box[1])
    rle = entry.get("rle")
    if rle is not None:
        rle = crop(rle, *window)
        whole, left = area(entry["rle"]), area(rle)
        spanned = bounds(rle)
        if not whole or spanned is None:
            return None, 0.0
        share = left / whole
        if left < whole:
            inner = [spanned[0] + x0, spanned[1] + y0, spanned[2] + x0, spanned[3] + y0]
            tight = [*map(max, cut[:2], inner[:2]), *map(min, cut[2:], inner[2:])]
            cut = tight if tight[0] < tight[2] and tight[1] < tight[3] else cut
    else:
        share = (cut[2] - cut[0]) * (cut[3] - cut[1]) / full if full > 0 else 0.0
    moved = [(cut[0] - x0) / (x1 - x0), (cut[1] - y0) / (y1 - y0), (cut[2] - x0) / (x1 - x0), (cut[3] - y0) / (y1 - y0)]
    return {**entry, "box": moved, "rle": rle, "area": entry["area"] * share}, share


def _cut(row: Row, window: Window, min_visible: float) -> Row:
    objects: list[Row] = []
    number: dict[int, int] = {}
    for index, entry in enumerate(row["objects"]):
        shown, share = _shown(entry, row, window)
        if shown is None:
            continue
        if share >= min_visible:
            number[index] = len(objects)
        objects.append({**shown, "hidden": share < min_visible})
    return {
        **row,
        "width": window[2] - window[0],
        "height": window[3] - window[1],
        "objects": objects,
        "references": _renumbered(row["references"], number),
        "captions": _renumbered(row["captions"], number),
    }


def _renumbered(items: Sequence[Mapping[str, Any]], number: Mapping[int, int]) -> list[Row]:
    kept = [item for item in items if all(index in number for index in item["objects"])]
    return [{**item, "objects": [number[index] for index in item["objects"]]} for item in kept]


def _mirror(row: Row) -> Row:
    objects = []
    for entry in row["objects"]:
        x0, y0, x1, y1 = entry["box"]
        rle = mirror(entry["rle"]) if entry.get("rle") is not None else None
        objects.append({**entry, "box": [1 - x1, y0, 1 - x0, y1], "rle": rle})
    return {
        **row,
        "objects": objects,
        "references": _mirrored_texts(row["references"]),
        "captions": _mirrored_texts(row["captions"]),
    }


def _mirrored_texts(items: Sequence[Mapping[str, Any]]) -> list[Row]:
    told = [(item, mirror_text(item["text"])) for item in items]
    return [{**item, "text": text} for item, text in told if text is not None]


def _patches(objects: Sequence[Row], grid: tuple[int, int]) -> list[bytes]:
    none = pack_patches(np.zeros(grid, bool))
    packed = packed_foreground(objects, *grid)
    return [none if entry.get("hidden") else patches for entry, patches in zip(objects, packed, strict=True)]
