"""Training, evaluation, calibration and the registry with everything in an object store."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.common.model_reference import find_model, resolve_model
from jobs.evaluation.calibrate import run_calibrate
from jobs.evaluation.evaluate import run_evaluate
from jobs.registry.register import run_register
from jobs.training.config import TrainConfig, build_config
from jobs.training.train import run_train
from padt.checkpoints.loading import load_model
from padt.errors import UserError
from pipelines.io.storage import Folder
from tests.jobs.tiny_model import write_tiny_model
from tests.jobs.training.training_runs import run_apart, train_until
from tests.pipelines.mini_set import write_mini_set


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model and a prepared set on this machine's disk."""
    root = tmp_path_factory.mktemp("store")
    write_tiny_model(root / "tiny")
    write_mini_set(root / "set", 24)
    return root


@pytest.fixture(scope="module")
def place(object_store, root):
    """The same there, and a cache of our own."""
    url = f"s3://data/{root.name}"
    for name in ("tiny", "set"):
        object_store.put(str(root / name), f"{url}/{name}", recursive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADT_CACHE", str(root / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        yield url


def test_a_model_is_fetched_anew_when_it_changes_and_refused_while_it_is_unfinished(place, object_store):
    first = resolve_model(f"{place}/tiny")
    assert resolve_model(f"{place}/tiny/") == first and Path(first).name == "tiny"
    object_store.cp(f"{place}/tiny", f"{place}/other", recursive=True)
    object_store.rm(f"{place}/other/config.json")
    with pytest.raises(UserError, match="other cannot be read as a model folder: it has no config.json"):
        resolve_model(f"{place}/other")
    object_store.pipe(f"{place}/other/config.json", object_store.cat(f"{place}/tiny/config.json"))
    second = resolve_model(f"{place}/other")
    object_store.pipe(f"{place}/other/generation_config.json", b"{}")
    assert resolve_model(f"{place}/other") not in (first, second)


def untimed(metrics):
    return {name: value for name, value in metrics.items() if not name.endswith("_per_second")}


def test_evaluate_calibrate_and_register_there(place, object_store, monkeypatch):
    model, scores = f"{place}/tiny", f"{place}/scores"
    result = run_evaluate(model, f"{place}/set", limit=2, out_dir=scores, max_new_tokens=8, progress=False)
    assert {"metrics.json", "predictions.parquet"} <= set(Folder(scores).names())
    version = run_register(model, evaluations=[scores], alias="candidate")
    assert version.source == model and version.aliases == ("candidate",)
    # The same model again is the same version.
    same = run_register(model, evaluations=[f"{scores}/metrics.json"], force=True)
    assert same.version == version.version and set(same.aliases) == {"candidate", "champion"}
    found = find_model("models:/padt@champion")
    assert found.source == model and load_model(found.path)
    again = run_evaluate(found.reference, f"{place}/set", limit=2, max_new_tokens=8, progress=False)
    assert untimed(again.metrics) == untimed(result.metrics)
    with pytest.raises(UserError, match="there is no bucket dta"):
        run_evaluate(model, f"{place}/set", limit=2, out_dir="s3://dta/scores", progress=False)
    assert not object_store.exists("dta")


def test_a_version_whose_files_were_changed_there_is_refused(place, object_store, tmp_path, monkeypatch):
    object_store.cp(f"{place}/tiny", f"{place}/changing", recursive=True)
    version = run_register(f"{place}/changing", alias="candidate")
    object_store.pipe(f"{place}/changing/config.json", object_store.cat(f"{place}/tiny/config.json") + b"\n")
    monkeypatch.setenv("PADT_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="changing was changed after it was registered as version"):
        resolve_model(version.uri)


def test_calibration_of_a_model_there(place, object_store):
    from tests.jobs.evaluation.test_calibrate import Stutterer

    url = f"{place}/calibrated"
    # What an attempt that was killed has left.
    object_store.pipe(f"{url}/model.safetensors", b"half")
    run_calibrate(f"{place}/tiny", f"{place}/set", url, answerer=Stutterer(f"{place}/set"), progress=False)
    assert json.loads(Folder(url).read_text("config.json"))["score_calibration"]
    assert json.loads(Folder(f"{place}/tiny").read_text("config.json"))["score_calibration"] is None
    with pytest.raises(UserError, match="exists already"):
        run_calibrate(f"{place}/tiny", f"{place}/set", url, answerer=Stutterer(f"{place}/set"), progress=False)


def training(place, output, *overrides):
    tree = {
        "model": f"{place}/tiny",
        "output": f"{place}/{output}",
        "data": {"sets": [{"url": f"{place}/set", "tasks": {"detect": 1.0}}]},
        "batch_size": 2,
        "steps": 10,
        "workers": 1,
        "precision": "fp32",
        "reader": {"ray": False},
        "checkpoint": {"every": 2},
        "log_every": 1,
        "tracking": {"enabled": False},
    }
    return build_config(TrainConfig, tree, overrides)


def train_apart(config, folder):
    """``padt train`` in a session of its own: Ray's workers get their addresses and keys from its environment."""
    (folder / "train.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "jobs.cli.main", "train", "-c", str(folder / "train.yaml")]
    with (folder / "log").open("w") as log:
        return subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, timeout=300
        ).returncode


@pytest.mark.slow
def test_a_killed_training_goes_on_there_to_the_same_model(place, root, object_store, tmp_path):
    # Nobody disturbs the same training on this machine's disk.
    whole = run_train(training(root, "whole", "launcher=local"))
    (tmp_path / "killed").mkdir()
    killed = training(place, "killed", "launcher=local")
    # As the second checkpoint is about to be written.
    assert run_apart(train_until, killed, "jobs.training.checkpoint:publish", 2) == -signal.SIGKILL
    assert not Folder(f"{place}/killed/model").exists("config.json")
    # What was begun on one machine goes on where Ray Train keeps the checkpoints there.
    killed = training(place, "killed", "launcher=ray")
    assert train_apart(killed, tmp_path / "killed") == 0, (tmp_path / "killed" / "log").read_text()
    begun = int(re.findall(r"goes on from the checkpoint of step (\d+)", (tmp_path / "killed" / "log").read_text())[0])
    result = run_train(killed)
    assert result.skipped and result.steps == 10
    expected, found = (load_model(resolve_model(path)).state_dict() for path in (whole.model_path, result.model_path))
    assert all((expected[name] == found[name]).all() for name in expected)
    lines = Folder(killed.output).read_text("metrics.jsonl").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    # These steps take milliseconds: the last records before the kill may not have left its process.
    assert begun == 2 and steps == sorted(set(steps)) and steps[begun - 10 :] == list(range(begun + 1, 11))


def test_a_training_into_a_bucket_that_is_not_there_says_so_at_once(place, object_store):
    config = training(place, "x").model_copy(update={"output": "s3://dta/run"})
    with pytest.raises(UserError, match="s3://dta/run cannot be written: there is no bucket dta"):
        run_train(config)
    assert not object_store.exists("dta")
