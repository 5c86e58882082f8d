"""Training configuration: wrong keys are caught by name, overrides reach any depth, the packaged files hold."""

from pathlib import Path

import pytest

import jobs.training.config
from jobs.training.config import TrainConfig, build_config, load_config
from padt.errors import UserError

TREE = {"model": "m", "output": "o", "steps": 10, "data": {"sets": [{"url": "set"}]}}


def build(*overrides, **changes):
    return build_config(TrainConfig, {**TREE, **changes}, overrides)


def test_unknown_keys_name_the_nearest():
    # A mistyped key that is silently ignored costs a whole training run.
    with pytest.raises(UserError, match="optimizer.learning_rate.*known are lr|did you mean"):
        build(optimizer={"learning_rate": 1})
    with pytest.raises(UserError, match="did you mean batch_size"):
        build("batchsize=3")
    with pytest.raises(UserError, match=r"data\.sets\.0\.urll.*did you mean url"):
        build(data={"sets": [{"urll": "x"}]})
    with pytest.raises(UserError, match="did you mean refer"):
        build(data={"sets": [{"url": "x", "tasks": {"reffer": 1}}]})


def test_overrides_reach_any_depth():
    config = build("optimizer.lr=1e-4", "data.sets.0.url=s3://b/k", "tracking.enabled=false", "checkpoint.every=7")
    assert config.optimizer.lr == 1e-4
    assert config.data.sets[0].url == "s3://b/k"
    assert config.tracking.enabled is False and config.checkpoint.every == 7


@pytest.mark.parametrize("override", ["lr", "optimizer.lr.x=1", "data.sets.3.url=x", "steps=[1"])
def test_overrides_that_cannot_be_applied_are_errors(override):
    with pytest.raises(UserError, match="verride"):
        build("optimizer.lr=1", override)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1}, "either steps or epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "fp64"}, "precision"),
        ({"optimizer": {"warmup_steps": 1, "warmup_fraction": 0.1}}, "one of them"),
        ({"data": {"sets": []}}, "data.sets"),
    ],
)
def test_wrong_values_name_their_key(changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)


def test_resolved_yaml_reads_back(tmp_path):
    # The saved configuration must reproduce the run.
    config = build("optimizer.lr_scale={patch_embed: 0.3}")
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "c.yaml") == config


def test_hash_follows_what_shapes_the_weights():
    assert build().result_hash() == build("output=elsewhere", "log_every=3", "reader.processes=4").result_hash()
    assert build().result_hash() != build("optimizer.lr=0.1").result_hash()


def test_missing_files_list_the_packaged_ones(tmp_path):
    with pytest.raises(UserError, match="toy_pretrain"):
        load_config("no_such_file")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="bad.yaml"):
        load_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    "file", sorted((Path(jobs.training.config.__file__).parent / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_packaged_configurations_hold(file):
    from jobs.training.loop import loss_settings

    config = load_config(file.stem)
    loss_settings(config)


def test_unknown_loss_settings_name_the_nearest():
    from jobs.training.loop import loss_settings

    with pytest.raises(UserError, match="loss.masks.*known are weights"):
        loss_settings(build("loss.masks=0"))


def test_parts_that_are_trained():
    everything = {"vision": True, "language": True, "prototypes": True, "decoder": True}
    assert build().trained_parts() == everything, "the released recipe"
    assert build("train.vision=false").trained_parts() == {**everything, "vision": False}
    beside_lora = build("lora.rank=8").trained_parts()
    assert beside_lora == {**everything, "vision": False, "language": False}
    assert build("lora.rank=8", "train.decoder=false").train.vision is False, "the saved configuration says so"
    assert build("lora.rank=8", "train.vision=true").trained_parts()["vision"]


def test_lora_names_its_targets():
    from jobs.training.trainable import lora_settings

    assert lora_settings(build("lora.rank=8", "lora.targets=[q_proj,v_proj]").lora).targets == ("q_proj", "v_proj")
    with pytest.raises(UserError, match="'qproj'.*did you mean q_proj"):
        lora_settings(build("lora.targets=[qproj]").lora)
    with pytest.raises(UserError, match=r"lora\.rnk.*did you mean rank"):
        build("lora.rnk=8")


def test_gradient_checkpointing_by_part_or_at_once():
    assert build("gradient_checkpointing=true").gradient_checkpointing.decoder
    config = build("gradient_checkpointing.vision=true")
    assert config.gradient_checkpointing.vision and not config.gradient_checkpointing.language
    # Results do not depend on it, so a run that ran out of memory goes on with it.
    assert config.result_hash() == build().result_hash() != build("lora.rank=8").result_hash()
