"""Whether a run in a folder is the one that is asked for: by what shapes the weights, wherever it all lies."""

import json
import shutil
from pathlib import Path

import pytest

from jobs.common.config_tree import build_config
from jobs.training.config import TrainConfig
from jobs.training.run_identity import RunIdentity
from jobs.training.train import prepare_job, run_train, with_absolute_paths
from padt.errors import UserError
from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.mini_set import write_mini_set


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("identity")
    return {"root": root, "model": write_tiny_model(root / "tiny"), "set": write_mini_set(root / "set", 6)}


def config(world, output="out", *overrides, **places):
    tree = {"model": str(world["model"]), "output": str(output), "steps": 1, "batch_size": 2, **places}
    return build_config(TrainConfig, {"data": {"sets": [{"url": str(world["set"])}]}, **tree}, overrides)


def saved(identity):
    """As it comes back from the run's folder."""
    return RunIdentity.from_json(json.loads(json.dumps(identity.to_json())))


def test_copies_elsewhere_are_the_same_run(world, tmp_path):
    first = saved(RunIdentity.of(config(world)))
    shutil.copytree(world["model"], tmp_path / "model")
    shutil.copytree(world["set"], tmp_path / "set")
    (tmp_path / "model" / "config.json").touch()
    moved = config(world, "other", model=str(tmp_path / "model"), data={"sets": [{"url": str(tmp_path / "set")}]})
    RunIdentity.of(moved, first).check_same(first, "it", "fix")


def test_other_options_and_other_content_are_named_with_both_values(world, tmp_path):
    first = saved(RunIdentity.of(config(world)))
    other = write_mini_set(tmp_path / "other", 5)
    for changed, message in (
        (config(world, "out", "optimizer.lr=0.5"), r"optimizer\.lr: 2e-05 -> 0\.5"),
        (config(world, "out", "freeze=[vision]"), r"freeze: \[\] -> \['vision'\]"),
        (config(world, data={"sets": [{"url": other}]}), r"data\.sets\.0\.url: 'mini, content \w+' -> 'mini, content"),
    ):
        with pytest.raises(UserError, match=message):
            RunIdentity.of(changed, first).check_same(first, "it", "fix")
    shutil.copytree(world["model"], tmp_path / "model")
    weights = next(Path(tmp_path / "model").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model: 'content \w+' -> 'content \w+'"):
        RunIdentity.of(config(world, model=str(tmp_path / "model")), first).check_same(first, "it", "fix")


def test_what_is_gone_counts_as_it_was(world):
    # The finished run of a recipe is taken as done although its data were deleted since.
    first = saved(RunIdentity.of(config(world)))
    gone = config(world, model="/nowhere", data={"sets": [{"url": "/nowhere"}]})
    RunIdentity.of(gone, first).check_same(first, "it", "fix")


def test_an_unfinished_run_of_other_options_is_refused_before_anything_starts(world, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    record = {"identity": RunIdentity.of(config(world, run)).to_json(), "run_id": None}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"unfinished run of another configuration \(seed: 42 -> 7\): set the values back"
    ):
        run_train(config(world, run, "seed=7"))


@pytest.mark.parametrize("override", ["freeze=[vison]", "optimizer.lr_scale={vison: 0.1}"])
def test_a_mistyped_part_is_refused_before_the_folder_is_claimed(world, tmp_path, override):
    with pytest.raises(UserError, match="did you mean vision"):
        run_train(config(world, tmp_path / "run", override))
    assert not (tmp_path / "run").exists()


def test_a_model_of_the_hub_stays_one_unless_such_a_folder_is_there(world, tmp_path, monkeypatch):
    # As a local path it would be "not a model folder", on every machine.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.common.model_reference.hub_folder", lambda name: Path(world["model"]))
    of_hub = with_absolute_paths(config(world, model="someone/tiny"))
    assert of_hub.model == "someone/tiny"
    assert prepare_job(of_hub)[1] == 1
    same = saved(RunIdentity.of(config(world)))
    RunIdentity.of(of_hub).check_same(same, "it", "fix")
    shutil.copytree(world["model"], tmp_path / "someone" / "tiny")
    local = with_absolute_paths(config(world, model="someone/tiny"))
    assert local.model == str(tmp_path / "someone" / "tiny")
