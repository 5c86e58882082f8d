"""Pictures that show what the model sees and says: patch grid, patches, VRTs, masks, boxes, labels, sentences.

Small images are scaled up before anything is drawn, and lines and letters grow with large ones, so that a picture of
112 pixels and one of 4000 are equally legible.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from padt.data import rle
from padt.drawing.text import INK, PAPER, font_of, height_of, shortened, wrapped

Colour = tuple[int, int, int]

# Distinct in hue and lightness, also to most colour-blind eyes for the first few; repeated after the last.
PALETTE: tuple[Colour, ...] = (
    (255, 176, 0),
    (0, 158, 255),
    (233, 52, 120),
    (46, 204, 87),
    (155, 92, 255),
    (255, 110, 48),
    (0, 199, 190),
    (244, 102, 224),
    (170, 196, 38),
    (92, 124, 250),
    (196, 128, 72),
    (226, 60, 60),
)
LEAST_SIDE = 960
_MOST_FACTOR = 8
_CROWD = 12
# With more, tags would hide the picture and each other, and finding places for them takes its time squared.
_MOST_TAGS = 100
_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)


@dataclass(frozen=True)
class DrawnObject:
    """One object of a picture.

    Attributes:
        label: class name or sentence; an empty one gets no tag.
        score: confidence in [0, 1], or None.
        box: ``xyxy`` in pixels of the image, or None.
        mask: ``(height, width)`` bool of the image's size, or its COCO run lengths, or None.
        patches: patches to tint (the foreground), row-major indices in the grid.
        vrts: patches to emphasise (those that a model named), row-major indices in the grid.
        colour: number of its colour, so that two pictures can show one thing alike; None = its place in the list.
    """

    label: str
    score: float | None = None
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | Mapping[str, Any] | None = None
    patches: tuple[int, ...] = ()
    vrts: tuple[int, ...] = ()
    colour: int | None = None


def draw_objects(
    image: Image.Image,
    objects: Sequence[DrawnObject],
    grid: tuple[int, int] | None = None,
    caption: str | None = None,
    least_side: int = LEAST_SIDE,
    lettering: float = 1.0,
) -> Image.Image:
    """Draw objects over an image.

    Args:
        image: upright RGB image.
        objects: what to draw; the first object has the palette's first colour. More than a hundred get no tags.
        grid: rows and columns of patches ``(grid_h, grid_w)``; draws the grid, and is needed for patches and VRTs.
        caption: text below the picture; its lines are kept and long ones wrapped.
        least_side: a smaller image is scaled up to about so many pixels, so that lines and letters find room.
        lettering: size of tags and captions, as a multiple of the usual one, for pictures that are shown small.

    Returns:
        A new RGB image, scaled up where the image is small.
    """
    image = image.convert("RGB")
    factor = _factor(image.size, least_side)
    size = (round(image.width * factor), round(image.height * factor))
    style = _Style(max(size), crowded=len(objects) > _CROWD, lettering=lettering)
    # Large objects first, so that small ones lie on top of them.
    order = sorted(range(len(objects)), key=lambda number: -_extent(objects[number]))
    colours = [colour_of(place if item.colour is None else item.colour) for place, item in enumerate(objects)]
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC) if factor != 1 else image).astype(np.float32)
    for number in order:
        _tint_mask(pixels, _decoded(objects[number].mask), colours[number], style)
    cells = _Cells(grid, size) if grid is not None else None
    if cells is not None:
        _draw_grid(pixels, cells)
        for number in order:
            _tint_patches(pixels, objects[number], cells, colours[number], style)
    canvas = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for number in order:
        _draw_box(pen, objects[number].box, factor, size, colours[number], style)
    if cells is not None:
        for number in order:
            _mark_vrts(pen, objects[number].vrts, cells, colours[number], style)
    if len(objects) <= _MOST_TAGS:
        _draw_tags(pen, objects, colours, factor, size, cells, style)
    return canvas if not caption else _with_caption(canvas, caption, style)


def contact_sheet(
    pictures: Sequence[Image.Image], columns: int, titles: Sequence[str] | None = None, cell_width: int = 640
) -> Image.Image:
    """Lay pictures out in a grid.

    Args:
        pictures: RGB images of any size; each is scaled to the width of a cell, tall ones to its height.
        columns: pictures side by side.
        titles: a line above each picture.
        cell_width: width of a cell in pixels.
    """
    gap, height_limit = 16, round(cell_width * 1.25)
    columns = max(1, min(columns, len(pictures)))
    style = _Style(cell_width)
    line = style.line_height if titles else 0
    tiles = [_fit(picture, cell_width, height_limit) for picture in pictures]
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [max(tiles[place].height for place in row) + line for row in rows]
    sheet = Image.new(
        "RGB", (columns * (cell_width + gap) + gap, sum(heights) + gap * (len(rows) + 1)), PAPER if rows else _WHITE
    )
    pen = ImageDraw.Draw(sheet)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, place in enumerate(row):
            left = gap + column * (cell_width + gap)
            tile = tiles[place]
            sheet.paste(tile, (left, top + line))
            if titles:
                pen.text((left, top), shortened(titles[place], style.font, cell_width), INK, style.font)
        top += height + gap
    return sheet


def colour_of(number: int) -> Colour:
    """Colour of the object with that number."""
    return PALETTE[number % len(PALETTE)]


class _Style:
    """Widths and letters for a picture whose longer side has ``side`` pixels; tags are smaller where there are many."""

    def __init__(self, side: int, crowded: bool = False, lettering: float = 1.0) -> None:
        self.line = max(2, round(side / (480 if crowded else 320)))
        self.font = font_of(round(lettering * max(13, round(side / 46))))
        self.tag_font = font_of(round(lettering * max(12, round(side / (68 if crowded else 50)))))
        self.line_height = height_of(self.font) + 6
        self.tag_height = height_of(self.tag_font) + 4


class _Cells:
    """Edges of the patches in pixels of the drawn picture."""

    def __init__(self, grid: tuple[int, int], size: tuple[int, int]) -> None:
        self.grid_h, self.grid_w = grid
        self.x = [round(column * size[0] / self.grid_w) for column in range(self.grid_w + 1)]
        self.y = [round(row * size[1] / self.grid_h) for row in range(self.grid_h + 1)]

    def box(self, patch: int) -> tuple[int, int, int, int] | None:
        row, column = divmod(patch, self.grid_w)
        if not 0 <= row < self.grid_h:
            return None
        return self.x[column], self.y[row], self.x[column + 1], self.y[row + 1]


def _factor(size: tuple[int, int], least_side: int) -> float:
    side = max(size)
    if side >= least_side:
        return 1
    # Whole factors keep the edges of patches and pixels where they are.
    return min(_MOST_FACTOR, math.ceil(least_side / side))


def _blend(region: np.ndarray, where: np.ndarray | None, colour: Colour, share: float) -> None:
    """Mix a colour into pixels ``(h, w, 3)``, where the flags ``(h, w)`` are set."""
    paint = np.asarray(colour, dtype=np.float32)
    if where is None:
        region += (paint - region) * share
    else:
        region[where] += (paint - region[where]) * share


def _extent(item: DrawnObject) -> float:
    """Area of an object as far as it is known, to draw large ones first."""
    if item.box is not None:
        return (item.box[2] - item.box[0]) * (item.box[3] - item.box[1])
    mask = _decoded(item.mask)
    return float(mask.sum()) if mask is not None else float(len(item.patches))


def _decoded(mask: np.ndarray | Mapping[str, Any] | None) -> np.ndarray | None:
    # Decoded one by one: thousands of masks of a large picture do not fit the memory together.
    return rle.decode(mask) if isinstance(mask, Mapping) else mask


def _tint_mask(pixels: np.ndarray, mask: np.ndarray | None, colour: Colour, style: _Style) -> None:
    if mask is None:
        return
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return
    height, width = pixels.shape[:2]
    scale_y, scale_x = height / mask.shape[0], width / mask.shape[1]
    top, bottom = int(rows[0] * scale_y), min(height, math.ceil((rows[-1] + 1) * scale_y))
    left, right = int(columns[0] * scale_x), min(width, math.ceil((columns[-1] + 1) * scale_x))
    # One pixel of the picture takes the mask's pixel under its centre.
    source_y = ((np.arange(top, bottom) + 0.5) / scale_y).astype(int)
    source_x = ((np.arange(left, right) + 0.5) / scale_x).astype(int)
    inside = mask[np.ix_(source_y.clip(0, mask.shape[0] - 1), source_x.clip(0, mask.shape[1] - 1))].astype(bool)
    region = pixels[top:bottom, left:right]
    _blend(region, inside, colour, 0.24)
    edge = inside & ~_eroded(inside, style.line)
    _blend(region, edge, INK, 0.5)
    _blend(region, edge & _eroded(inside, 1), colour, 0.95)


def _eroded(flags: np.ndarray, steps: int) -> np.ndarray:
    padded = np.pad(flags, steps)
    for _ in range(steps):
        smaller = padded.copy()
        smaller[1:] &= padded[:-1]
        smaller[:-1] &= padded[1:]
        smaller[:, 1:] &= padded[:, :-1]
        smaller[:, :-1] &= padded[:, 1:]
        padded = smaller
    return padded[steps:-steps, steps:-steps]


def _draw_grid(pixels: np.ndarray, cells: _Cells) -> None:
    # Each line is a light and a dark one side by side, to be seen on any background.
    for x in cells.x[1:-1]:
        _blend(pixels[:, x - 1 : x], None, _WHITE, 0.32)
        _blend(pixels[:, x : x + 1], None, _BLACK, 0.24)
    for y in cells.y[1:-1]:
        _blend(pixels[y - 1 : y], None, _WHITE, 0.32)
        _blend(pixels[y : y + 1], None, _BLACK, 0.24)


def _tint_patches(pixels: np.ndarray, item: DrawnObject, cells: _Cells, colour: Colour, style: _Style) -> None:
    fill = 0.14 if item.mask is not None else 0.3
    for patch in item.patches:
        box = cells.box(patch)
        if box is None:
            continue
        x0, y0, x1, y1 = box
        inset = min(style.line, (x1 - x0) // 6, (y1 - y0) // 6)
        region = pixels[y0 + inset : y1 - inset, x0 + inset : x1 - inset]
        _blend(region, None, colour, fill)
        edge = np.ones(region.shape[:2], dtype=bool)
        edge[1:-1, 1:-1] = False
        _blend(region, edge, colour, 0.7)


def _draw_box(pen, box, factor: float, size: tuple[int, int], colour: Colour, style: _Style) -> None:
    if box is None:
        return
    x0, y0, x1, y1 = _on_canvas(box, factor, size)
    halo = max(1, style.line // 2)
    pen.rectangle((x0 - halo, y0 - halo, x1 + halo, y1 + halo), outline=INK, width=style.line + 2 * halo)
    pen.rectangle((x0, y0, x1, y1), outline=colour, width=style.line)


def _on_canvas(box, factor: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (value * factor for value in box)
    x0, x1 = sorted((min(max(x0, 0), size[0] - 1), min(max(x1, 0), size[0] - 1)))
    y0, y1 = sorted((min(max(y0, 0), size[1] - 1), min(max(y1, 0), size[1] - 1)))
    return x0, y0, x1, y1


def _mark_vrts(pen, vrts: Sequence[int], cells: _Cells, colour: Colour, style: _Style) -> None:
    for patch in dict.fromkeys(vrts):
        box = cells.box(patch)
        if box is None:
            continue
        x0, y0, x1, y1 = box
        side = min(x1 - x0, y1 - y0)
        line = max(1, min(style.line, side // 9))
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=_WHITE, width=line)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        radius = max(3.0, min(side * 0.3, style.line * 5))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=_WHITE, width=line)


def _draw_tags(
    pen,
    objects: Sequence[DrawnObject],
    colours: Sequence[Colour],
    factor: float,
    size,
    cells: _Cells | None,
    style: _Style,
) -> None:
    taken: list[tuple[float, float, float, float]] = []
    for number, item in enumerate(objects):
        text = item.label if item.score is None else f"{item.label} {item.score:.2f}".strip()
        place = _place_of(item, factor, size, cells)
        if not text or place is None:
            continue
        text = shortened(text, style.tag_font, round(size[0] * 0.9))
        width, height = pen.textlength(text, font=style.tag_font) + 8, style.tag_height
        tag = _free_place(place, width, height, size, taken)
        taken.append(tag)
        colour = colours[number]
        pen.rectangle(tag, fill=colour, outline=INK)
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        ink = INK if light > 130 else _WHITE
        pen.text((tag[0] + 4, (tag[1] + tag[3]) / 2), text, ink, style.tag_font, anchor="lm")


def _place_of(item: DrawnObject, factor: float, size, cells: _Cells | None):
    """Where an object is, on the canvas: its box, else its patches; None where it has neither."""
    if item.box is not None:
        return _on_canvas(item.box, factor, size)
    boxes = [box for patch in item.vrts or item.patches if cells is not None and (box := cells.box(patch)) is not None]
    if not boxes:
        return None
    lows, highs = np.min(boxes, axis=0), np.max(boxes, axis=0)
    return float(lows[0]), float(lows[1]), float(highs[2]), float(highs[3])


def _free_place(place, width: float, height: float, size: tuple[int, int], taken) -> tuple[float, float, float, float]:
    """A rectangle for a tag: above the object, else inside, else below, else wherever it hides no other tag."""
    x0, y0, x1, y1 = place
    corners = [(x0, y0 - height), (x0, y0), (x0, y1), (x0, y1 - height), (x1 - width, y0), (x1 - width, y1 - height)]
    corners += [(x0, y0 + step * height) for step in range(1, 8)]
    tags = []
    for left, top in corners:
        left = min(max(left, 0), max(0, size[0] - width - 1))
        top = min(max(top, 0), max(0, size[1] - height - 1))
        tags.append((left, top, left + width, top + height))

    def hidden(tag) -> float:
        return sum(
            max(0.0, min(tag[2], other[2]) - max(tag[0], other[0]))
            * max(0.0, min(tag[3], other[3]) - max(tag[1], other[1]))
            for other in taken
        )

    return min(tags, key=hidden)


def _with_caption(canvas: Image.Image, caption: str, style: _Style) -> Image.Image:
    margin = style.line_height // 2
    lines = wrapped(caption, style.font, canvas.width - 2 * margin)
    page = Image.new("RGB", (canvas.width, canvas.height + len(lines) * style.line_height + 2 * margin), PAPER)
    page.paste(canvas, (0, 0))
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((margin, canvas.height + margin + number * style.line_height), line, INK, style.font)
    return page


def _fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS) if size != picture.size else picture
