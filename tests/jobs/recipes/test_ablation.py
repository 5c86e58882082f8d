"""An ablation must run every cell once, go on where it stopped, and never say more than its cells bear out."""

import json
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import create_autospec

import pytest
import yaml

from jobs.recipes import run as recipe_module
from jobs.recipes import stages as stages_module
from jobs.recipes.ablation.plan import Cell, is_ablation, load_ablation
from jobs.recipes.ablation.run import recipe_file, run_ablation
from jobs.recipes.ablation.table import OPPOSITE, SAME, UNCLEAR, CellResult, build_table, to_json, to_markdown
from jobs.recipes.load import load_recipe
from jobs.recipes.stage import Stage, StageContext
from jobs.recipes.tracking import RecipeTracker
from padt.errors import UserError

CALLS: list[str] = []


class MakeStage(Stage):
    """Stands for a stage that leaves something."""

    kind: ClassVar[str] = "make"
    text: str

    def perform(self, context: StageContext) -> dict[str, Any]:
        CALLS.append(context.name)
        Path(context.folder, "made.txt").write_text(self.text)
        return {}


class LearnStage(Stage):
    """Stands for training and evaluation in one: a figure that follows from options and seed."""

    kind: ClassVar[str] = "evaluate"
    data: str
    worth: float = 0.5
    seed: int = 0
    fail: bool = False

    def perform(self, context: StageContext) -> dict[str, Any]:
        CALLS.append(context.folder.split("cells/")[1].removesuffix("/learn"))
        if self.fail:
            raise UserError("broken on purpose")
        assert Path(self.data, "made.txt").read_text() == "data"
        records = [{"step": step, "train/loss": 1 / step} for step in (1, 2)]
        Path(context.folder, "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
        Path(context.folder, "metrics.json").write_text("{}")
        return {"metrics": {"eval/toy/gIoU": self.worth + self.seed / 1000}}


TREE: dict[str, Any] = {
    "name": "tiny",
    "stages": {"prepare": {"do": "make", "text": "data"}},
    "ablation": {
        "baseline": "full",
        "seeds": [1, 2],
        "seeded": ["learn.seed"],
        "metrics": [{"metric": "gIoU", "scale": 100}],
        "curve": "train/loss",
        "stages": {"learn": {"do": "evaluate", "data": "${prepare}"}},
        "rows": [
            {"name": "full", "published": {"gIoU": 76.1}},
            {"name": "worse", "changes": ["learn.worth=0.2"], "published": {"gIoU": 69.5}},
            {"name": "better", "changes": ["learn.worth=0.9"], "published": {"gIoU": 19.8}},
            {"name": "same", "title": "no change"},
        ],
    },
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    monkeypatch.setattr(stages_module, "KINDS", {"make": MakeStage, "evaluate": LearnStage})
    monkeypatch.setattr(recipe_module, "ray_session", recipe_module.nullcontext)
    monkeypatch.setattr(recipe_module, "RecipeTracker", _no_tracker())
    monkeypatch.setattr("jobs.recipes.ablation.run._to_mlflow", lambda ablation, table: "run")
    CALLS.clear()
    return _write(tmp_path, TREE)


def _no_tracker() -> Any:
    """In place of MLflow, whose database takes seconds to make."""
    tracker = create_autospec(RecipeTracker)
    tracker.return_value.configure_mock(run_id=None, uri="")
    tracker.return_value.open.return_value = "run"
    return tracker


def _write(folder: Path, tree: dict[str, Any]) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"output": str(folder / "run"), **tree}, sort_keys=False))
    return str(path)


def test_cells_are_all_rows_under_each_seed_with_their_changes(file: str) -> None:
    ablation = load_ablation(file, ["learn.worth=0.4", "ablation.seeds=[5, 6]"])
    assert [(cell.row, cell.seed) for cell in ablation.cells()] == [
        *((row, 5) for row in ("full", "worse", "better", "same")),
        *((row, 6) for row in ("full", "worse", "better", "same")),
    ]
    # A row's own change wins over one that is meant for all cells.
    assert ablation.changes(Cell("worse", 6)) == ["learn.worth=0.4", "learn.worth=0.2", "learn.seed=6"]
    assert ablation.cell_recipe(Cell("full", 5))["stages"]["learn"]["data"] == f"{ablation.output}/shared/prepare"


def test_cells_run_once_and_a_rerun_does_what_is_missing(file: str) -> None:
    first = run_ablation(file, ["ablation.seeds=[1]"])
    assert CALLS == ["prepare", "full/seed-1", "worse/seed-1", "better/seed-1", "same/seed-1"]
    assert first.table.done == first.table.planned == 4
    CALLS.clear()
    second = run_ablation(file)
    assert CALLS == ["full/seed-2", "worse/seed-2", "better/seed-2", "same/seed-2"]
    assert second.worked == 4 and second.table.figures["full"]["gIoU"].values == pytest.approx({1: 50.1, 2: 50.2})
    CALLS.clear()
    assert run_ablation(file).worked == 0 and not CALLS


def test_a_table_is_there_after_each_cell_and_a_failed_cell_is_named(file: str) -> None:
    tree = json.loads(json.dumps(TREE))
    tree["ablation"]["rows"][2]["changes"].append("learn.fail=true")
    path = _write(Path(file).parent, tree)
    with pytest.raises(UserError, match="Cell better, seed 1: broken on purpose"):
        run_ablation(path)
    report = (Path(file).parent / "run" / "ablation.md").read_text()
    assert "cells: 2 of 8 done" in report
    _write(Path(file).parent, TREE)
    CALLS.clear()
    with pytest.raises(UserError, match="begun under other options"):
        run_ablation(file)


def test_several_jobs_give_the_same_table(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Threads in place of processes, which would not know this file's stages.
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(
        "jobs.recipes.ablation.run.ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs)
    )
    together = run_ablation(file, jobs=3)
    alone = run_ablation(file, output=str(Path(file).parent / "other"))
    assert sorted(CALLS[1:9]) == sorted(CALLS[10:])
    assert together.table.figures == alone.table.figures


def test_cells_on_shared_stages_that_changed_are_refused(file: str) -> None:
    run_ablation(file, ["ablation.seeds=[1]"])
    tree = {**TREE, "stages": {"prepare": {"do": "make", "text": "data", "more": "x"}}}
    with pytest.raises(UserError, match="more"):
        run_ablation(_write(Path(file).parent, tree))
    shared = Path(file).parent / "run" / "cells" / "full" / "seed-1" / "shared.json"
    shared.write_text('{"prepare": "other"}')
    with pytest.raises(UserError, match=r"cells/full/seed-1 was begun on other shared stages \(prepare\)"):
        run_ablation(_write(Path(file).parent, TREE))


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("baseline",), "ful", "did you mean full"),
        (("rows", 1, "name"), "full", "name twice"),
        (("rows", 1, "changes"), ["learn.wurth=1"], "wurth"),
        (("rows", 1, "changes"), ["teach.worth=1"], "teach"),
        (("rows", 0, "published"), {"cIoU": 1.0}, "cIoU"),
        (("metrics", 0, "metric"), "gIuO", "gIoU"),
        (("seeds",), [1, 1], "seed twice"),
        (("stages",), {"prepare": {"do": "make", "text": "x"}}, "both shared and a cell's"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(file: str, place: tuple, value: Any, said: str) -> None:
    tree = json.loads(json.dumps(TREE))
    part = tree["ablation"]
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(UserError, match=said):
        run_ablation(_write(Path(file).parent, tree))
    assert not CALLS


def test_differences_count_by_their_spread_and_the_published_order_is_checked(file: str) -> None:
    ablation = load_ablation(file, ["ablation.seeds=[1, 2, 3]"])
    figures = {"full": (50, 52, 54), "worse": (40, 43, 44), "better": (80, 79, 86), "same": (49, 53, 54)}
    found = {
        Cell(row, seed): CellResult({"gIoU": value / 100}, 10.0)
        for row, values in figures.items()
        for seed, value in enumerate(values, start=1)
    }
    table = build_table(ablation, found)
    figure = table.figures["full"]["gIoU"]
    assert figure.mean == pytest.approx(52) and figure.spread == pytest.approx(2)
    assert table.verdicts["worse"] == {"gIoU": SAME}
    assert table.verdicts["better"] == {"gIoU": OPPOSITE}
    assert table.verdicts["same"] == {}
    told = {(each.higher, each.lower): (each.certain, each.measured) for each in table.disagreements}
    assert told.keys() == {("full", "better"), ("worse", "better")}
    assert told["full", "better"] == (True, pytest.approx(-29.67, abs=0.01))
    page = to_markdown(ablation, table, {"date": "today"})
    assert "| **full** | 3 | 52.0 ± 2.0 | 76.1 | – |" in page
    assert "full is published 56.3 above better, and is measured 29.7 below it" in page
    assert json.loads(json.dumps(to_json(ablation, table, {})))["rows"]["worse"]["metrics"]["gIoU"]["published"] == 69.5

    # The same means on noisier seeds, and a single seed, say nothing.
    found[Cell("worse", 1)], found[Cell("worse", 3)] = found[Cell("worse", 3)], CellResult({"gIoU": 0.60}, 1.0)
    assert build_table(ablation, found).verdicts["worse"] == {"gIoU": UNCLEAR}
    single = {cell: result for cell, result in found.items() if cell.seed == 1}
    table = build_table(ablation, single)
    assert set(table.verdicts["better"].values()) == {UNCLEAR} and not any(d.certain for d in table.disagreements)
    assert table.figures["full"]["gIoU"].spread is None and (table.done, table.planned) == (4, 12)


def test_the_packaged_ablation_holds_in_every_cell() -> None:
    assert is_ablation("toy_ablation") and not is_ablation("toy")
    ablation = load_ablation("toy_ablation", output="runs/x")
    cells = list(ablation.cells())
    assert len(cells) == 3 * len(ablation.config.rows)
    kinds = set()
    for cell in cells[: len(ablation.config.rows)]:
        with recipe_file(ablation.cell_recipe(cell)) as path:
            kinds |= {stage.kind for stage in load_recipe(path, ablation.changes(cell)).stages.values()}
    assert kinds == {"train", "evaluate"}
