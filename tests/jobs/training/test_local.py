"""One worker in this process, without Ray and without DeepSpeed: the same files, and the same end after kills."""

import json
import signal

import pytest
import torch

from jobs.training.launch import launcher_of
from jobs.training.train import run_train
from padt.checkpoints.loading import load_model
from padt.errors import UserError
from tests.jobs.tiny_model import write_tiny_model
from tests.jobs.training.training_runs import config, run_apart, train, train_until
from tests.pipelines.mini_set import write_mini_set


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model and a data set, and what an undisturbed run on them ends with."""
    root = tmp_path_factory.mktemp("world")
    world = {"model": write_tiny_model(root / "tiny"), "set": write_mini_set(root / "set", 16), "run": root / "whole"}
    assert run_apart(train, config(world, world["run"])) == 0
    return world


def weights(run):
    return load_model(run / "model").state_dict()


def records(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def test_a_run_leaves_the_files_that_one_on_ray_leaves(world):
    run = world["run"]
    names = {path.name for path in run.iterdir()}
    assert names == {"checkpoints", "config.yaml", "metrics.jsonl", "model", "run.json", "train_summary.json"}
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000006", "step-00000008"]
    assert [record["step"] for record in records(run)] == list(range(1, 9))
    assert {"train/loss_box", "train/grad_norm", "train/lr"} <= set(records(run)[-1])
    assert run_train(config(world, run)).skipped


# An epoch has some 20 steps of this budget; a step later than the last whole checkpoint is made again.
KILLS = {
    "in a step": ("jobs.training.engine.torch_engine:TorchEngine.step", 5),
    "while a checkpoint is written": ("jobs.training.checkpoint:publish", 2),
    "before old checkpoints are removed": ("jobs.training.loop:Session._log", 7),
    "at the export": ("jobs.training.loop:Session.export", 1),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_run_that_is_killed_ends_with_the_same_weights(world, tmp_path, kill):
    # Laptops are shut and single GPUs are taken away.
    job = config(world, tmp_path / "run")
    assert run_apart(train_until, job, *KILLS[kill]) == -signal.SIGKILL
    assert not (tmp_path / "run" / "model").exists()
    # An export that fails costs no step.
    again = (train_until, job, "jobs.training.loop:Session._train_step", 1) if kill == "at the export" else (train, job)
    assert run_apart(*again) == 0
    expected, found = weights(world["run"]), weights(tmp_path / "run")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    # Those of steps that are not made again, too.
    assert records(tmp_path / "run") == records(world["run"])


def test_where_a_configuration_trains(world, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.training.launch.on_cluster", lambda: False)
    assert launcher_of(config(world, tmp_path)) == "local"
    assert launcher_of(config(world, tmp_path, "workers=2")) == "ray"
    assert launcher_of(config(world, tmp_path, "launcher=ray")) == "ray"
    monkeypatch.setattr("jobs.training.launch.on_cluster", lambda: True)
    assert launcher_of(config(world, tmp_path)) == "ray"
    with pytest.raises(UserError, match="launcher=local trains in one process: set workers=1"):
        config(world, tmp_path, "workers=2", "launcher=local")


def test_a_loss_that_is_not_finite_stops_the_run(world, tmp_path):
    # Going on would burn hours of a GPU on the same batch.
    job = config(world, tmp_path / "run", "launcher=local", "optimizer.lr=1e30", "optimizer.max_grad_norm=0")
    with pytest.raises(UserError, match=r"loss of step \d+ is (nan|inf).*keys .*mini/train/\d+"):
        run_train(job)
    assert not (tmp_path / "run" / "model").exists()


def test_a_damaged_newest_checkpoint_costs_steps_and_not_the_run(world, caplog, tmp_path):
    # A page of traceback said that a list of Ray's was inconsistent.
    job = config(world, tmp_path / "run", "launcher=local")
    run_train(job)
    (tmp_path / "run" / "train_summary.json").unlink()
    newest = tmp_path / "run" / "checkpoints" / "step-00000008"
    largest = max(newest.rglob("*.pt"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    caplog.set_level("INFO", logger="jobs")
    run_train(job)
    assert "goes on from the checkpoint of step 6" in caplog.text and "step-00000008 is passed over" in caplog.text
    expected, found = weights(world["run"]), weights(tmp_path / "run")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
