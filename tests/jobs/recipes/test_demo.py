"""The demo's own steps: done once for each version, and a rerun says what it did itself."""

from pathlib import Path

import pytest

from jobs.cli.main import main
from jobs.recipes import demo
from jobs.recipes.records import RecipeResult, StageRecord


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict:
    """A recipe that is done without work, of the version in ``version``; ``calls`` holds what its model was asked."""
    state: dict = {"version": 1, "skipped": False, "calls": []}

    def recipe(file, overrides, *, output, observer):
        results = {
            "prepare": {"sets": {"val": {"url": "set"}}},
            "evaluate": {
                "metrics": {"eval/toy/gIoU": 0.5},
                "by_kind": {"place": {"sentences": 1234, "precision_at_0.5": 0.875}},
            },
            "register": {"promoted": True, "uri": f"models:/padt/{state['version']}"},
        }
        stages = [
            StageRecord(name, name, f"{output}/{name}", 100.0, state["skipped"], result)
            for name, result in results.items()
        ]
        return RecipeResult("toy", output, stages, "run", "sqlite:///mlflow.db")

    def predict(model, questions):
        state["calls"].append("predict")
        return [tmp_path / "run" / "predict" / "refer.png"]

    def ask(model, question, folder):
        state["calls"].append("serve")
        return {"text": f"version {state['version']}", "milliseconds": 1}

    monkeypatch.setattr(demo, "run_recipe", recipe)
    monkeypatch.setattr(demo, "held_out_questions", lambda url, folder: [None])
    monkeypatch.setattr(demo, "_predict", predict)
    monkeypatch.setattr(demo, "_ask_served", ask)
    monkeypatch.setattr("jobs.common.ray_session.ensure_ray", lambda dashboard=False: False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return state


def test_a_rerun_repeats_nothing_and_does_not_tell_the_first_runs_time(told, tmp_path, capsys):
    output = str(tmp_path / "run")
    assert main(["demo", "-o", output]) == 0
    shown = capsys.readouterr()
    assert "Done in 300 s. Look at" in shown.out
    # Kinds of sentences apart: a mean would hide one that is at chance.
    assert all(text in shown.out for text in ("place", "1,234", "0.875"))
    told["skipped"] = True
    assert main(["demo", "-o", output]) == 0
    shown = capsys.readouterr()
    assert told["calls"] == ["predict", "serve"]
    assert "Everything was done already. Look at" in shown.out and "refer.png" in shown.out
    assert "serve: already done" in shown.err


def test_another_version_is_asked_again(told, tmp_path):
    output = str(tmp_path / "run")
    demo.run_demo(output)
    told["version"] = 2
    assert demo.run_demo(output).served["text"] == "version 2"
    assert told["calls"] == ["predict", "serve"] * 2
