"""LoRA on the language model: what is trained, saved, merged and read back, with tied and untied tables."""

import copy
import json
import shutil

import pytest
import torch

from padt.checkpoints.loading import load_model, save_model
from padt.checkpoints.lora import (
    attach,
    has_adapters,
    load_adapter,
    merge,
    save_adapter,
)
from padt.data.processor import load_processor
from padt.errors import UserError
from padt.model.trainable import LoraSettings, freeze
from tests.padt.model.test_modeling import batches
from tests.padt.tiny import tiny_model

pytest.importorskip("peft")
SETTINGS = LoraSettings(rank=4, alpha=8)


def adapted(tied=True, settings=SETTINGS, vision=False, steps=2):
    """A tiny model after some LoRA steps, and the model that it began as."""
    base = tiny_model(tied)
    model = copy.deepcopy(base).train()
    attach(model, settings)
    freeze(model, [] if vision else ["vision"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.3)
    for _ in range(steps):
        model(batch=batches(model.processor)["objects"]).total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return base, model.eval()


@torch.no_grad()
def answers(model):
    output = model(batch=batches(model.processor)["objects"])
    return torch.stack([output.total, *output.parts.values()])


def test_fresh_adapters_change_nothing_and_only_what_is_meant_is_trained():
    base, model = adapted(steps=0)
    torch.testing.assert_close(answers(model), answers(base))
    model.train()(batch=batches(model.processor)["objects"]).total.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in with_gradient} == {"model", "vis_norm", "vis_proj", "vl_decoder"}
    # The decoder and the vision tower have maps called q_proj and gate_proj too: they must not get adapters.
    inside = [name for name in with_gradient if name.startswith("model.")]
    assert len(inside) == 2 * 2 * len(SETTINGS.targets)
    assert all(".lora_" in name and name.startswith("model.language_model.layers.") for name in inside)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_folder_a_merged_folder_and_the_trained_model_answer_alike(tmp_path, tied):
    base, model = adapted(tied)
    expected = answers(model)
    assert not torch.allclose(expected, answers(base), atol=1e-3), "training must show"
    save_model(base, base.processor, tmp_path / "base")
    save_adapter(model, model.processor, tmp_path / "adapter", tmp_path / "base")
    merged = merge(model)
    assert not has_adapters(merged) and set(merged.state_dict()) == set(base.state_dict())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    same_table = merged.lm_head.weight is merged.get_input_embeddings().weight
    assert same_table == tied
    save_model(merged, merged.processor, tmp_path / "merged")
    for folder in ("adapter", "merged"):
        again = load_model(tmp_path / folder, device="cpu")
        torch.testing.assert_close(answers(again), expected, atol=1e-4, rtol=1e-4)
        assert not has_adapters(again)
    assert load_processor(tmp_path / "adapter").vrt_offset == base.processor.vrt_offset
    assert merge(again) is again, "a model without adapters merges to itself"


def test_a_trained_vision_tower_travels_with_the_adapter(tmp_path):
    base, model = adapted(vision=True)
    save_model(base, base.processor, tmp_path / "base")
    save_adapter(model, model.processor, tmp_path / "adapter", "../base")
    shutil.move(tmp_path, tmp_path.with_name(tmp_path.name + "-moved"))
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    torch.testing.assert_close(answers(load_model(moved / "adapter", device="cpu")), answers(model))


def test_peft_itself_reads_an_adapter_folder(tmp_path):
    from peft import PeftModel

    base, model = adapted()
    save_adapter(model, model.processor, tmp_path / "adapter", tmp_path / "base")
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter")).merge_and_unload()
    torch.testing.assert_close(answers(theirs), answers(model), atol=1e-4, rtol=1e-4)


def test_adapters_that_do_not_fit_are_refused_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    base, model = adapted()
    save_adapter(model, model.processor, tmp_path / "adapter", tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere.*base_model_name_or_path"):
        load_model(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    weights.pop("base_model.model.vis_norm.weight")
    weights["base_model.model.lm_head.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"missing vis_norm\.weight; unexpected lm_head\.weight"):
        load_adapter(copy.deepcopy(base), tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "IA3"}))
    with pytest.raises(UserError, match="IA3"):
        load_adapter(copy.deepcopy(base), tmp_path / "adapter")


def test_wrong_uses_say_what_to_do(tmp_path):
    model = copy.deepcopy(tiny_model())
    with pytest.raises(UserError, match="'q_prj'.*did you mean q_proj"):
        LoraSettings(targets=("q_prj",))
    with pytest.raises(UserError, match="no LoRA adapters to save"):
        save_adapter(model, model.processor, tmp_path / "adapter", "base")
    attach(model, SETTINGS)
    with pytest.raises(UserError, match="already"):
        attach(model, SETTINGS)
