"""Progress of long work on stderr: a bar on a terminal, else a line every few seconds; with rate and time left."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

# Seconds between two lines where there is no terminal.
QUIET_SECONDS = 5.0

Advance = Callable[[int], None]
"""Called with the number of things done since the last call."""


@contextmanager
def counting(label: str, total: int, unit: str, show: bool = True) -> Iterator[Advance]:
    """Show how far some work is.

    Args:
        label: what is being done.
        total: number of things to do.
        unit: what they are, in the plural.
        show: say anything at all.

    Yields:
        A function that is told what has been done.
    """
    # The console that log lines go to as well, so that they do not tear the bar.
    from jobs.common.console import err

    if not show:
        yield lambda number: None
    elif err.is_terminal:
        with _bar(unit) as bar:
            task = bar.add_task(label, total=total)
            yield lambda number: bar.advance(task, number)
    else:
        yield _Lines(label, total, unit)


def every_few_seconds(say: Callable[..., None]) -> Callable[..., None]:
    """``say``, but only every few seconds, or when the first argument (last call of its kind) is true."""
    said = time.monotonic()

    def maybe(last: bool, *arguments: Any) -> None:
        nonlocal said
        if last or time.monotonic() - said >= QUIET_SECONDS:
            said = time.monotonic()
            say(*arguments)

    return maybe


def _bar(unit: str):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from jobs.common.console import err

    class Rate(ProgressColumn):
        """Things done in a second."""

        def render(self, task) -> Text:
            return Text(f"{task.speed:,.1f} {unit}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=err)


class _Lines:
    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._start = time.monotonic()
        self._say = every_few_seconds(self._line)

    def __call__(self, number: int) -> None:
        self._done += number
        self._say(self._done >= self._total)

    def _line(self) -> None:
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        logger.info(
            "%s: %s of %s %s, %.1f/s, %d:%02d left",
            self._label,
            f"{self._done:,}",
            f"{self._total:,}",
            self._unit,
            rate,
            *divmod(round(left), 60),
        )
