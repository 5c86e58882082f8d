"""`padt train` on Ray Train: kills, restarts, samples that cannot be read, finished runs."""

import json
import os
import re
import signal

import pytest
import torch
from ray.train import WorkerGroupError

from jobs.training.checkpoint import SNAPSHOT
from jobs.training.train import run_train
from padt.errors import UserError
from tests.jobs.tiny_model import write_tiny_model
from tests.jobs.training import training_runs
from tests.pipelines.mini_set import scene_row, write_mini_set, write_set

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model and a data set, shared by the tests of this file."""
    root = tmp_path_factory.mktemp("world")
    return {"root": root, "model": write_tiny_model(root / "tiny"), "set": write_mini_set(root / "set", 16)}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def config(world, output, *overrides):
    return training_runs.config(world, output, "launcher=ray", "workers=2", "zero_stage=2", *overrides)


# The driver hears of a step up to a second after it was made; a step of this model takes a few hundredths of a second.
LONG = ("steps=100", "checkpoint.every=10")


@pytest.fixture(scope="module")
def undisturbed(world):
    """Weights of a run that nobody disturbs; it reads through Ray Data."""
    result = run_train(config(world, world["root"] / "undisturbed", "reader.ray=true", *LONG))
    assert result.steps == 100 and 100 * 2 < result.samples < 100 * 6
    assert "train/loss_box" in result.metrics and "perf/data_wait_frac" in result.metrics
    return weights(result.model_path)


def weights(folder):
    from padt.checkpoints.loading import load_model

    return load_model(folder).state_dict()


class Killer:
    """Kills the worker of rank 0 (its id stands in the log) when each of some steps is reached."""

    def __init__(self, caplog, *steps):
        caplog.set_level("INFO", logger="jobs")
        self.caplog, self.steps = caplog, list(steps)

    def __call__(self, record):
        if self.steps and record.step >= self.steps[0]:
            self.steps.pop(0)
            os.kill(int(re.findall(r"worker ready.*process (\d+)", self.caplog.text)[-1]), signal.SIGKILL)


def assert_same(first, second):
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_a_run_that_is_killed_ends_with_the_same_weights(world, undisturbed, caplog, tmp_path, store):
    # Spot machines go away. The first kill is mended by Ray Train, the second ends the job and damages its last
    # checkpoint; then it is started again.
    from jobs.common.mlflow_run import client

    job = config(world, tmp_path / "run", "max_failures=1", "tracking.enabled=true", *LONG)
    killer = Killer(caplog, 15, 50)
    with pytest.raises(WorkerGroupError) as failure:
        run_train(job, on_record=killer)
    assert not killer.steps and 0 in failure.value.worker_failures
    with pytest.raises(UserError, match=r"unfinished run of another configuration \(optimizer\.lr: 0\.001 -> 0\.0001"):
        run_train(config(world, tmp_path / "run", "optimizer.lr=1e-4", *LONG))
    checkpoints = tmp_path / "run" / "checkpoints"
    listed = json.loads((checkpoints / SNAPSHOT).read_text())["checkpoint_results"]
    newest = checkpoints / max(each["checkpoint_dir_name"] for each in listed)
    largest = max(newest.rglob("*.pt"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    result = run_train(job)
    assert re.search(rf"{newest.name}: .*of \d+ bytes.*going on from step-\d+, the newest whole", caplog.text)
    starts = [int(step) for step in re.findall(r"goes on from the checkpoint of step (\d+)", caplog.text)]
    assert len(starts) == 2 and starts[0] >= 10 and starts[1] >= 30, (
        "each kill costs the steps since a checkpoint, no more, and the damage those since the one before"
    )
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 101))
    assert_same(weights(result.model_path), undisturbed)
    runs = client().search_runs([client().get_experiment_by_name("padt").experiment_id])
    assert [run.info.run_id for run in runs] == [result.run_id]
    history = client().get_metric_history(result.run_id, "train/loss")
    assert [entry.step for entry in history] == list(range(1, 101))
    # A finished run returns at once; another configuration does not overwrite it.
    again = run_train(job)
    assert again.skipped and again.model_path == result.model_path
    with pytest.raises(UserError, match="holds a finished run of another configuration"):
        run_train(config(world, tmp_path / "run", "optimizer.lr=1e-4"))


def test_a_broken_picture_is_left_out_and_counted_on_all_ranks(world, tmp_path):
    rows = [scene_row(number) for number in range(16)]
    rows[5]["image"]["bytes"] = rows[5]["image"]["bytes"][:100]
    url = write_set(tmp_path / "set", rows)
    # One epoch has 8 steps of 2 samples.
    changes = (f"data.sets.0={{url: {url}, tasks: {{detect: 1}}}}", "data.batching=null", "batch_size=1")
    result = run_train(config(world, tmp_path / "run", *changes))
    assert result.metrics["data/quarantined"] == 1
    run = tmp_path / "run"
    assert json.loads((run / "train_summary.json").read_text())["quarantined"] == 1
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = min(record["step"] for record in records if "data/quarantined" in record)
    states = {state.parent.name: json.loads(state.read_text()) for state in run.glob("checkpoints/step-*/state.json")}
    # A run that goes on knows what it has left out.
    for name, state in states.items():
        assert len(state["quarantined"]) == (int(name.removeprefix("step-")) >= first)
    assert states["step-00000006"]["samples"] == 12 - len(states["step-00000006"]["quarantined"])
    with pytest.raises(UserError, match=r"1 sample\(s\) cannot be trained on.*lets 0.*mini/train/5"):
        run_train(config(world, tmp_path / "other", *changes, "reader.quarantine=0", "workers=1", "launcher=local"))
