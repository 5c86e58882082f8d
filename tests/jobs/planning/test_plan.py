"""A dry run starts nothing, counts what there is, says what is not known, and warns of what cannot fit."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.main import main
from jobs.common.config_tree import build_config
from jobs.planning.plan import GIB, plan_training, warn_of_memory
from jobs.planning.rates import Rate, fitting_rate, load_rates
from jobs.recipes.plan import plan_recipe
from jobs.recipes.run import write_json
from jobs.training.config import TrainConfig
from jobs.training.train import prepare_job
from padt.errors import UserError
from tests.conftest import REPOSITORY
from tests.pipelines.mini_set import write_mini_set

BASE = str(REPOSITORY / "pipelines" / "toy" / "base")


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    # A plan that reaches for a cluster or a server cannot be made before they are paid for.
    for package in ("ray", "mlflow", "deepspeed"):
        monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_mini_set(tmp_path_factory.mktemp("plan") / "set", 12))


def build(url: str, **changes: Any) -> TrainConfig:
    tree = {"model": BASE, "output": "runs/none", "epochs": 3, "batch_size": 2, "data": {"sets": [{"url": url}]}}
    return build_config(TrainConfig, {**tree, **changes})


def test_lengths_are_those_of_the_run(mini):
    config = build(mini, workers=2, gradient_accumulation_steps=2)
    plan = plan_training(config)
    order, steps, _ = prepare_job(config)
    assert (plan.samples_per_epoch, plan.steps, plan.samples_per_step) == (order.samples_per_epoch, steps, 8)
    largest = max(int((index.grid_h * index.grid_w).max()) for index in order.mixture.indices)
    assert plan.work.patches == largest and plan.assumed == []
    assert plan.seconds is None and plan.rate is None, "no time without a rate"


def test_what_is_not_prepared_yet_is_told_and_not_invented():
    plan = plan_training(build("/nowhere", max_pixels=28 * 28 * 64))
    assert plan.samples_per_epoch is None and plan.steps is None and plan.seconds is None
    assert plan.work.patches == 64 and any("/nowhere is prepared" in each for each in plan.assumed)
    assert plan_training(build("/nowhere", epochs=None, steps=7, max_pixels=50176)).steps == 7


def test_times_come_from_rates_of_the_same_size_and_device(mini):
    size = plan_training(build(mini)).sizes.total
    rates = [Rate(size, 4.0, "here", read_samples_per_s=3.0), Rate(size, 400.0, "there", gpu=True)]
    plan = plan_training(build(mini, workers=2), rates)
    assert plan.seconds == plan.steps * 4 / 8.0
    assert (plan.read_needed, plan.read_measured) == (8.0, 6.0)
    assert fitting_rate(rates, size * 2, False) is None


def test_rates_of_a_file_and_of_a_run(tmp_path: Path, mini: str):
    (tmp_path / "rates.json").write_text(json.dumps({"rates": [{"parameters": 10, "samples_per_s": 2.5}]}))
    (only,) = load_rates(str(tmp_path / "rates.json"))
    assert only == Rate(10, 2.5, str(tmp_path / "rates.json"))
    (tmp_path / "bad.json").write_text('{"rates": [{"parameter": 10}]}')
    with pytest.raises(UserError, match="no file of rates"):
        load_rates(str(tmp_path / "bad.json"))
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="holds no run with metrics"):
        load_rates(str(run))
    (run / "config.yaml").write_text(build(mini, workers=2).to_yaml())
    lines = [{"step": step, "perf/samples_per_s": rate} for step, rate in ((1, 1.0), (2, 8.0), (3, 10.0), (4, 9.0))]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (rate,) = load_rates(str(run))
    assert rate.samples_per_s == 4.5 and rate.parameters == plan_training(build(mini)).sizes.total


def test_a_run_that_cannot_fit_is_warned_of_with_two_settings(mini, caplog):
    plan = plan_training(build(mini, gpu=True, gpu_gib=0.001, workers=4, zero_stage=1))
    (warning,) = plan.warnings
    assert f"about {plan.memory.total / GIB:.1f} GiB" in warning and "has 0.001 (gpu_gib)" in warning
    assert warning.count("GiB)") == 2 and " or " in warning, "two settings, each with what it would need"
    warn_of_memory(build(mini, gpu=True, gpu_gib=0.001))
    assert "what helps most is" in caplog.text
    caplog.clear()
    warn_of_memory(build(mini, gpu=True, gpu_gib=500))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_mistyped_name_is_found_by_the_plan(mini):
    with pytest.raises(UserError, match="did you mean vision"):
        plan_training(build(mini, freeze=["vison"]))


def test_the_plan_of_a_recipe_says_what_is_done_and_what_is_left(tmp_path, capsys):
    words = ["run", "toy", "-o", str(tmp_path / "run"), "--dry-run"]
    write_json(str(tmp_path / "run" / "prepare"), "done.json", {"key": "other", "options": {}, "seconds": 3.5})
    assert main([*words, "--json"]) == 0
    stages = {each["name"]: each for each in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["prepare"]["state"] == "done" and "under other options" in stages["prepare"]["refused"]
    assert stages["pretrain"]["train"]["steps"] == 120
    # The second training starts from a model that the first is yet to make.
    assert stages["finetune"]["train"]["parameters"] == stages["pretrain"]["train"]["parameters"] > 1_000_000
    assert stages["evaluate"]["state"] == "left" and stages["evaluate"]["train"] is None
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["prepare"], "nothing is written"


def test_stages_that_are_left_out_have_no_plan(tmp_path):
    plan = plan_recipe("toy", output=str(tmp_path), only="finetune", redo=["finetune"])
    assert [each.state for each in plan.stages if each.name != "finetune"] == ["left out"] * 6
    assert all((each.train is not None) == (each.name == "finetune") for each in plan.stages)


def test_a_training_is_planned_in_words_and_in_json(mini, tmp_path, capsys):
    file = tmp_path / "train.yaml"
    file.write_text(build(mini, lora={"rank": 4}).to_yaml())
    assert main(["train", "-c", str(file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "samples of an epoch" in shown and "together at ZeRO 3" in shown and "adapters" in shown
    assert "no rate of this size is known" in shown
    assert main(["train", "-c", str(file), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["memory"]["total"] == sum(size for part, size in plan["memory"].items() if part != "total")
    assert 0 < plan["trained_parameters"] < plan["parameters"]
