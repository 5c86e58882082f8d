"""MLflow: one run after a restart, no step twice, parents and limits."""

import pytest

from jobs.common.mlflow_run import client, flatten, start_run, tracking_uri
from jobs.training.metrics_log import Record, RunLog


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def test_uri_defaults_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.slow
def test_a_resumed_run_is_one_run_without_doubled_steps(store):
    # Two half runs, or two values for one step, make every curve wrong.
    parent = start_run("exp", "recipe")
    run = start_run("exp", "stage", parent_run_id=parent.run_id)
    run.log_params({"optimizer": {"lr": 1e-4}, "long": "x" * 10_000})
    for step in (10, 20, 30):
        run.log_metrics(step, {"train/loss": step, "train/grad_norm": float("nan")})
    run.finish("FAILED")
    again = start_run("exp", "stage", run_id=run.run_id)
    for step in (20, 30, 40):
        again.log_metrics(step, {"train/loss": step})
    again.finish()
    history = client().get_metric_history(run.run_id, "train/loss")
    assert [(entry.step, entry.value) for entry in history] == [(s, s) for s in (10, 20, 30, 40)]
    stored = client().get_run(run.run_id)
    assert stored.info.status == "FINISHED" and stored.data.tags["mlflow.parentRunId"] == parent.run_id
    assert stored.data.params["optimizer.lr"] == "0.0001"
    run.log_text("hello", "note.txt")
    assert (store / "mlruns").is_dir()
    # A run that is gone is replaced, not an error.
    assert start_run("exp", "stage", run_id="0" * 32).run_id != run.run_id


def test_flatten_makes_dotted_names():
    assert flatten({"a": {"b": 1}, "c": [{"d": 2}, {"d": 3}], "e": [1, 2]}) == {
        "a.b": 1,
        "c.0.d": 2,
        "c.1.d": 3,
        "e": [1, 2],
    }


def test_jsonl_goes_on_after_a_restart(tmp_path):
    log = RunLog(str(tmp_path), "run", None)
    for step in (1, 2):
        log.write(Record(step, 4, {"train/loss": float(step)}))
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 3, "tr')  # the process was killed here
    log = RunLog(str(tmp_path), "run", None)
    for step in (2, 3):
        log.write(Record(step, 4, {"train/loss": float(step)}))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == [f'{{"step": {s}, "train/loss": {s}.0}}' for s in (1, 2, 3)]


def test_object_stores_get_the_jsonl_too():
    log = RunLog("memory://run-log-test", "run", None)
    log.write(Record(1, 4, {"train/loss": 1.0}))
    log.flush()
    from pipelines.io.storage import Folder

    assert Folder("memory://run-log-test").read_text("metrics.jsonl") == '{"step": 1, "train/loss": 1.0}\n'
