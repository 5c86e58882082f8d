"""How the command line runs an ablation and shows its table."""

import shlex
from collections.abc import Sequence

from jobs.cli.stage_lines import StageLines
from jobs.common.console import err, out, shorter, table
from jobs.recipes.ablation.run import REPORT, run_ablation
from padt.errors import UserError


def show_ablation(
    recipe: str, overrides: Sequence[str], output: str | None, jobs: int, unfit: Sequence[str] = ()
) -> None:
    """Run an ablation and print its table.

    Args:
        recipe: its file.
        overrides: changes.
        output: run folder in place of its own.
        jobs: cells at work at once.
        unfit: options that were given and do not go with it.

    Raises:
        UserError: see ``run_ablation``; or an option was given that does not go with it.
    """
    if unfit:
        raise UserError(
            f"{unfit[0]} does not go with an ablation, which makes the cells whose folders are not there: remove "
            "cells/ROW or cells/ROW/seed-N in the run folder, or shared/STAGE together with cells; "
            "ablation.seeds=[1] runs a part."
        )
    words = ["padt", "run", recipe, *overrides, *(["--output", output] if output else [])]
    words += ["--jobs", str(jobs)] if jobs > 1 else []
    result = run_ablation(recipe, overrides, output=output, jobs=jobs, command=shlex.join(words), observer=StageLines())
    found, columns = result.table, result.ablation.config.metrics
    rows = [
        [found.titles[row], str(max(len(figure.values) for figure in figures.values()))]
        + [_written(figures[column.metric].mean, figures[column.metric].spread) for column in columns]
        for row, figures in found.figures.items()
    ]
    title = f"Ablation {result.ablation.name}: {found.done} of {found.planned} cells"
    out.print(table(title, ["row", "n>", *(f"{column.head}>" for column in columns)], rows))
    for name in REPORT:
        err.print(f"  {shorter(f'{result.ablation.output}/{name}')}")


def _written(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")
