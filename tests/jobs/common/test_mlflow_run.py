"""MLflow: one run after a restart, no step twice, parents and limits."""

import http.server
import socket
import threading
import time

import pytest

from jobs.common.mlflow_run import check_server, client, start_run, tracking_uri
from padt.errors import UserError


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


def test_a_server_that_is_not_there_is_said_within_seconds(monkeypatch):
    # MLflow's own tries took 266 s, and ended in a traceback.
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(
        UserError, match=rf"MLflow server http://127\.0\.0\.1:{port} does not answer.*tracking\.enabled"
    ):
        check_server(f"http://127.0.0.1:{port}")
    assert time.monotonic() - begun < 5
    check_server("sqlite:///nowhere.db")


def test_a_server_that_refuses_is_there():
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(403)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        check_server(f"http://127.0.0.1:{server.server_port}")
