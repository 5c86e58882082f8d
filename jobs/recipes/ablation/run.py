"""Running an ablation: the shared stages, then its cells one after another or several at once, then the table.

Every cell is a recipe in a folder of its own: a rerun does what is missing, and a cell that was done under other
options, or on top of shared stages that have changed, is never replaced silently.
"""

import json
import logging
import os
import platform
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from jobs.common.mlflow_run import git_tags, start_run, tracking_uri
from jobs.recipes.ablation.figure import draw
from jobs.recipes.ablation.plan import Ablation, Cell, load_ablation
from jobs.recipes.ablation.table import AblationTable, CellResult, build_table, to_json, to_markdown
from jobs.recipes.load import load_recipe
from jobs.recipes.records import Observer
from jobs.recipes.run import read_json, run_recipe, versions, write_json
from jobs.training.metrics_log import FILE as RECORDS
from padt.errors import UserError
from pipelines.io.storage import Folder

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"
SHARED_KEYS = "shared.json"
REPORT = ("ablation.md", "ablation.json", "ablation.svg")


@dataclass(frozen=True)
class AblationResult:
    """What an ablation has found.

    Attributes:
        ablation: what was run.
        table: of all cells that are done.
        worked: cells that this call has done.
        run_id: MLflow run of the table.
    """

    ablation: Ablation
    table: AblationTable
    worked: int
    run_id: str | None


def run_ablation(
    file: str,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    jobs: int = 1,
    command: str = "",
    observer: Observer | None = None,
) -> AblationResult:
    """Run the cells of an ablation that are not done yet, and write its table, values and figure.

    Args:
        file: YAML file, or the name of a packaged recipe.
        overrides: see ``load_ablation``.
        output: run folder in place of the recipe's own.
        jobs: cells at work at once, each in a process of its own; 1 = one after another in this process.
        command: how it was started, for the table.
        observer: is told of the shared stages.

    Raises:
        UserError: see ``load_ablation`` and ``jobs.recipes.run.run_recipe``; or what a cell's stage raises.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: give at least 1.")
    ablation = load_ablation(file, overrides, output)
    for cell in ablation.cells():
        # All of them before anything runs: a wrong change of the last row must not cost the time of the others.
        with recipe_file(ablation.cell_recipe(cell)) as path:
            load_recipe(path, ablation.changes(cell))
    keys = _run_shared(ablation, observer)
    pending = [cell for cell in ablation.cells() if result_of(ablation, cell) is None]
    for cell in ablation.cells():
        _refuse_other_base(ablation, cell, keys)
    done = len(list(ablation.cells())) - len(pending)
    for number, cell in enumerate(_work(ablation, pending, jobs), start=done + 1):
        result = result_of(ablation, cell)
        assert result is not None
        logger.info(
            "cell %d of %d: %s, seed %d: %.0f s, %s",
            number,
            done + len(pending),
            cell.row,
            cell.seed,
            result.seconds,
            ", ".join(
                f"{column.head} {result.metrics[column.metric] * column.scale:.1f}"
                for column in ablation.config.metrics
                if column.metric in result.metrics
            ),
        )
        # After every cell, so that what is there can be read while the others run.
        write_report(ablation, command)
    table = write_report(ablation, command)
    run_id = _to_mlflow(ablation, table) if pending else None
    return AblationResult(ablation, table, len(pending), run_id)


def result_of(ablation: Ablation, cell: Cell) -> CellResult | None:
    """What a cell has left, or None where it is not done."""
    folder = ablation.folder(cell)
    summary = read_json(folder, SUMMARY)
    if summary is None:
        return None
    metrics = {name.rsplit("/", 1)[-1]: value for name, value in summary["metrics"].items()}
    seconds = sum(stage["seconds"] for stage in summary["stages"].values())
    return CellResult(metrics, seconds, tuple(_curve(ablation, folder)))


def write_report(ablation: Ablation, command: str = "") -> AblationTable:
    """Write table, values and figure of the cells that are done into the ablation's folder."""
    found = {cell: result for cell in ablation.cells() if (result := result_of(ablation, cell)) is not None}
    table = build_table(ablation, found)
    facts = _facts(command)
    folder = Folder(ablation.output)
    folder.write(REPORT[0], to_markdown(ablation, table, facts))
    folder.write(REPORT[1], json.dumps(to_json(ablation, table, facts), indent=2) + "\n")
    folder.write(REPORT[2], draw(ablation, table))
    return table


def _run_shared(ablation: Ablation, observer: Observer | None) -> dict[str, str]:
    """Run the shared stages; returns their keys."""
    if not ablation.shared["stages"]:
        return {}
    with recipe_file(ablation.shared) as path:
        run_recipe(path, ablation.shared_overrides, observer=observer)
        return load_recipe(path, ablation.shared_overrides).keys


def _refuse_other_base(ablation: Ablation, cell: Cell, keys: dict[str, str]) -> None:
    before = read_json(ablation.folder(cell), SHARED_KEYS)
    if before is None or before == keys:
        return
    changed = sorted(name for name in before.keys() | keys.keys() if before.get(name) != keys.get(name))
    raise UserError(
        f"Cell {cell.path} was begun on other shared stages ({', '.join(changed)}): give another --output, or remove "
        f"{posixpath.join(ablation.output, 'cells')}."
    )


def _work(ablation: Ablation, cells: Sequence[Cell], jobs: int) -> Iterator[Cell]:
    """Run cells; each comes out when it is done."""
    keys = load_keys(ablation)
    for cell in cells:
        write_json(ablation.folder(cell), SHARED_KEYS, keys)
    if jobs == 1:
        for cell in cells:
            run_cell(ablation, cell)
            yield cell
        return
    # Fresh processes: threads of PyTorch and of Ray do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_cell, ablation, cell): cell for cell in cells}
        try:
            for future in as_completed(running):
                future.result()
                yield running[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def load_keys(ablation: Ablation) -> dict[str, str]:
    """Keys of the shared stages as they are configured."""
    if not ablation.shared["stages"]:
        return {}
    with recipe_file(ablation.shared) as path:
        return load_recipe(path, ablation.shared_overrides).keys


def run_cell(ablation: Ablation, cell: Cell) -> None:
    """Run one cell, or what is missing of it.

    Raises:
        UserError: what a stage raises, with the cell's name before it.
    """
    with recipe_file(ablation.cell_recipe(cell)) as path:
        try:
            run_recipe(path, ablation.changes(cell))
        except UserError as error:
            raise UserError(f"Cell {cell.row}, seed {cell.seed}: {error}") from error


@contextmanager
def recipe_file(tree: dict[str, Any]) -> Iterator[str]:
    """A recipe as a YAML file, for as long as the block lasts."""
    with TemporaryDirectory(prefix="padt-ablation-") as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
        yield str(path)


def _curve(ablation: Ablation, folder: str) -> Iterator[tuple[int, float]]:
    """The ablation's curve of the last stage of a cell that left training records."""
    for stage in reversed(ablation.config.stages):
        text = Folder(posixpath.join(folder, stage)).read_text(RECORDS)
        if ablation.config.curve is None or text is None:
            continue
        for line in text.splitlines():
            record = json.loads(line)
            if ablation.config.curve in record:
                yield int(record["step"]), float(record[ablation.config.curve])
        return


def _facts(command: str) -> dict[str, Any]:
    facts = {"date": datetime.now(UTC).date().isoformat(), "commit": next(iter(git_tags().values()), "unknown")}
    if command:
        facts["command"] = f"`{command}`"
    facts["hardware"] = f"{_processor()}, {os.cpu_count()} cores"
    return facts | {"versions": ", ".join(f"{name} {version}" for name, version in versions().items())}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _to_mlflow(ablation: Ablation, table: AblationTable) -> str:
    run = start_run(ablation.experiment, ablation.name, tags={"padt.ablation": ablation.name})
    run.log_params({"cells": table.done, "planned": table.planned, "tracking_uri": tracking_uri()})
    run.log_summary(
        0,
        {
            f"ablation/{row}/{metric}": figure.mean
            for row, figures in table.figures.items()
            for metric, figure in figures.items()
            if figure.mean is not None
        },
    )
    folder = Folder(ablation.output)
    for name in REPORT:
        run.log_file(name, folder.read(name))
    run.finish()
    return run.run_id
