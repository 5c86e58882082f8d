"""An export is the same model in another layout: every tensor bit by bit, and readable by those it is meant for."""

import json
import logging

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import padt
from padt.checkpoints.layouts import config_values
from padt.errors import UserError
from padt.pretrained.auto_code import AUTO_MAPS
from padt.pretrained.config import PaDTConfig, load_config
from padt.pretrained.weights import FRESH_PREFIXES, read_tensors
from tests.padt.folders import edit_json, edit_weights, hub_folder, same_tensors, weights_of
from tests.padt.tiny import tiny_config, tiny_model
from tests.parity.fixture import Fixture


@pytest.fixture
def released(reference_fixture, tmp_path):
    (tmp_path / "released").mkdir()
    return Fixture(reference_fixture).assemble_model(tmp_path / "released")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def own(request, tmp_path):
    model = tiny_model(request.param)
    return padt.save_model(model, model.processor, tmp_path / "own")


def test_ours_to_released_to_ours(own, tmp_path):
    result = padt.export(own, tmp_path / "out", "released", max_shard_size="200KB")
    assert len(result.files) > 1 and (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert same_tensors(weights_of(tmp_path / "out"), weights_of(own))
    before, model = padt.load_model(own, dtype="auto"), padt.load_model(tmp_path / "out", dtype="auto")
    assert model.config.feature_order == "raster"
    again = padt.save_model(model, model.processor, tmp_path / "again")
    assert same_tensors(weights_of(again), weights_of(own))
    text = 'Where is "the dog"?'
    assert model.processor.prompt_ids(text, [4]) == before.processor.prompt_ids(text, [4])
    assert model.processor.policy == before.processor.policy


def test_released_to_ours_to_released(released, tmp_path):
    model = padt.load_model(released, dtype="auto")
    own = padt.save_model(model, model.processor, tmp_path / "own")
    result = padt.export(own, tmp_path / "back", "released")
    assert result.notes == () and result.dropped == ()
    assert same_tensors(weights_of(tmp_path / "back"), weights_of(released))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (released, tmp_path / "back"))
    # What the released code reads has the same value; we say the order that it takes for granted, and
    # where others find our classes.
    told = {"feature_order": "reference", "auto_map": AUTO_MAPS["config.json"]}
    # The window is off in both, "mrope" is another word for default, and two keys say nothing about the model.
    rewritten = ("rope_scaling", "sliding_window", "vision_config", "transformers_version", "vision_token_id")
    assert {k: v for k, v in after.items() if k not in rewritten and k not in told} == {
        k: v for k, v in before.items() if k not in rewritten
    }
    assert {key: after[key] for key in told} == told
    assert before["vision_config"].items() <= after["vision_config"].items()
    assert padt.load_model(tmp_path / "back").config.feature_order == "reference"


@pytest.mark.parametrize("tied", [True, False])
def test_hub_to_ours_to_hub_is_read_by_transformers(tmp_path, tied, caplog):
    plain = hub_folder(tmp_path / "hub", tied)
    model = padt.load_model(tmp_path / "hub", dtype="auto", seed=1)
    own = padt.save_model(model, model.processor, tmp_path / "own")
    with caplog.at_level(logging.WARNING, logger="padt.checkpoints.export"):
        result = padt.export(own, tmp_path / "back", "hub")
    assert len(result.dropped) == len([name for name in weights_of(own) if name.startswith(FRESH_PREFIXES)])
    assert "tensors were left out" in caplog.text
    assert same_tensors(weights_of(tmp_path / "back"), weights_of(tmp_path / "hub"))
    again, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert same_tensors(again.state_dict(), plain.state_dict())
    ids = torch.tensor([[5, 9, 300, 7]])
    assert torch.equal(again(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert again.generation_config.eos_token_id == model.processor.end_token_id
    assert not {"vl_decoder", "feature_order"} & json.loads((tmp_path / "back" / "config.json").read_text()).keys()


def test_files_beside_the_weights_are_read_by_transformers_old_and_new(own, tmp_path):
    padt.export(own, tmp_path / "out", "hub")
    processor = padt.load_processor(own)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "<|im_start|>user\nWhere?<|im_end|>"
    assert tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert tokenizer.chat_template == processor.chat_template
    images = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "out")
    assert images.size["longest_edge"] == processor.policy.max_pixels
    values = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    # Version 4 knows no TokenizersBackend, and takes a list of extra tokens for a map.
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(values.get("extra_special_tokens"), list)
    assert {"vocab.json", "merges.txt", "chat_template.json"} <= {file.name for file in (tmp_path / "out").iterdir()}


def test_a_raster_model_keeps_its_order_in_the_released_layout_and_warns(own, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="padt.checkpoints.export"):
        result = padt.export(own, tmp_path / "out", "released")
    assert "boxes and masks would be wrong there" in result.notes[0]
    assert result.notes[0] in caplog.text


@pytest.mark.parametrize("to", ["hub", "released"])
def test_rotary_parameters_of_the_vision_tower_are_not_lost(tmp_path, to):
    # Other code takes them for granted; left out, every box would lie elsewhere with the same weights.
    model = tiny_model()
    model.config.vision_config.rope_parameters = {"rope_type": "axial", "rope_theta": 100.0}
    own = padt.save_model(model, model.processor, tmp_path / "own")
    result = padt.export(own, tmp_path / "out", to)
    assert load_config(tmp_path / "out")[0].vision_config.rope_parameters["rope_theta"] == 100.0
    assert "unusual rotary parameters" in " ".join(result.notes)


def test_a_field_without_a_place_stops_the_export(own, tmp_path, monkeypatch):
    def forgetful(*arguments):
        return {key: value for key, value in config_values(*arguments).items() if key != "rms_norm_eps"}

    edit_json(
        own / "config.json",
        text_config={**json.loads((own / "config.json").read_text())["text_config"], "rms_norm_eps": 0.5},
    )
    monkeypatch.setattr("padt.checkpoints.export.config_values", forgetful)
    with pytest.raises(UserError, match=r"no place for text_config\.rms_norm_eps of .*would answer otherwise"):
        padt.export(own, tmp_path / "out", "hub")


def test_calibrated_scores_are_kept_and_the_difference_is_said(own, tmp_path):
    edit_json(own / "config.json", score_calibration={"token": 0.5})
    result = padt.export(own, tmp_path / "out", "released")
    assert "gives the decoder's own scores" in result.notes[1]
    assert load_config(tmp_path / "out")[0].score_calibration == {"token": 0.5}


def test_fields_that_released_code_would_stumble_over_stand_apart_and_come_back():
    config = tiny_config(use_visual_prototype_projection=False)
    config.vl_decoder.memory_budget_mb = 7
    values = json.loads(json.dumps(config_values(config, "released", "float32")))
    assert "memory_budget_mb" not in values["vl_decoder"]
    again = PaDTConfig.from_dict(values)
    assert again.vl_decoder.memory_budget_mb == 7
    assert again.feature_order == "raster" and not again.use_visual_prototype_projection
    for name in ("text_config", "vision_config"):
        before, after = getattr(config, name).to_dict(), getattr(again, name).to_dict()
        differing = {key for key in before if before[key] != after.get(key)}
        assert differing <= {"dtype", "rope_parameters", "tie_word_embeddings"}, differing
    rope = again.text_config.rope_parameters
    assert {key: rope[key] for key in config.text_config.rope_parameters} == config.text_config.rope_parameters


def test_a_head_that_is_stored_beside_its_embedding_is_written_once(tmp_path):
    hub_folder(tmp_path / "hub")
    table = weights_of(tmp_path / "hub")["model.embed_tokens.weight"]
    edit_weights(tmp_path / "hub", lambda weights: weights.update({"lm_head.weight": table.clone()}))
    padt.export(tmp_path / "hub", tmp_path / "out", "hub")
    assert "lm_head.weight" not in read_tensors(tmp_path / "out")


def test_an_adapter_is_merged_on_the_way_out(released, tmp_path):
    pytest.importorskip("peft")
    from padt.checkpoints.lora import attach, save_adapter
    from padt.model.trainable import LoraSettings

    model = padt.load_model(released, dtype="auto")
    attach(model, LoraSettings(rank=2, targets=("q_proj",)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    save_adapter(model, model.processor, tmp_path / "adapter", released)
    padt.export(tmp_path / "adapter", tmp_path / "out", "released")
    merged = padt.load_model(tmp_path / "adapter", dtype="auto")
    assert same_tensors(padt.load_model(tmp_path / "out", dtype="auto").state_dict(), merged.state_dict())
    changed = [
        key for key, value in weights_of(tmp_path / "out").items() if not torch.equal(value, weights_of(released)[key])
    ]
    assert changed and all(key.endswith("q_proj.weight") for key in changed)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_what_cannot_be_exported_says_why_and_leaves_nothing(own, tmp_path, monkeypatch):
    hub_folder(tmp_path / "hub")
    with pytest.raises(UserError, match="plain Qwen2.5-VL, without prototypes and decoder"):
        padt.export(tmp_path / "hub", tmp_path / "out", "released")
    with pytest.raises(UserError, match="Layout 'onnx' is unknown: known are hub, released"):
        padt.export(own, tmp_path / "out", "onnx")
    with pytest.raises(UserError, match="max_shard_size 'big' is not a size"):
        padt.export(own, tmp_path / "out", "hub", max_shard_size="big")
    with pytest.raises(UserError, match="exists already"):
        padt.export(own, own, "hub")

    def broken(*arguments, **keywords):
        raise OSError("disk full")

    monkeypatch.setattr("padt.checkpoints.export.save_tokenizer", broken)
    with pytest.raises(OSError, match="disk full"):
        padt.export(own, tmp_path / "out", "hub")
    edit_weights(own, lambda weights: weights.pop("vis_proj.1.weight"))
    with pytest.raises(UserError, match=r"missing vis_proj\.1\.weight"):
        padt.export(own, tmp_path / "out", "hub")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "own"]
