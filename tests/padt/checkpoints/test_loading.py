"""Model folders of every layout load strictly: nothing is initialised at random without a word."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from padt.checkpoints.loading import load_model, save_model
from padt.data.processor import load_processor
from padt.errors import UserError
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import PaDTConfig, load_config
from padt.pretrained.weights import FRESH_PREFIXES
from tests.padt.folders import edit_json, edit_weights, hub_folder, same_tensors, weights_of
from tests.padt.tiny import tiny_model


@pytest.fixture
def own_folder(tmp_path):
    model = tiny_model()
    return save_model(model, model.processor, tmp_path / "own"), model


def facts_of(config):
    """A configuration without its place on disk and its type of numbers."""
    values = json.loads(config.to_json_string())
    for section in (values, values["text_config"], values["vision_config"], values["vl_decoder"]):
        for name in ("dtype", "_name_or_path"):
            section.pop(name, None)
    return values


@pytest.mark.parametrize("tied", [True, False])
def test_hub_layout_keeps_every_weight_and_says_once_that_the_rest_is_fresh(tmp_path, caplog, tied):
    plain = hub_folder(tmp_path / "hub", tied)
    keys = load_file(tmp_path / "hub" / "model.safetensors").keys()
    assert any(key.startswith("visual.") for key in keys), "the Hub's old key names are what this test is about"
    with caplog.at_level(logging.WARNING, logger="padt.checkpoints.loading"):
        model = load_model(tmp_path / "hub", device="cpu")
    assert len([record for record in caplog.records if "start fresh" in record.message]) == 1
    ours, theirs = model.state_dict(), plain.state_dict()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    assert all(key.startswith(FRESH_PREFIXES) for key in ours.keys() - theirs.keys())
    assert model.config.feature_order == "raster"
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert not model.training and model.processor is not None


def test_fresh_parts_start_as_the_paper_says(tmp_path):
    hub_folder(tmp_path / "hub")
    model = load_model(tmp_path / "hub", device="cpu")
    assert not model.vis_norm.weight.any() and not model.vis_norm.bias.any()
    merged = torch.randn(5, 32)
    assert not model.prototypes_of(merged).any()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    decoder = model.vl_decoder
    assert decoder.high_res_norm.weight.eq(1).all()
    linear = decoder.low_res_transformer.self_attn.q_proj
    assert linear.weight.std().item() == pytest.approx((2 / (48 + 48)) ** 0.5, rel=0.1), "Xavier"
    assert not linear.bias.any()
    assert decoder.score_prediction.weight.std() < 0.2 * linear.weight.std(), "first scores are about one half"
    assert decoder.bbox_prediction[4].weight.std() < 0.4 * linear.weight.std(), "first boxes are central"


def test_released_layout_needs_the_mixed_orders_unless_told_otherwise(trained_model):
    assert trained_model.config.feature_order == "reference"
    assert trained_model.vl_decoder.feature_order == "reference"


def test_feature_order_can_be_overridden_and_reaches_the_decoder(own_folder):
    folder, _ = own_folder
    model = load_model(folder, device="cpu", feature_order="reference")
    assert model.config.feature_order == model.vl_decoder.feature_order == "reference"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("order", ["raster", "reference"])
def test_own_save_comes_back_bit_equal(tmp_path, tied, order):
    model = tiny_model(tied, feature_order=order)
    folder = save_model(model, model.processor, tmp_path / "own")
    again = load_model(folder, device="cpu")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert again.config.feature_order == order
    before, after = (facts_of(each.config) for each in (model, again))
    assert before == after
    assert json.loads((folder / "config.json").read_text())["model_type"] == "padt"
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) == (not tied)


def test_released_weights_come_back_bit_equal_from_our_own_save(trained_model, tmp_path):
    again = load_model(save_model(trained_model, trained_model.processor, tmp_path / "own"), device="cpu")
    before, after = trained_model.state_dict(), again.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert again.config.feature_order == "reference"


def test_a_missing_key_is_named(own_folder):
    folder, _ = own_folder
    edit_weights(folder, lambda weights: weights.pop("vl_decoder.score_prediction.bias"))
    with pytest.raises(UserError, match=r"missing vl_decoder\.score_prediction\.bias"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("kind", ["visual", "model"])
def test_a_hub_folder_that_lacks_a_base_key_is_not_fresh_but_damaged(tmp_path, kind):
    hub_folder(tmp_path / "hub")
    lost = []

    def lose(weights):
        key = next(key for key in weights if key.startswith(f"{kind}.") and key.endswith("weight"))
        weights.pop(key)
        lost.append(key.split(".", 1)[1])

    edit_weights(tmp_path / "hub", lose)
    with pytest.raises(UserError, match="missing") as caught:
        load_model(tmp_path / "hub", device="cpu")
    assert lost[0] in str(caught.value)


def test_a_released_folder_without_decoder_weights_is_refused(reference_fixture, tmp_path):
    from tests.parity.fixture import Fixture

    folder = Fixture(reference_fixture).assemble_model(tmp_path)
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("vl_decoder.")}
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing vl_decoder\..*and \d+ more"):
        load_model(folder, device="cpu")


def test_an_unexpected_key_is_named(own_folder):
    folder, _ = own_folder
    edit_weights(folder, lambda weights: weights.update({"vl_decoder.extra.weight": torch.zeros(3)}))
    with pytest.raises(UserError, match=r"unexpected vl_decoder\.extra\.weight"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    "key", ["vl_decoder.score_prediction.weight", "model.embed_tokens.weight", "vis_proj.0.weight"]
)
def test_a_key_of_another_shape_is_named(own_folder, key):
    folder, _ = own_folder
    stored = next(name for name in load_file(folder / "model.safetensors") if name.endswith(key.split(".", 1)[1]))
    edit_weights(folder, lambda weights: weights.update({stored: torch.zeros(7, 5)}))
    with pytest.raises(UserError, match=key.split(".", 1)[1].replace(".", r"\.")):
        load_model(folder, device="cpu")


def test_folders_that_are_no_model_folders_are_named(tmp_path, own_folder):
    with pytest.raises(UserError, match="There is no model folder .*nowhere"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(tmp_path / "empty")
    folder, _ = own_folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=str(folder)):
        load_model(folder, device="cpu")


def test_a_model_of_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 3}')
    with pytest.raises(UserError, match="llama"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "[1, 2]"])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        load_config(tmp_path)


def test_damaged_weights_are_named(own_folder):
    folder, _ = own_folder
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=str(folder)):
        load_model(folder, device="cpu")


def test_a_folder_without_processor_says_so(own_folder):
    folder, _ = own_folder
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="processor"):
        load_processor(folder)


def test_a_save_never_replaces_a_folder_and_never_leaves_half_of_one(tmp_path, monkeypatch):
    model = tiny_model()
    folder = save_model(model, model.processor, tmp_path / "own")
    with pytest.raises(UserError, match="exists already"):
        save_model(model, model.processor, folder)
    shutil.rmtree(folder)

    def broken(*arguments, **keywords):
        raise OSError("disk full")

    monkeypatch.setattr(model.processor, "save_pretrained", broken)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, model.processor, folder)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_attention_is_refused(own_folder):
    folder, _ = own_folder
    with pytest.raises(UserError, match="attn_implementation 'flash' is unknown"):
        load_model(folder, device="cpu", attn_implementation="flash")
    assert load_model(folder, device="cpu", attn_implementation="eager").config._attn_implementation == "eager"


def test_parts_that_start_fresh_are_the_same_under_a_seed_and_leave_other_draws_alone(tmp_path):
    hub_folder(tmp_path / "hub")
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, again, other = (load_model(tmp_path / "hub", device="cpu", seed=seed).vl_decoder for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same_tensors(first.state_dict(), again.state_dict())
    assert not torch.equal(first.vp_embedding.weight, other.vp_embedding.weight)
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(load_model(tmp_path / "hub", device="cpu").vl_decoder.state_dict())
    assert same_tensors(*drawn)


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_saves_of_hub_and_ours_load_like_single_files(tmp_path, tied):
    plain = hub_folder(tmp_path / "hub", tied, max_shard_size="50KB")
    assert len(list((tmp_path / "hub").glob("*.safetensors"))) > 1
    model = load_model(tmp_path / "hub", device="cpu", seed=0)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in plain.state_dict().items())
    folder = save_model(model, model.processor, tmp_path / "own", max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert same_tensors(load_model(folder, device="cpu").state_dict(), model.state_dict())


def test_a_tied_model_may_store_its_head_only_if_it_is_the_embedding(tmp_path):
    hub_folder(tmp_path / "hub")
    table = weights_of(tmp_path / "hub")["model.embed_tokens.weight"]
    edit_weights(tmp_path / "hub", lambda weights: weights.update({"lm_head.weight": table.clone()}))
    model = load_model(tmp_path / "hub", device="cpu")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    edit_weights(tmp_path / "hub", lambda weights: weights["lm_head.weight"].add_(1))
    with pytest.raises(UserError, match=r"lm_head\.weight differs .*tie_word_embeddings = true: set it to false"):
        load_model(tmp_path / "hub", device="cpu")
    config = tmp_path / "hub" / "config.json"
    text = {**json.loads(config.read_text())["text_config"], "tie_word_embeddings": False}
    edit_json(config, tie_word_embeddings=False, text_config=text)
    model = load_model(tmp_path / "hub", device="cpu")
    assert torch.equal(model.lm_head.weight, table + 1)
    assert torch.equal(model.get_input_embeddings().weight, table)


def test_an_untied_model_without_its_head_is_refused(tmp_path):
    hub_folder(tmp_path / "hub", tied=False)
    edit_weights(tmp_path / "hub", lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"missing lm_head\.weight.*tie_word_embeddings = false"):
        load_model(tmp_path / "hub", device="cpu")


def test_decoder_weights_without_their_section_are_not_taken_for_a_base(own_folder):
    # Loaded as plain Qwen2.5-VL they would come back in raster order: wrong boxes without a word.
    folder, _ = own_folder
    values = json.loads((folder / "config.json").read_text())
    values.pop("vl_decoder")
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "qwen2_5_vl"}))
    with pytest.raises(UserError, match="no vl_decoder section"):
        load_model(folder, device="cpu")


def test_sizes_that_do_not_fit_together_are_named(own_folder):
    folder, _ = own_folder
    section = json.loads((folder / "config.json").read_text())["vl_decoder"]
    edit_json(folder / "config.json", vl_decoder={**section, "num_heads": 3})
    with pytest.raises(UserError, match=r"config\.json: vl_decoder\.num_heads is 3 but vision_config\.num_heads is 4"):
        load_model(folder, device="cpu")
    edit_json(folder / "config.json", vl_decoder=section, feature_order="sideways")
    with pytest.raises(UserError, match=r"config\.json cannot be used .*sideways"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        (None, torch.float32),
        ("auto", torch.bfloat16),
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        (torch.float32, torch.float32),
    ],
)
def test_types_of_weights_by_name(reference_fixture, tmp_path, asked, got):
    from tests.parity.fixture import Fixture

    folder = Fixture(reference_fixture).assemble_model(tmp_path)
    model = load_model(folder, device="cpu", dtype=asked, with_processor=False)
    assert {parameter.dtype for parameter in model.parameters()} == {got}


def test_an_unknown_type_is_refused(own_folder):
    with pytest.raises(UserError, match="dtype 'half-ish' is unknown"):
        load_model(own_folder[0], device="cpu", dtype="half-ish")


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_maps(own_folder, device_map):
    pytest.importorskip("accelerate")
    folder, model = own_folder
    again = load_model(folder, device_map=device_map, dtype="auto")
    tensors = {name: tensor.cpu() for name, tensor in again.state_dict().items()}
    assert same_tensors(tensors, model.state_dict())
    assert again.lm_head.weight is again.get_input_embeddings().weight
    with pytest.raises(UserError, match="device or device_map, not both"):
        load_model(folder, device_map=device_map, device="cpu")


def test_transformers_own_door_is_as_strict(reference_fixture, own_folder, tmp_path):
    # Without the override it would take a released folder in raster order, and initialise its language model at random.
    from tests.parity.fixture import Fixture

    (tmp_path / "released").mkdir()
    released = Fixture(reference_fixture).assemble_model(tmp_path / "released")
    model = PaDTForConditionalGeneration.from_pretrained(released)
    stored = weights_of(released)
    assert model.config.feature_order == "reference"
    assert torch.equal(model.vl_decoder.vp_embedding.weight, stored["vl_decoder.vp_embedding.weight"])
    assert torch.equal(model.get_input_embeddings().weight, stored["model.embed_tokens.weight"])
    assert PaDTConfig.from_pretrained(released).feature_order == "reference"
    folder, _ = own_folder
    edit_weights(folder, lambda weights: weights.pop("vl_decoder.score_prediction.bias"))
    with pytest.raises(UserError, match=r"missing vl_decoder\.score_prediction\.bias"):
        PaDTForConditionalGeneration.from_pretrained(folder)


def test_answers_end_where_a_turn_ends_whatever_the_folder_says(tmp_path):
    hub_folder(tmp_path / "hub")
    (tmp_path / "hub" / "generation_config.json").write_text('{"eos_token_id": 7}')
    model = load_model(tmp_path / "hub", device="cpu")
    assert model.generation_config.eos_token_id == [model.processor.end_token_id, 7]
    assert model.generation_config.pad_token_id == model.processor.pad_token_id
    folder = save_model(model, model.processor, tmp_path / "own")
    saved = json.loads((folder / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [model.processor.end_token_id, 7]
    assert saved["pad_token_id"] == model.processor.pad_token_id


def test_an_adapter_is_no_whole_model_at_transformers_own_door(own_folder):
    folder, _ = own_folder
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter, not a whole model: load it with padt.load_model"):
        PaDTForConditionalGeneration.from_pretrained(folder)
