"""A plan of memory agrees with what PyTorch really keeps: exactly for what lies there, closely for a batch."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.common.config_tree import build_config
from jobs.planning.memory import (
    Workload,
    checkpoint_bytes,
    decoder_bytes,
    head_bytes,
    helpful_changes,
    kept_activations,
    language_layer,
    model_bytes,
    plan_memory,
    vision_layer,
)
from jobs.planning.sizes import PUBLISHED, ModelSizes, configuration_of, planned_model
from jobs.training.config import TrainConfig
from jobs.training.engine.build import build_engine
from jobs.training.trainable import prepare_for_training, training_dtype
from padt.errors import UserError
from padt.model.checkpointing import set_checkpointing
from padt.model.modeling import PaDTForConditionalGeneration
from tests.padt.model.test_flops import batch_of
from tests.padt.model.test_full_size import HUB, PARAMETERS
from tests.padt.tiny import tiny_config, tiny_model, tiny_processor

TREE = {"model": "m", "output": "o", "steps": 1, "data": {"sets": [{"url": "s"}]}, "batch_size": 2}


def build(**changes: Any) -> TrainConfig:
    return build_config(TrainConfig, {**TREE, **changes})


def bytes_of(tensors: list[Tensor | None]) -> int:
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}.values()
    )


@pytest.mark.parametrize(
    "changes", [{"precision": "fp32"}, {"precision": "bf16"}, {"precision": "bf16", "freeze": ["vision"]}]
)
def test_weights_gradients_and_optimizer_are_exact(changes):
    config = build(zero_stage=0, engine="torch", **changes)
    model = tiny_model().to(training_dtype(config))
    prepare_for_training(model, config)
    planned = model_bytes(ModelSizes.of(model), config)
    assert bytes_of(list(model.parameters())) == planned["weights"]
    engine = build_engine(model, config, torch.device("cpu"))
    total = engine.forward(batch=batch_of(tiny_processor(), (56, 84), 2)).total
    engine.backward(total)
    masters = [each for group in engine.optimizer.param_groups for each in group["params"]]
    assert bytes_of([each.grad for each in masters]) == planned["gradients"]
    engine.step(1e-3, total.detach())
    moments = [state[name] for state in engine.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    copies = masters if config.precision == "bf16" else []
    assert bytes_of(moments) + bytes_of(copies) == planned["optimizer"]


def test_zero_shares_what_it_shares():
    # Of DeepSpeed's own tensors at each stage, as they were found in one process; a share of them on each of several.
    sizes = ModelSizes({"language": 1000}, {"language": 1000})

    def on_ten(stage: int, precision: str = "bf16") -> tuple[int, int, int]:
        config = build(zero_stage=stage, precision=precision, workers=10, engine="deepspeed" if stage else "torch")
        found = model_bytes(sizes, config)
        return found["weights"], found["gradients"], found["optimizer"]

    assert on_ten(0) == (2000, 4000, 12_000)
    assert on_ten(1) == (2000, 6000, 1200), "gradients in bf16, and their sum in fp32"
    assert on_ten(2) == (2000, 400, 1200)
    assert on_ten(3)[0] == 200 + 2000, "a share, and what is gathered for a pass"
    assert on_ten(2, "fp32") == (4000, 400, 1200)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_activations_are_those_that_autograd_keeps(precision, recompute):
    config = build(precision=precision, gradient_checkpointing=recompute, batch_size=3)
    model = copy.deepcopy(tiny_model()).to(training_dtype(config)).train()
    set_checkpointing(model, vision=recompute, language=recompute, decoder=recompute)
    batch = batch_of(tiny_processor(), (140, 196), 5, 4, 3)
    known = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    for module in model.modules():
        if recompute and hasattr(module, "_gradient_checkpointing_func"):
            # What is handed to a checkpoint is kept by it, and by no graph.
            module._gradient_checkpointing_func = _recording(module._gradient_checkpointing_func, keep)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(batch=batch)
    assert output.total.requires_grad
    work = Workload(
        samples=3,
        tokens=int(batch.attention_mask.sum(1).max()),
        patches=batch.patch_counts[0],
        rows=int((batch.supervised.targets >= 0).sum(1).max()),
        objects=4,
    )
    with torch.device("meta"):
        planned = PaDTForConditionalGeneration(tiny_config()).to(training_dtype(config)).train()
    set_checkpointing(planned, vision=recompute, language=recompute, decoder=recompute)
    layers = vision_layer(planned, work), language_layer(planned, work)
    total = kept_activations(planned, config, work, *layers)
    total += head_bytes(planned, config, work).kept + decoder_bytes(planned, config, work).kept
    assert total == pytest.approx(bytes_of(list(kept.values())), rel=0.08)


def _recording(before, keep):
    from jobs.planning.trace import _tensors_in

    def call(function, *arguments):
        for tensor in _tensors_in(arguments):
            keep(tensor)
        return before(function, *arguments)

    return call


@pytest.mark.parametrize("size", ["3B", "7B"])
def test_published_models_are_known_without_the_hub(size, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = build(model=f"Qwen/Qwen2.5-VL-{size}-Instruct", lora={"rank": 8})
    model = planned_model(config, configuration_of(config.model))
    sizes = ModelSizes.of(model)
    assert sizes.parameters["vision"] + sizes.parameters["language"] == PARAMETERS[size]
    assert sizes.trained["language"] == sizes.trained["vision"] == 0 < sizes.trained["adapters"]
    assert {each.device.type for each in model.parameters()} == {"meta"}
    assert json.loads((PUBLISHED / f"Qwen2.5-VL-{size}-Instruct.json").read_text()) == HUB[size]


def test_another_model_of_the_hub_is_one_clear_sentence(monkeypatch):
    def offline(*_: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UserError, match=r"configuration of someone/else .*no network.*hf download .* model=FOLDER"):
        configuration_of("someone/else")


def test_checkpoints_have_the_size_that_was_measured():
    # 50 GiB at 3B and 109 at 7B, each with prototypes and decoder, under ZeRO in bf16.
    config = build(workers=8)
    for size, gib in (("3B", 50), ("7B", 109)):
        found = configuration_of(f"Qwen/Qwen2.5-VL-{size}-Instruct")
        assert checkpoint_bytes(ModelSizes.of(planned_model(config, found)), config) // 2**30 == gib


def test_what_would_help_lowers_the_need():
    config = build(workers=8, batch_size=4, precision="bf16")
    model = planned_model(config, tiny_config())
    work = Workload(samples=4, tokens=1100, patches=1024, rows=50, objects=2)
    now = plan_memory(model, config, work)
    changes = helpful_changes(model, config, work, now)
    assert len(changes) == 2 and all(total < now.total for _, total in changes)
    assert changes[0][1] <= changes[1][1]
    parts = now.to_json()
    assert parts.pop("total") == sum(parts.values()) and all(size > 0 for size in parts.values())
