"""Records on their way to the log, the file and MLflow: none is lost silently, none is written twice."""

import json
import time

import pytest

from jobs.training import metrics_log
from jobs.training.metrics_log import Courier, Record, RunLog
from pipelines.io.storage import Folder


def record(step):
    return Record(step, 9, {"train/loss": float(step)})


def steps_in(url):
    return [json.loads(line)["step"] for line in (Folder(str(url)).read_text("metrics.jsonl") or "").splitlines()]


class Mlflow:
    """A run whose server is down for some calls; like the real one it leaves out steps that it has."""

    run_id = "r1"

    def __init__(self, failures=0):
        self.failures = failures
        self.steps: list[int] = []

    def log_metrics(self, step, metrics):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("server is down")
        if step not in self.steps:
            self.steps.append(step)


@pytest.fixture
def no_rest(monkeypatch):
    monkeypatch.setattr(metrics_log, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(metrics_log, "REST", 0)


def test_the_file_goes_on_after_a_restart(tmp_path, no_rest):
    for steps in ((1, 2), (2, 3)):
        log = RunLog(str(tmp_path), "run", None)
        for step in steps:
            log.write(record(step))
        log.flush()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == [f'{{"step": {s}, "train/loss": {s}.0}}' for s in (1, 2, 3)]


def test_a_driver_that_is_killed_leaves_its_records_on_an_object_store(object_store):
    # Hours of curves must not hang on the end of the run: object stores cannot append.
    url = "s3://data/killed-run"
    log = RunLog(url, "run", None)
    log.write(record(1))
    log.flush()
    assert steps_in(url) == [1]
    log.write(record(2))
    log.flush(final=True)
    assert steps_in(url) == [1, 2]


def test_a_store_is_not_written_to_all_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_log, "REST", 1e9)
    log = RunLog(str(tmp_path), "run", None)
    for step in (1, 2):
        log.write(record(step))
        log.flush()
    assert steps_in(tmp_path) == [1]
    log.flush(final=True)
    assert steps_in(tmp_path) == [1, 2]


def test_records_wait_while_mlflow_is_down(tmp_path, no_rest, caplog):
    run = Mlflow(failures=2)
    log = RunLog(str(tmp_path), "run", run)
    for step in (1, 2, 3):
        log.write(record(step))
        log.flush()
    assert run.steps == [1, 2, 3] and steps_in(tmp_path) == [1, 2, 3] and log.lost() == []
    assert caplog.text.count("cannot be written now and will be tried again: server is down") == 1


def delivered(monkeypatch, log, *batches):
    """What a courier tells at its end."""
    monkeypatch.setattr(metrics_log, "POLL_SECONDS", 0.01)
    waiting = list(batches)

    def take():
        records = waiting.pop(0) if waiting else []
        if isinstance(records, Exception):
            raise records
        return records

    courier = Courier(take, log)
    courier.start()
    deadline = time.monotonic() + 30
    while waiting and time.monotonic() < deadline:
        time.sleep(0.005)
    return courier.close()


def test_what_stays_lost_is_told_at_the_end(tmp_path, monkeypatch, caplog):
    log = RunLog(str(tmp_path), "run", Mlflow(failures=99))
    told = delivered(monkeypatch, log, [record(4), record(5)])
    assert told == ["MLflow run r1 lacks 2 records, steps 4 to 5 (ConnectionError: server is down)."]
    assert told[0] in [entry.getMessage() for entry in caplog.records if entry.levelname == "ERROR"]
    assert steps_in(tmp_path) == [4, 5], "one place that fails does not hold up the other"


def test_a_mailbox_that_died_is_told(tmp_path, monkeypatch):
    told = delivered(monkeypatch, RunLog(str(tmp_path), "run", None), OSError("actor died"), [record(1)])
    assert told == ["Records were lost on their way (OSError: actor died)."]
    assert steps_in(tmp_path) == [1]


def test_nothing_is_told_where_nothing_is_lost(tmp_path, monkeypatch):
    run = Mlflow()
    assert delivered(monkeypatch, RunLog(str(tmp_path), "run", run), [record(1)], [record(2)]) == []
    assert run.steps == [1, 2]


def test_a_training_outlives_a_tracking_server_that_is_gone_at_its_end(caplog):
    # Hours of GPUs must not count as failed because the run could not be closed.
    from jobs.training.train import tell_mlflow

    def close():
        raise ConnectionError("server is down")

    (told,) = tell_mlflow(Mlflow(), close)
    assert told == "MLflow run r1 could not be closed (ConnectionError: server is down)." and told in caplog.text
    assert tell_mlflow(Mlflow(), lambda: None) == []
