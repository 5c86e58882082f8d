"""The figure of an ablation as SVG: every row's seeds, mean and published value, and training curves beside them."""

from html import escape
from itertools import pairwise

from jobs.recipes.ablation.plan import Ablation
from jobs.recipes.ablation.table import AblationTable

_ROW, _TOP, _LABELS, _PANEL, _GAP = 20, 46, 250, 190, 26
_CURVES = 300
_INK, _GREY, _MARK = "#1f4e79", "#b8c4d0", "#d1601f"
_PALETTE = ("#1f4e79", "#d1601f", "#2b8a3e", "#8f3f97", "#b08900", "#0b7285", "#c2255c", "#5c5f66")


def draw(ablation: Ablation, table: AblationTable) -> str:
    """One panel a column (dots: seeds, bar: mean, diamond: published), and one of the training curves."""
    rows, columns = list(table.titles), ablation.config.metrics
    curves = {row: curve for row, curve in table.curves.items() if len(curve) > 1}
    height = _TOP + _ROW * len(rows) + 40
    width = _LABELS + (_PANEL + _GAP) * len(columns) + (_CURVES + 150 if curves else 0)
    parts = [_text(8, 18, f"{ablation.name}: {table.done} of {table.planned} cells", 14, weight="bold")]
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number + 14
        weight = "bold" if row == ablation.config.baseline else "normal"
        parts.append(_text(_LABELS - 8, y, table.titles[row], 12, anchor="end", weight=weight))
    for number, column in enumerate(columns):
        parts += _panel(table, rows, column.metric, column.head, _LABELS + (_PANEL + _GAP) * number)
    if curves and ablation.config.curve is not None:
        left = _LABELS + (_PANEL + _GAP) * len(columns) + 30
        parts += _curves(table, curves, ablation.config.curve, left, height - 40)
    parts.append(
        _text(_LABELS, height - 8, "dots: seeds   bar: mean   diamond: published (another model, other data)", 11)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _panel(table: AblationTable, rows: list[str], metric: str, head: str, left: int) -> list[str]:
    figures = [table.figures[row][metric] for row in rows]
    shown = [value for figure in figures for value in figure.values.values()]
    shown += [figure.published for figure in figures if figure.published is not None]
    top = max([*shown, 1e-9])
    parts = [_text(left, 38, f"{head} (0 to {top:.3g})", 12)]
    for number, figure in enumerate(figures):
        y = _TOP + _ROW * number
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{_PANEL}" height="{_ROW - 6}" fill="#f3f5f7"/>')
        if figure.mean is not None:
            wide = _PANEL * max(0.0, figure.mean) / top
            parts.append(f'<rect x="{left}" y="{y + 3}" width="{wide:.1f}" height="{_ROW - 6}" fill="{_GREY}"/>')
        for value in figure.values.values():
            parts.append(f'<circle cx="{left + _PANEL * value / top:.1f}" cy="{y + 10}" r="2.6" fill="{_INK}"/>')
        if figure.published is not None:
            x, middle = left + _PANEL * figure.published / top, y + 10
            corners = f"{x:.1f},{middle - 5} {x + 4:.1f},{middle} {x:.1f},{middle + 5} {x - 4:.1f},{middle}"
            parts.append(f'<polygon points="{corners}" fill="none" stroke="{_MARK}" stroke-width="1.5"/>')
    return parts


def _curves(
    table: AblationTable, curves: dict[str, list[tuple[int, float]]], metric: str, left: int, bottom: int
) -> list[str]:
    steps = [step for curve in curves.values() for step, _ in curve]
    values = [value for curve in curves.values() for _, value in curve]
    low, high = min(values), max(values)
    reach = max(steps) - min(steps) or 1
    span = high - low or 1.0
    parts = [_text(left, 38, f"{metric} ({low:.3g} to {high:.3g}) over {max(steps)} steps", 12)]
    parts.append(
        f'<rect x="{left}" y="{_TOP}" width="{_CURVES}" height="{bottom - _TOP}" fill="none" stroke="{_GREY}"/>'
    )
    for number, (row, curve) in enumerate(curves.items()):
        colour = _PALETTE[number % len(_PALETTE)]
        dashes = ("", ' stroke-dasharray="5 3"', ' stroke-dasharray="2 2"')[number // len(_PALETTE) % 3]
        points = [
            (left + _CURVES * (step - min(steps)) / reach, bottom - (bottom - _TOP) * (value - low) / span)
            for step, value in curve
        ]
        for (x0, y0), (x1, y1) in pairwise(points):
            parts.append(
                f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" '
                f'stroke-width="1.4"{dashes}/>'
            )
        y = _TOP + 10 + 16 * number
        parts.append(
            f'<line x1="{left + _CURVES + 8}" y1="{y}" x2="{left + _CURVES + 26}" y2="{y}" stroke="{colour}" '
            f'stroke-width="2"{dashes}/>'
        )
        parts.append(_text(left + _CURVES + 30, y + 4, table.titles[row][:24], 10))
    return parts


def _text(x: float, y: float, words: str, size: int, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="#222">{escape(words)}</text>'
    )
