"""What a worker does when a step goes wrong, on an engine that only plays one."""

import errno
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jobs.common.config_tree import build_config
from jobs.training.config import TrainConfig
from jobs.training.engine.backend import StepOutcome
from jobs.training.loop import Session, TrainJob
from jobs.training.train import prepare_job
from jobs.training.worker import open_reader
from padt.data.tasks import TASKS
from padt.errors import UserError
from padt.model.losses import LOSS_TERMS
from tests.jobs.tiny_model import write_tiny_model
from tests.padt.tiny import tiny_config
from tests.pipelines.mini_set import write_mini_set

STEPS, BAD = 4, 2


class Engine:
    """One weight; the gradients of some steps are infinite, and left out as a back end does."""

    name = "torch"
    device = torch.device("cpu")
    partitioned = False

    def __init__(self, loss: float = 1.0, bad: tuple[int, ...] = (BAD,), applied: bool = False) -> None:
        self.module = torch.nn.Linear(1, 1, bias=False)
        self.module.config = tiny_config()
        self.steps, self.loss, self.bad, self.applied = 0, loss, bad, applied

    def forward(self, **_):
        return SimpleNamespace(total=self.module.weight.sum() * 0 + 1, parts=dict.fromkeys(LOSS_TERMS, torch.zeros(())))

    def backward(self, total):
        pass

    def step(self, rate, loss):
        self.steps += 1
        bad = self.steps in self.bad
        return StepOutcome(self.loss if bad else float(loss), math.inf if bad else 1.0, not bad or self.applied)

    def save(self, folder):
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("loop")
    return {"model": write_tiny_model(root / "tiny"), "output": str(root / "run")}, write_mini_set(root / "set", 8)


def session_of(world, engine, *overrides):
    places, data = world
    tree = {**places, "data": {"sets": [{"url": data}]}, "steps": STEPS, "batch_size": 1, "reader": {"ray": False}}
    tree |= {"log_every": 1, "checkpoint": {"every": 1}, "zero_stage": 0, "precision": "fp32"}
    config = build_config(TrainConfig, tree, overrides)
    records = []
    job = TrainJob(config, prepare_job(config)[0], STEPS, warm_steps=0, send=records.append)
    return Session(job, 0, engine, None), open_reader(job, 0, 1, 0), records


def test_a_bad_gradient_that_was_applied_never_reaches_a_checkpoint(world):
    # Only the loss was looked at: at ZeRO 0 in fp32 one step made all weights NaN, and a checkpoint kept them.
    session, reader, _ = session_of(world, Engine(applied=True))
    saved = []
    with pytest.raises(UserError, match="gradient of step 2 is not finite .norm inf.*optimizer.lr"):
        session.run(reader, lambda folder, step: saved.append(step))
    assert saved == [1]


def test_a_step_that_is_left_out_is_told_and_counted_and_its_samples_are_kept(world):
    # One broken label must not cost a run of days; whoever looks for it needs the rows.
    session, reader, records = session_of(world, Engine(loss=math.nan))
    session.run(reader, lambda folder, step: None)
    (note,) = (record.text for record in records if record.kind == "note")
    assert note.startswith("step 2 was left out: its loss is not finite")
    skipped = [record.metrics.get("train/skipped_steps") for record in records if record.kind == "metrics"]
    assert skipped == [None, 1, 1, 1]
    kept = json.loads((Path(session.job.config.output) / "skipped" / "step-00000002.json").read_text())
    assert kept["keys"][0][0].startswith("mini/train/") and kept["gradient_norm"] == "inf"


@pytest.mark.parametrize(("bad", "ends"), [((1, 2, 4), False), ((2, 3, 4), True)])
def test_a_row_of_bad_steps_ends_the_run_and_names_its_samples(world, bad, ends):
    session, reader, records = session_of(world, Engine(math.nan, bad), "max_skipped_steps=2", "batch_size=2")
    if ends:
        with pytest.raises(UserError, match=r"loss of step 4 is nan on rank 0 \(keys mini/train/\d+, .*3 such step"):
            session.run(reader, lambda folder, step: None)
    else:
        session.run(reader, lambda folder, step: None)
    assert session.skipped == 3


def test_the_mixture_and_the_work_of_the_device_are_in_the_records(world):
    session, reader, records = session_of(world, Engine(bad=()))
    session.run(reader, lambda folder, step: None)
    for record in records:
        assert sum(record.metrics.get(f"data/share_{task}", 0.0) for task in TASKS) == pytest.approx(1.0)
        assert record.metrics["data/share_set_mini"] == 1.0
        assert record.metrics["perf/model_tflops_per_s"] > 0 and "perf/mfu" not in record.metrics


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")],
)
def test_a_full_disk_at_a_checkpoint_is_one_sentence(world, error):
    session, reader, _ = session_of(world, Engine())

    def report(folder, step):
        raise error

    with pytest.raises(UserError, match=r"checkpoint of step 1 cannot be written: no space.*TMPDIR.*goes on"):
        session.run(reader, report)


def test_samples_that_are_left_out_are_agreed_on_and_remembered(world):
    session, reader, records = session_of(world, Engine(), "reader.quarantine=1", "precision=bf16")
    reader.quarantined["mini/train/0"] = "it is broken"
    session.run(reader, lambda folder, step: None)
    assert session.quarantined == {"mini/train/0": "it is broken"}
    assert [record.metrics.get("data/quarantined") for record in records if record.kind == "metrics"] == [1] * STEPS
    session, reader, _ = session_of(world, Engine(), "reader.quarantine=1", "precision=bf16")
    session.quarantined = {"mini/train/1": "as the checkpoint says"}
    reader.quarantined["mini/train/0"] = "it is broken"
    with pytest.raises(UserError, match=r"2 sample\(s\).*mini/train/1: as the checkpoint says; mini/train/0"):
        session.run(reader, lambda folder, step: None)
