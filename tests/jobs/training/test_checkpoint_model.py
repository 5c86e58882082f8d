"""Any checkpoint gives a model folder, without a cluster and without going on with the run."""

import shutil
from pathlib import Path

import pytest
import torch

from jobs.registry.export import run_export
from jobs.training import checkpoint
from jobs.training.checkpoint_model import is_checkpoint
from jobs.training.engine.build import build_engine
from jobs.training.worker import load_for_training
from padt.checkpoints.loading import load_model
from padt.checkpoints.lora import merge
from padt.errors import UserError
from padt.pretrained.model_card import read_facts
from tests.jobs.tiny_model import write_tiny_model
from tests.jobs.training.training_runs import config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's configuration; its folder has checkpoints of steps 3 and 6, and its adapters are trained in bf16."""
    root = tmp_path_factory.mktemp("run")
    world = {"model": write_tiny_model(root / "tiny"), "set": "gone"}
    job = config(world, root / "run", "engine=torch", "lora.rank=4", "precision=bf16")
    model, _ = load_for_training(job, torch.device("cpu"))
    engine = build_engine(model, job, torch.device("cpu"))
    torch.manual_seed(0)
    for step in (3, 6):
        for group in engine.optimizer.param_groups:
            for master in group["params"]:
                master.data += 0.01 * torch.randn_like(master)
        part = Path(job.output) / "checkpoints" / checkpoint.name_of(step)
        part.mkdir(parents=True)
        state = checkpoint.LoopState(step, 0, {"data": "f00"}, None, 9, "torch", workers=1)
        checkpoint.save(engine, state, part, 0)
    (Path(job.output) / "config.yaml").write_text(job.to_yaml())
    return job


def folder(run, step=None):
    root = f"{run.output}/checkpoints"
    return root if step is None else f"{root}/{checkpoint.name_of(step)}"


def test_the_model_is_the_one_that_the_run_had(run, tmp_path):
    result = run_export(folder(run, 3), tmp_path / "out", "padt")
    assert (result.layout, result.folder) == ("padt", tmp_path / "out")
    model, _ = load_for_training(run, torch.device("cpu"))
    engine = build_engine(model, run, torch.device("cpu"))
    with checkpoint.opened(folder(run, 3)) as files:
        engine.load(files, 1)
    merge(engine.module.eval())
    found = load_model(tmp_path / "out", dtype="auto", device="cpu").state_dict()
    expected = engine.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    base = load_model(run.model, dtype="auto", device="cpu").state_dict()
    assert not torch.equal(base["vis_proj.0.weight"].bfloat16(), found["vis_proj.0.weight"])
    assert read_facts(tmp_path / "out").training["steps"] == 3


def test_the_folder_of_checkpoints_gives_the_newest_whole_one_in_any_layout(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.output, copy)
    (copy / "checkpoints" / checkpoint.name_of(6) / "torch.pt").write_bytes(b"half")
    result = run_export(copy / "checkpoints", tmp_path / "out", "released", max_shard_size="1MB")
    assert result.layout == "released" and len(result.files) > 1
    assert read_facts(tmp_path / "out").training["steps"] == 3
    with pytest.raises(UserError, match=r"not whole \(torch.pt has 4 of \d+ bytes\)"):
        run_export(copy / "checkpoints" / checkpoint.name_of(6), tmp_path / "other", "padt")


def test_what_is_missing_is_said(run, tmp_path):
    assert not is_checkpoint(run.model) and not is_checkpoint("models:/padt@champion") and not is_checkpoint("a/b")
    alone = tmp_path / "checkpoints" / checkpoint.name_of(3)
    shutil.copytree(folder(run, 3), alone)
    with pytest.raises(UserError, match="lacks config.yaml.*RUN/checkpoints/step-"):
        run_export(alone, tmp_path / "out", "padt")
    (tmp_path / "config.yaml").write_text(run.to_yaml().replace("rank: 4", "rank: 8"))
    with pytest.raises(UserError, match=r"has no .*lora_A.* of the model"):
        run_export(alone, tmp_path / "out", "padt")
    assert not (tmp_path / "out").exists()
