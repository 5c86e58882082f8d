"""How the command line looks: tables, progress lines, log lines. Nothing here knows what a verb does."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from padt.metrics.table import find_metric, in_order, label, written


class Lines(Console):
    """A console that leaves words as they are: a class called "[/b]" is no markup, and no line is folded.

    Paths and commands are there to be copied, whatever the width of the terminal, which wraps them itself.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """See ``rich.console.Console.print``; tables keep to the width."""
        options.setdefault("soft_wrap", all(isinstance(each, str) for each in objects))
        super().print(*objects, **options)


class _Handler(logging.Handler):
    """Writes log lines between the bars of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            err.print(f"[{time.strftime('%X')}] {self.format(record)}")
        except Exception:
            self.handleError(record)


# Results go to stdout; everything about how it goes goes to stderr, so that output can be piped.
out = Lines()
err = Lines(stderr=True)

ROOMS = ("jobs", "pipelines", "padt", "serve")


# Libraries whose warnings are no news to a user: the local Ray's token, MLflow's tables.
_QUIET = ("ray._private.authentication", "alembic", "mlflow.store.db.utils")


def set_up_logging(verbose: bool = False) -> None:
    """Show the log lines of this project's rooms on stderr, and of other libraries only warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Handler()], force=True)
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        for library in _QUIET:
            logging.getLogger(library).setLevel(logging.ERROR)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table; columns ending in ``>`` are right-aligned, numbers are written for people, ``Text`` keeps its style."""
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        drawn.add_column(column.removesuffix(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(value if isinstance(value, Text) else number(value) for value in row))
    return drawn


def metrics_table(title: str, scores: Mapping[str, Mapping[str, float]], named: Callable[[str], str] = label) -> Table:
    """Metrics by row, evaluations by column, the best of each row in bold.

    Args:
        title: of the table.
        scores: ``scores[evaluation][metric]``.
        named: what stands for a metric's name (``padt.metrics.table.label`` or ``title``).
    """
    names = in_order({name for metrics in scores.values() for name in metrics})
    folders = {name.rpartition("/")[0] for name in names}
    # One set: its name goes into the title, not in front of every metric.
    shared = f"{folders.pop()}/" if len(folders) == 1 else ""
    title = f"{title} ({shared}...)" if shared else title
    rows = []
    for name in names:
        values = [metrics.get(name) for metrics in scores.values()]
        metric = find_metric(name)
        best = metric.best(values) if metric is not None else None
        cells = ("" if value is None else written(name, value) for value in values)
        rows.append(
            [
                named(name.removeprefix(shared)),
                *(Text(cell, "bold" if place == best else "") for place, cell in enumerate(cells)),
            ]
        )
    return table(title, ["metric", *(f"{evaluation}>" for evaluation in scores)], rows)


def shorter(path: str) -> str:
    """A path below the working folder without its head."""
    here = f"{Path.cwd()}/"
    return path.removeprefix(here)


def number(value: Any) -> str:
    """A value for a table: three digits after the point, thousands separated, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return str(value)


def fail(message: str) -> None:
    """Write an error to stderr, unwrapped, so that it can be searched for."""
    print(f"error: {message}", file=sys.stderr)
