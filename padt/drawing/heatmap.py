"""Pictures of an explanation: a sheet for each object with what was found and a map of probability for each step."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from padt.data.rle import decode
from padt.drawing.objects import DrawnObject, draw_objects
from padt.drawing.text import INK, PAPER, font_of, readable, shortened, wrapped
from padt.inference.explain import Explanation, VRTStep
from padt.inference.results import PredictedObject

MOST_STEPS = 8
_SIDE = 520  # longest side of a picture in a panel, pixels
_LEAST = 40  # shortest side: very thin pictures are stretched
_WORDS = 400  # room for the words over a picture
_BAR = 96  # room for the colour bar right of a panel
_GAP = 20
_GRID_FROM = 14  # patches smaller than this get no lines
# A ramp that grows in lightness, from nearly black over violet and orange to light yellow.
_RAMP = np.array(
    [(10, 8, 34), (72, 16, 112), (150, 38, 110), (220, 74, 64), (250, 140, 20), (252, 232, 130)], dtype=np.float32
)


def draw_object_sheet(explanation: Explanation, number: int, most_steps: int = MOST_STEPS) -> Image.Image:
    """A sheet about one object: its box, mask, score and VRTs, then a map for each step of its group.

    Args:
        explanation: of an answer.
        number: which object of the prediction.
        most_steps: further steps are only counted.
    """
    found, steps = explanation.prediction.objects[number], explanation.steps[number]
    picture = explanation.pictures[found.image]
    grid = explanation.prediction.images[found.image].grid
    highest = max(float(step.heat[found.image].max()) for step in steps)
    panels = [_result_panel(picture, grid, found)]
    for place, step in enumerate(steps[:most_steps]):
        earlier = list(found.patches[: place + 1])
        title = f"step {place + 1}: patch #{step.patch}, probability {step.probability:.2f}"
        facts = f"all VRTs {step.vrt_mass:.2f}, entropy {step.entropy:.1f} bits"
        panels.append(_panel(_heat_picture(picture, grid, step, found.image, highest, earlier), title, facts, highest))
    notes = [] if len(steps) <= most_steps else [f"{len(steps) - most_steps} more steps are in the JSON file."]
    if not found.complete:
        notes.append("The answer was cut off or split inside this group.")
    label = f"“{found.label}”" if found.label else "an object without a name"
    return _sheet(f"Object {number + 1}: {label}", [readable(explanation.prediction.text), *notes], panels)


def draw_nearest_sheet(explanation: Explanation) -> Image.Image:
    """A sheet about an answer without VRTs: the step at which they were likeliest."""
    step = explanation.nearest
    pictures = list(explanation.pictures)
    if step is None or not pictures:
        panels = [_panel(_fitted(picture), "", "", None) for picture in pictures]
        return _sheet("The answer has no VRT", [readable(explanation.prediction.text)], panels)
    highest = float(step.heat[step.image].max())
    grid = explanation.prediction.images[step.image].grid
    heat = _heat_picture(pictures[step.image], grid, step, step.image, highest, [])
    title = f"token {step.token}: likeliest patch #{step.patch}, {step.probability:.2g}"
    facts = f"all VRTs {step.vrt_mass:.2g}, entropy {step.entropy:.1f} bits"
    return _sheet(
        "The answer has no VRT; here they were likeliest",
        [readable(explanation.prediction.text)],
        [_panel(heat, title, facts, highest)],
    )


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Colours of shares in [0, 1]: ``(...)`` -> ``(..., 3)`` float32 RGB."""
    place = np.clip(values, 0, 1) * (len(_RAMP) - 1)
    low = np.minimum(place.astype(int), len(_RAMP) - 2)
    part = (place - low)[..., None].astype(np.float32)
    return _RAMP[low] * (1 - part) + _RAMP[low + 1] * part


def _result_panel(picture: Image.Image, grid, found: PredictedObject) -> Image.Image:
    small = _fitted(picture)
    scale_x, scale_y = small.width / picture.width, small.height / picture.height
    x0, y0, x1, y1 = found.box
    thing = DrawnObject(
        label="",
        box=(x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y),
        mask=decode(found.mask) if found.mask else None,
    )
    drawn = draw_objects(small, [thing], least_side=0)
    _mark_order(drawn, grid, found.patches)
    box = ", ".join(f"{value:.0f}" for value in found.box)
    title = f"decoder: score {found.score:.2f}, VRT confidence {found.confidence:.2f}"
    return _panel(drawn, title, f"box ({box}) of {picture.width}x{picture.height} pixels", None)


def _heat_picture(
    picture: Image.Image, grid: tuple[int, int], step: VRTStep, image: int, highest: float, chosen: Sequence[int]
) -> Image.Image:
    """The picture in grey under the map of one step; ``chosen`` are the VRTs so far, the last one this step's."""
    small = _fitted(picture)
    grey = np.asarray(small.convert("L"), dtype=np.float32)[..., None]
    # Square roots let the second and third choice be seen beside the first; the bar's marks say so.
    share = np.sqrt(step.heat[image] / max(highest, 1e-12))
    rows = _cell_of_pixels(small.height, grid[0])
    columns = _cell_of_pixels(small.width, grid[1])
    shown = share[np.ix_(rows, columns)]
    strength = (0.42 + 0.43 * shown)[..., None]
    pixels = (0.5 * grey + 40) * (1 - strength) + heat_colours(shown) * strength
    if min(small.width / grid[1], small.height / grid[0]) >= _GRID_FROM:
        pixels[np.flatnonzero(np.diff(rows)) + 1] *= 0.8
        pixels[:, np.flatnonzero(np.diff(columns)) + 1] *= 0.8
    drawn = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    if chosen:
        _mark_order(drawn, grid, chosen, only_last=True)
    return drawn


def _mark_order(drawn: Image.Image, grid: tuple[int, int], chosen: Sequence[int], only_last: bool = False) -> None:
    """Number the chosen patches in order of writing, in place; with ``only_last`` the last one alone."""
    pen = ImageDraw.Draw(drawn)
    height, width = drawn.height / grid[0], drawn.width / grid[1]
    side = min(height, width)
    letters = font_of(14)
    orders: dict[int, list[int]] = {}
    for order, patch in enumerate(chosen, 1):
        orders.setdefault(patch, []).append(order)
    for patch, numbers in orders.items():
        if only_last and patch != chosen[-1]:
            continue
        row, column = divmod(patch, grid[1])
        x, y = (column + 0.5) * width, (row + 0.5) * height
        # Patches too small for a frame get a ring that is seen.
        half_w, half_h = (max(width / 2, 6), max(height / 2, 6)) if side < 12 else (width / 2, height / 2)
        frame = (x - half_w, y - half_h, x + half_w - 1, y + half_h - 1)
        pen.rectangle((frame[0] - 1, frame[1] - 1, frame[2] + 1, frame[3] + 1), outline=INK)
        pen.rectangle(frame, outline=(255, 255, 255), width=2)
        text = str(len(chosen)) if only_last else _ranges(numbers)
        length = pen.textlength(text, font=letters)
        # Inside a patch that has room for it, else right of it (left of it at the edge).
        inside = side >= 26 and length < width - 6
        left = x - length / 2 if inside else x + half_w + 3
        if not inside and left + length + 4 > drawn.width:
            left = x - half_w - 5 - length
        top = min(max(y, 10), drawn.height - 10)
        pen.rectangle((left - 3, top - 9, left + length + 3, top + 9), fill=INK)
        pen.text((left, top), text, (255, 255, 255), letters, anchor="lm")


def _ranges(numbers: Sequence[int]) -> str:
    """``1, 2, 3, 5`` as ``1-3,5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _panel(drawn: Image.Image, title: str, facts: str, highest: float | None) -> Image.Image:
    """A picture under two lines of words, with a colour bar from 0 to ``highest`` beside it."""
    letters = font_of(16)
    line = 22
    panel = Image.new(
        "RGB", (max(drawn.width + _BAR, _WORDS), max(drawn.height, 150 if highest else 0) + 2 * line + 6), PAPER
    )
    pen = ImageDraw.Draw(panel)
    pen.text((0, 0), shortened(title, letters, panel.width - 8), INK, letters)
    pen.text((0, line), shortened(facts, letters, panel.width - 8), (96, 98, 104), letters)
    top = 2 * line + 4
    panel.paste(drawn, (0, top))
    if highest:
        _draw_bar(panel, drawn.width + 12, top, min(max(drawn.height, 120), 220), highest)
    return panel


def _draw_bar(panel: Image.Image, left: int, top: int, height: int, highest: float) -> None:
    ramp = heat_colours(np.linspace(1, 0, height))[:, None].repeat(16, axis=1)
    panel.paste(Image.fromarray(ramp.round().astype(np.uint8)), (left, top))
    pen = ImageDraw.Draw(panel)
    pen.rectangle((left, top, left + 15, top + height - 1), outline=INK)
    letters = font_of(13)
    for share in (1.0, 0.25, 0.0):
        y = top + round((1 - share**0.5) * (height - 1))
        pen.line((left + 16, y, left + 20, y), fill=INK)
        anchor = "la" if share == 1.0 else "ls" if share == 0.0 else "lm"
        pen.text((left + 24, y), f"{share * highest:.2g}", INK, letters, anchor=anchor)


def _sheet(heading: str, lines: Sequence[str], panels: Sequence[Image.Image]) -> Image.Image:
    columns = max(1, min(3, len(panels)))
    column_width = max((panel.width for panel in panels), default=_WORDS) + _GAP
    width = columns * column_width + _GAP
    large, small = font_of(24), font_of(16)
    words = [line for text in lines for line in wrapped(text, small, width - 2 * _GAP)[:6]]
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    top = _GAP + 36 + 22 * len(words) + _GAP
    sheet = Image.new("RGB", (width, top + sum(max(p.height for p in row) + _GAP for row in rows)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), shortened(heading, large, width - 2 * _GAP), INK, large)
    for place, line in enumerate(words):
        pen.text((_GAP, _GAP + 36 + 22 * place), line, (96, 98, 104), small)
    for row in rows:
        for column, panel in enumerate(row):
            sheet.paste(panel, (_GAP + column * column_width, top))
        top += max(panel.height for panel in row) + _GAP
    return sheet


def _fitted(picture: Image.Image) -> Image.Image:
    """The picture at the size of a panel."""
    scale = _SIDE / max(picture.size)
    width, height = (max(_LEAST, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def _cell_of_pixels(pixels: int, cells: int) -> np.ndarray:
    """Which of ``cells`` equal cells each pixel's centre lies in."""
    return ((np.arange(pixels) + 0.5) * cells / pixels).astype(int).clip(0, cells - 1)
