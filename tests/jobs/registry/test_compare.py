"""Comparing runs: the right numbers in the right columns, and a warning where columns do not compare."""

import json
from pathlib import Path

import pytest

from jobs.cli.main import main
from jobs.common import console
from jobs.registry.compare import run_compare, short_names
from padt.errors import UserError


def evaluation(folder: Path, metrics: dict[str, float], **values) -> str:
    folder.mkdir(parents=True)
    content = {"metrics": metrics, "set": "toy", "data_fingerprint": "d1", **values}
    (folder / "metrics.json").write_text(json.dumps(content))
    return str(folder)


def test_metrics_side_by_side(tmp_path):
    first = evaluation(tmp_path / "a" / "evaluate", {"eval/toy/gIoU": 0.5, "eval/toy/caption_tokens": 9})
    second = evaluation(tmp_path / "b" / "evaluate", {"eval/toy/gIoU": 0.7, "eval/toy/bbox_AP": 0.1})
    table = run_compare([first, second])
    assert table.scores == {
        "a/evaluate": {"eval/toy/gIoU": 0.5, "eval/toy/caption_tokens": 9.0},
        "b/evaluate": {"eval/toy/gIoU": 0.7, "eval/toy/bbox_AP": 0.1},
    }
    assert table.warnings == ()
    only = run_compare([first, second], contains="IoU")
    assert only.scores == {"a/evaluate": {"eval/toy/gIoU": 0.5}, "b/evaluate": {"eval/toy/gIoU": 0.7}}


def test_different_data_under_one_name_is_said(tmp_path):
    first = evaluation(tmp_path / "a", {"eval/toy/gIoU": 0.5})
    second = evaluation(tmp_path / "b", {"eval/toy/gIoU": 0.7}, data_fingerprint="d2")
    (warning,) = run_compare([first, second]).warnings
    assert warning.startswith("The scores on 'toy' are not comparable: a is about data d1; b is about data d2")


def test_a_part_of_the_data_is_named_as_the_reason(tmp_path):
    # README's own pair: the base model is measured on a part of the scenes.
    first = evaluation(tmp_path / "evaluate_base", {"eval/toy/gIoU": 0.5}, data_fingerprint="d1[:60]")
    second = evaluation(tmp_path / "evaluate", {"eval/toy/gIoU": 0.7})
    (warning,) = run_compare([first, second]).warnings
    assert "evaluate_base is about its first 60 images; evaluate is about all its images" in warning
    assert "same --limit" in warning


def test_short_names_stay_different():
    assert short_names(["runs/x/eval", "runs/y/eval/metrics.json"]) == ("x/eval", "y/eval")
    assert short_names(["models:/padt@champion", "runs/x"]) == ("models:/padt@champion", "x")


def test_bad_sources_are_named(tmp_path):
    with pytest.raises(UserError, match="nothing to compare"):
        run_compare([])
    with pytest.raises(UserError, match=r"has no metrics\.json"):
        run_compare([str(tmp_path)])
    with pytest.raises(UserError, match="No metric's name contains 'XYZ'"):
        run_compare([evaluation(tmp_path / "a", {"eval/toy/gIoU": 0.5})], contains="XYZ")
    (tmp_path / "a" / "metrics.json").write_text("[1]")
    with pytest.raises(UserError, match=r"is not an evaluation's metrics\.json"):
        run_compare([str(tmp_path / "a")])


def test_the_best_is_emphasised_and_brackets_are_nobodys_markup(tmp_path, capsys):
    # A style written as markup would stand in the cells as text; a folder called "[b]" must keep its name.
    first = evaluation(tmp_path / "[b]first", {"eval/toy/gIoU": 0.5})
    second = evaluation(tmp_path / "second", {"eval/toy/gIoU": 0.7})
    assert main(["compare", first, second]) == 0
    shown = capsys.readouterr().out
    assert "[b]first" in shown and "0.700" in shown and "[bold]" not in shown


def test_the_best_of_a_lower_is_better_metric_is_the_lowest():
    drawn = console.metrics_table(
        "Scores",
        {
            "first": {"eval/toy/calibration_error": 0.2, "eval/toy/gIoU": 0.5, "eval/toy/caption_tokens": 9.0},
            "second": {"eval/toy/calibration_error": 0.1, "eval/toy/gIoU": 0.7, "eval/toy/caption_tokens": 8.0},
            "third": {"eval/toy/calibration_error": 0.3, "eval/toy/ours": 1.0},
        },
    )
    cells = [list(column.cells) for column in drawn.columns]
    assert cells[0] == ["gIoU", "calibration_error (lower is better)", "caption_tokens", "ours"]
    bold = [[str(cell) for cell in column if cell.style == "bold"] for column in cells[1:]]
    assert bold == [[], ["0.700", "0.100"], []]
