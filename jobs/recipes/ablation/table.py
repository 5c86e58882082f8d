"""The table of an ablation: means and spreads over seeds, beside published figures, and whether their order appears.

Cells of one seed share their data's order and first weights, so rows are compared seed by seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import mean, stdev
from typing import Any

from jobs.recipes.ablation.plan import Ablation, Cell

Verdict = str
SAME, OPPOSITE, UNCLEAR = "as published", "opposite", "not told apart"
# A difference counts when it is more than so many of its standard errors.
_ERRORS = 2.0


@dataclass(frozen=True)
class CellResult:
    """What a finished cell left.

    Attributes:
        metrics: of its last evaluation, without their set.
        seconds: that its stages took.
        curve: ``(step, value)`` of the ablation's curve.
    """

    metrics: dict[str, float]
    seconds: float
    curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Figure:
    """A row's figure in one column.

    Attributes:
        values: by seed, scaled.
        published: beside it, or None.
    """

    values: dict[int, float]
    published: float | None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None without any."""
        return mean(self.values.values()) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None below two."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Disagreement:
    """Two rows whose published order is not the measured one.

    Attributes:
        column: head of the column.
        higher, lower: titles of the rows, in the published order.
        published, measured: ``higher`` minus ``lower``.
        certain: whether the measured difference counts.
    """

    column: str
    higher: str
    lower: str
    published: float
    measured: float
    certain: bool


@dataclass(frozen=True)
class AblationTable:
    """All figures, by row and metric, and what follows from them.

    Attributes:
        titles: of the rows.
        figures: by row and metric.
        seconds: mean time of a row's cells.
        verdicts: by row and metric, of the difference from the baseline; only where both figures are published.
        disagreements: pairs of rows in another order than published.
        pairs: number of pairs that were compared.
        done: cells that are done.
        planned: all cells.
    """

    titles: dict[str, str]
    figures: dict[str, dict[str, Figure]]
    seconds: dict[str, float | None]
    verdicts: dict[str, dict[str, Verdict]]
    disagreements: list[Disagreement]
    pairs: int
    done: int
    planned: int
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def build_table(ablation: Ablation, found: Mapping[Cell, CellResult]) -> AblationTable:
    """The table of the cells that are done."""
    config = ablation.config
    figures = {
        name: {
            column.metric: Figure(
                {
                    seed: found[Cell(name, seed)].metrics[column.metric] * column.scale
                    for seed in config.seeds
                    if Cell(name, seed) in found and column.metric in found[Cell(name, seed)].metrics
                },
                row.published.get(column.metric),
            )
            for column in config.metrics
        }
        for name, row in config.by_name.items()
    }
    titles = {name: row.title or name for name, row in config.by_name.items()}
    verdicts: dict[str, dict[str, Verdict]] = {name: {} for name in config.by_name}
    disagreements: list[Disagreement] = []
    pairs = 0
    for column in config.metrics:
        base = figures[config.baseline][column.metric]
        for name in config.by_name:
            own = figures[name][column.metric]
            if name == config.baseline or own.published is None or base.published is None:
                continue
            verdicts[name][column.metric] = _verdict(own, base)
        known = [name for name in config.by_name if figures[name][column.metric].published is not None]
        for one, other in combinations(known, 2):
            first, second = figures[one][column.metric], figures[other][column.metric]
            assert first.published is not None and second.published is not None
            if not first.values or not second.values or first.published == second.published:
                continue
            pairs += 1
            if first.published < second.published:
                one, other, first, second = other, one, second, first
            difference, error = _difference(first, second)
            if difference <= 0:
                assert first.published is not None and second.published is not None
                disagreements.append(
                    Disagreement(
                        column.head,
                        titles[one],
                        titles[other],
                        first.published - second.published,
                        difference,
                        error is not None and abs(difference) > _ERRORS * error,
                    )
                )
    seconds = {
        name: mean(times) if (times := [result.seconds for cell, result in found.items() if cell.row == name]) else None
        for name in config.by_name
    }
    curves = {name: _mean_curve([r.curve for c, r in found.items() if c.row == name]) for name in config.by_name}
    done = sum(cell in found for cell in ablation.cells())
    return AblationTable(
        titles, figures, seconds, verdicts, disagreements, pairs, done, len(list(ablation.cells())), curves
    )


def _difference(first: Figure, second: Figure) -> tuple[float, float | None]:
    """``first`` minus ``second``, and its standard error: over the seeds that both have, else of the means."""
    both = [seed for seed in first.values if seed in second.values]
    if not both:
        assert first.mean is not None and second.mean is not None
        return first.mean - second.mean, None
    differences = [first.values[seed] - second.values[seed] for seed in both]
    if len(both) < 2:
        return differences[0], None
    return mean(differences), stdev(differences) / math.sqrt(len(both))


def _verdict(own: Figure, base: Figure) -> Verdict:
    if not own.values or not base.values:
        return ""
    assert own.published is not None and base.published is not None
    difference, error = _difference(own, base)
    if error is None or abs(difference) <= _ERRORS * error:
        return UNCLEAR
    return SAME if difference * (own.published - base.published) > 0 else OPPOSITE


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    return [(step, mean(values)) for step, values in sorted(by_step.items())]


def to_markdown(ablation: Ablation, table: AblationTable, facts: Mapping[str, Any]) -> str:
    """The table as a page: facts of the run, figures, and where the published order does not appear."""
    config = ablation.config
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += [f"- cells: {table.done} of {table.planned} done, seeds {', '.join(map(str, config.seeds))}", ""]
    published = any(row.published for row in config.rows)
    heads = ["row", "n"]
    for column in config.metrics:
        heads += [column.head, *(["published", "against the baseline"] if _has(config, column.metric) else [])]
    lines += [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for name in config.by_name:
        n = max((len(figure.values) for figure in table.figures[name].values()), default=0)
        cells = [f"**{table.titles[name]}**" if name == config.baseline else table.titles[name], str(n)]
        for column in config.metrics:
            figure = table.figures[name][column.metric]
            cells.append(_written(figure))
            if _has(config, column.metric):
                cells.append("–" if figure.published is None else f"{figure.published:g}")
                cells.append(table.verdicts[name].get(column.metric) or "–")
        lines.append(_line(cells))
    lines += ["", "Means ± standard deviation over seeds; n: cells that the row stands on."]
    if published:
        lines += ["", *_order(config.published, table)]
    return "\n".join(lines) + "\n"


def _order(source: str, table: AblationTable) -> list[str]:
    lines = [f"Published: {source}" if source else "", ""]
    lines += [
        f'"{SAME}" and "{OPPOSITE}" are said of a difference from the baseline, seed by seed, that is more than '
        f'{_ERRORS:g} of its standard errors; every other is called "{UNCLEAR}".',
        "",
    ]
    certain = [each for each in table.disagreements if each.certain]
    unsure = [each for each in table.disagreements if not each.certain]
    lines.append(
        f"Of {table.pairs} pairs of rows with published figures in one column, "
        f"{table.pairs - len(table.disagreements)} come in the published order, {len(unsure)} in the other order by a "
        f"difference that the seeds do not bear out, and {len(certain)} clearly in the other order"
        + (":" if certain else ".")
    )
    lines += [""] if certain else []
    for each in certain:
        lines.append(
            f"- {each.column}: {each.higher} is published {each.published:.1f} above {each.lower}, and is measured "
            f"{-each.measured:.1f} below it."
        )
    return lines


def to_json(ablation: Ablation, table: AblationTable, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything of the table as plain values."""
    return {
        "name": ablation.name,
        "facts": dict(facts),
        "baseline": ablation.config.baseline,
        "seeds": ablation.config.seeds,
        "done": table.done,
        "planned": table.planned,
        "rows": {
            name: {
                "title": table.titles[name],
                "changes": ablation.config.by_name[name].changes,
                "seconds": table.seconds[name],
                "metrics": {
                    metric: {
                        "mean": figure.mean,
                        "spread": figure.spread,
                        "by_seed": {str(seed): value for seed, value in figure.values.items()},
                        "published": figure.published,
                        "against_the_baseline": table.verdicts[name].get(metric),
                    }
                    for metric, figure in table.figures[name].items()
                },
                "curve": table.curves.get(name, []),
            }
            for name in ablation.config.by_name
        },
        "pairs": table.pairs,
        "other_order": [vars(each) for each in table.disagreements],
    }


def _has(config: Any, metric: str) -> bool:
    return any(metric in row.published for row in config.rows)


def _written(figure: Figure) -> str:
    if figure.mean is None:
        return "–"
    return f"{figure.mean:.1f}" + (f" ± {figure.spread:.1f}" if figure.spread is not None else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
