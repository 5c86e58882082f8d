"""An evaluation that is no recipe's stage has a run of its own in MLflow, which costs it nothing where it fails."""

import pytest

from jobs.cli.main import main
from jobs.evaluation.tracking import track, wanted_tracking
from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.mini_set import write_mini_set

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("faster_coco_eval")


def test_the_environment_or_an_option_decides(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert [wanted_tracking(asked) for asked in (None, True, False)] == [False, True, False]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    assert [wanted_tracking(asked) for asked in (None, True, False)] == [True, True, False]


def test_scores_counts_and_pictures_are_entered(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    data = write_mini_set(tmp_path / "set", scenes=2)
    model = write_tiny_model(tmp_path / "model")
    out = str(tmp_path / "out")
    command = ["evaluate", model, data, "--out", out, "--max-new-tokens", "4", "--device", "cpu", "--no-masks"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "answers_truncated" in printed and "parser_warnings" in printed and "errors" in printed
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("padt-evaluations")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["eval/mini/precision_at_0.5"] == 0.0
    assert run.data.metrics["eval/mini/counts/answers_truncated"] > 0
    assert "eval/mini/gIoU" not in run.data.metrics
    assert run.data.params["model"] == model and run.data.params["settings.masks"] == "False"
    left = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert left == {"metrics.json", "predictions.png", "report.html"}
    assert main(["score", out, "--data", data, "--no-mlflow"]) == 0
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_a_server_that_goes_away_costs_no_scores(monkeypatch, caplog):
    def fail(*arguments, **options):
        raise ConnectionError("gone")

    monkeypatch.setattr("jobs.evaluation.tracking.start_run", fail)
    assert track({"set": "toy", "metrics": {}, "counts": {}}, None) is None
    assert "padt score" in caplog.text
