"""Training configuration: wrong keys are caught by name, overrides reach any depth, the packaged files hold."""

import copy

import pytest
import torch
from pydantic import ValidationError

from jobs.common.config_tree import build_config
from jobs.training.config import CONFIGS, TrainConfig, load_config
from jobs.training.trainable import prepare_for_training
from padt.errors import UserError
from tests.padt.tiny import tiny_model

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
    with pytest.raises(UserError, match=r"loss\.weight: did you mean weights"):
        build(loss={"weight": {}})
    with pytest.raises(UserError, match=r"term 'maks' is unknown: did you mean mask"):
        build("loss.weights.maks=0")
    with pytest.raises(UserError, match=r"lora\.rnk: did you mean rank"):
        build("lora.rnk=8")
    with pytest.raises(UserError, match=r"data\.augment\.flipp: did you mean flip"):
        build(data={"sets": [{"url": "x"}], "augment": {"flipp": 1}})


def test_options_of_components_are_refused_without_the_tree_s_own_check():
    # A tree that is built in a program must not lose a mistyped key either.
    with pytest.raises(ValidationError, match="rnk"):
        TrainConfig.model_validate({**TREE, "lora": {"rnk": 8}})


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
        ({"data": {"sets": [{"url": "x", "repeat": 0}]}}, "repeat of the data set x is 0"),
        ({"data": {"sets": [{"url": "x", "items_per_image": 0}]}}, "items_per_image of the data set x is 0"),
        ({"data": {"sets": [{"url": "x", "negatives": {"caption": 0.1}}]}}, "Negatives of the data set x: .*'caption'"),
        ({"data": {"sets": [{"url": "x"}], "batching": {"max_tokens": 0}}}, r"data\.batching\.max_tokens is 0"),
        ({"data": {"sets": [{"url": "x"}], "augment": {"flip": 2}}}, r"data\.augment\.flip is 2"),
        ({"task": {"num_vrts": 0}}, r"task\.num_vrts is 0"),
        ({"task": {"class_names": ["a"]}}, r"task\.class_names come from"),
        ({"reader": {"processes": 0}}, r"reader\.processes is 0"),
        ({"lora": {"dropout": 1}}, r"lora\.dropout is 1"),
        ({"lora": {}, "freeze": ["language"]}, "take 'language' out of freeze"),
        ({"freeze": ["vision", "language", "prototypes", "decoder"]}, "nothing is left to train"),
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


@pytest.mark.parametrize(
    "change",
    [
        "model=elsewhere",
        "output=elsewhere",
        "data.sets.0.url=elsewhere",
        "data.eval_sets=[elsewhere]",
        "reader.processes=4",
        "gpu=true",
        "cpus_per_worker=4",
        "threads_per_worker=2",
        "attn_implementation=sdpa",
        "gradient_checkpointing=true",
        "packing=true",
        "engine=torch",
        "launcher=ray",
        "loss.chunk_rows=64",
        "checkpoint.every=7",
        "tracking.run_name=again",
        "max_failures=0",
        "log_every=3",
    ],
)
def test_a_run_goes_on_with_other_places_devices_and_logs(change):
    # Spot machines differ: a run must not be refused because the new one has other cores or mounts.
    assert build(change).shaping_options() == build().shaping_options() and build(change) != build()


@pytest.mark.parametrize(
    "change",
    ["optimizer.lr=0.1", "loss.weights.mask=0", "freeze=[vision]", "lora.rank=8", "workers=2", "task.num_vrts=3"]
    + ["data.sets.0.repeat=2", "data.augment.flip=0.5", "gradient_accumulation_steps=2", "zero_stage=0", "seed=1"],
)
def test_what_shapes_the_weights_makes_another_run(change):
    assert build(change).shaping_options() != build().shaping_options()


@pytest.mark.parametrize(
    "cut",
    [
        ["workers=4", "batch_size=2"],
        ["workers=2", "batch_size=2", "gradient_accumulation_steps=2"],
        ["batch_size=2", "gradient_accumulation_steps=4"],
        ["workers=3", "batch_size=2", "global_batch_size=8"],
        ["batch_size=8"],
    ],
    ids=" ".join,
)
def test_the_same_samples_a_step_are_the_same_run_on_any_number_of_workers(cut):
    whole = build("workers=8", "batch_size=1")
    assert build(*cut).shaping_options() == whole.shaping_options() and build(*cut).samples_per_step == 8
    # Where it shows how they are cut, only the workers may change.
    for kind in ("data.batching.max_tokens=900", "loss.average=rank", "lora.dropout=0.1"):
        assert build(*cut, kind).shaping_options() != build("workers=8", "batch_size=1", kind).shaping_options()
        other = build("workers=2", "batch_size=1", "gradient_accumulation_steps=4", kind)
        assert other.shaping_options() == build("workers=8", "batch_size=1", kind).shaping_options()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["global_batch_size=6", "batch_size=4"], "global_batch_size 6 is no multiple of batch_size 4"),
        (["global_batch_size=8", "batch_size=4", "gradient_accumulation_steps=2"], "give one of them"),
    ],
)
def test_a_global_batch_that_cannot_be_cut_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build(*changes)


def test_missing_files_list_the_packaged_ones(tmp_path):
    with pytest.raises(UserError, match="toy_pretrain"):
        load_config("no_such_file")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="bad.yaml"):
        load_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_packaged_configurations_hold(file):
    load_config(file.stem)


def test_lora_freezes_the_vision_tower_unless_told_otherwise():
    assert build().freeze == [], "the released recipe trains all"
    assert build("lora.rank=8").freeze == ["vision"], "the saved configuration says so"
    assert build("lora.rank=8", "freeze=[]").freeze == []
    assert build("lora.rank=8", "lora.targets=[q_proj,v_proj]").lora.targets == ("q_proj", "v_proj")
    with pytest.raises(UserError, match="'qproj'.*did you mean q_proj"):
        build("lora.targets=[qproj]")


def test_gradient_checkpointing_by_part_or_at_once():
    assert build("gradient_checkpointing=true").gradient_checkpointing.decoder
    config = build("gradient_checkpointing.vision=true")
    assert config.gradient_checkpointing.vision and not config.gradient_checkpointing.language


def test_switches_of_the_architecture_reach_the_model_and_what_is_saved_of_it():
    model = copy.deepcopy(tiny_model())
    prepare_for_training(model, build())
    assert (model.config.feature_order, model.vl_decoder.feature_order) == ("raster", "raster")
    switched = build("architecture.feature_order=reference", "architecture.use_visual_prototype_projection=false")
    prepare_for_training(model, switched)
    assert (model.config.feature_order, model.vl_decoder.feature_order) == ("reference", "reference")
    merged = torch.randn(3, model.config.text_config.hidden_size)
    assert model.prototypes_of(merged) is merged
    assert switched.shaping_options() != build().shaping_options()
    with pytest.raises(UserError, match="feature_order"):
        build("architecture.feature_order=rester")


@pytest.mark.parametrize(
    ("packing", "kernel", "packed"),
    [
        ("auto", "sdpa", False),
        ("auto", "flash_attention_2", True),
        (True, "sdpa", True),
        (False, "flash_attention_2", False),
    ],
)
def test_texts_are_packed_where_the_kernel_gains_by_it_or_as_told(packing, kernel, packed):
    model = copy.deepcopy(tiny_model())
    model.config.text_config._attn_implementation_internal = kernel
    prepare_for_training(model, build(packing=packing))
    assert model.packing is packed
