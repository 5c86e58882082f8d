"""Charts as inline SVG, for pages that load nothing; colours come from the page's style, so light and dark both fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from padt.drawing.page import Markup, element

_BAR = (100, 10)
_PLOT = (320, 240)
_MARGIN = (46, 10, 10, 40)
_TICKS = 5
_LEGEND = 18


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: shown in the legend.
        points: ``(x, y)``, in the order of x.
    """

    name: str
    points: tuple[tuple[float, float], ...]


def bar(share: float, interval: tuple[float, float] | None = None, second: bool = False) -> Markup:
    """A small bar for a cell of a table.

    Args:
        share: part of the whole width, in [0, 1]; what is beyond is cut off.
        interval: where the share may lie, drawn as a thin line.
        second: in the second colour, for shares of which less is better.
    """
    width, height = _BAR
    long = width * _unit(share)
    parts = [
        element("rect", width=width, height=height, rx=2, class_="track"),
        element("rect", width=_at(long), height=height, rx=2, class_="ink2" if second else "ink"),
    ]
    if interval is not None:
        low, high = (_at(width * _unit(end)) for end in interval)
        middle = _at(height / 2)
        parts.append(element("line", x1=low, x2=high, y1=middle, y2=middle, class_="mark"))
    return element("svg", *parts, class_="bar", width=width, height=height, aria_hidden="true")


def reliability(bins: Sequence[tuple[float, float, int]], label: str) -> Markup:
    """A reliability diagram: how often objects of a score are right, beside what the scores promise.

    Args:
        bins: mean score, share that is right, number; empty ones are left out. The area of a dot goes with its number.
        label: what it shows, for those who hear the page.
    """
    frame = _Frame((0.0, 1.0), (0.0, 1.0))
    parts = [*frame.axes("score", "share that is right")]
    parts.append(element("line", **frame.ends((0.0, 0.0), (1.0, 1.0)), class_="dashed"))
    peak = max((number for _, _, number in bins), default=1)
    for score, right, number in bins:
        x, y = frame.place(score, right)
        # The gap to the diagonal is the error.
        parts.append(element("line", x1=x, x2=x, y1=y, y2=frame.place(score, score)[1], class_="rule"))
        parts.append(element("circle", cx=x, cy=y, r=_at(2.5 + 7.5 * (number / peak) ** 0.5), class_="ink"))
    return frame.drawn(parts, label)


def line_chart(
    lines: Sequence[Line], x_title: str, y_title: str, label: str, y_range: tuple[float, float] | None = None
) -> Markup:
    """Up to two lines over one axis, with a legend.

    Args:
        lines: at least one point in all.
        x_title: name of the axis below.
        y_title: name of the axis at the left.
        label: what it shows, for those who hear the page.
        y_range: ends of the axis at the left; default: those of the values.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    frame = _Frame((min(xs), max(xs)), y_range or (min(ys), max(ys)), len(lines) if len(lines) > 1 else 0)
    parts = [*frame.axes(x_title, y_title)]
    for number, line in enumerate(lines):
        points = [frame.place(x, y) for x, y in line.points]
        parts.append(
            element("polyline", points=" ".join(f"{x},{y}" for x, y in points), class_=("line", "line2")[number % 2])
        )
        parts += [element("circle", cx=x, cy=y, r=3, class_=("ink", "ink2")[number % 2]) for x, y in points]
        if len(lines) > 1:
            top = 12 + _LEGEND * number
            parts.append(element("circle", cx=_MARGIN[0] + 4, cy=top - 4, r=4, class_=("ink", "ink2")[number % 2]))
            parts.append(element("text", line.name, x=_MARGIN[0] + 14, y=top))
    return frame.drawn(parts, label)


class _Frame:
    """Axes and the way from values to places in the drawing.

    Args:
        x_range, y_range: ends of the axes.
        legend: lines of words above.
    """

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float], legend: int = 0) -> None:
        self._ranges = tuple((low, high if high > low else low + 1) for low, high in (x_range, y_range))
        self._top = _MARGIN[1] + _LEGEND * legend

    def place(self, x: float, y: float) -> tuple[str, str]:
        (x0, x1), (y0, y1) = self._ranges
        across, up = _unit((x - x0) / (x1 - x0)), _unit((y - y0) / (y1 - y0))
        return _at(_MARGIN[0] + _PLOT[0] * across), _at(self._top + _PLOT[1] * (1 - up))

    def ends(self, first: tuple[float, float], last: tuple[float, float]) -> dict[str, str]:
        (x1, y1), (x2, y2) = self.place(*first), self.place(*last)
        return {"x1": x1, "y1": y1, "x2": x2, "y2": y2}

    def axes(self, x_title: str, y_title: str) -> list[Markup]:
        (x0, x1), (y0, y1) = self._ranges
        foot = self._top + _PLOT[1]
        parts = []
        for y in _ticks(y0, y1):
            parts.append(element("line", **self.ends((x0, y), (x1, y)), class_="rule"))
            place = self.place(x0, y)[1]
            parts.append(element("text", f"{y:.3g}", x=_MARGIN[0] - 6, y=place, dy="0.35em", text_anchor="end"))
        for x in _ticks(x0, x1):
            place = self.place(x, y0)[0]
            parts.append(element("text", f"{x:.3g}", x=place, y=foot + 15, text_anchor="middle"))
        parts.append(element("line", **self.ends((x0, y0), (x1, y0)), class_="axis"))
        parts.append(element("line", **self.ends((x0, y0), (x0, y1)), class_="axis"))
        parts.append(element("text", x_title, x=_MARGIN[0] + _PLOT[0] // 2, y=foot + 33, text_anchor="middle"))
        middle = self._top + _PLOT[1] // 2
        turned = f"rotate(-90 12 {middle})"
        parts.append(element("text", y_title, x=12, y=middle, transform=turned, text_anchor="middle"))
        return parts

    def drawn(self, parts: Sequence[Markup], label: str) -> Markup:
        width, height = _PLOT[0] + _MARGIN[0] + _MARGIN[2], self._top + _PLOT[1] + _MARGIN[3]
        box = f"0 0 {width} {height}"
        return element("svg", *parts, width=width, height=height, viewBox=box, role="img", aria_label=label)


def _ticks(low: float, high: float) -> list[float]:
    """About ``_TICKS`` round values from end to end."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if high > 1 and float(low).is_integer() and float(high).is_integer():
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))


def _at(value: float) -> str:
    """A place in the drawing, in a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
