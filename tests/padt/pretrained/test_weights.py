"""Weight files that are not what they should be are named before anything is loaded; models come by Hub name too."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from padt.checkpoints.loading import load_model, save_model
from padt.errors import UserError
from padt.pretrained.hub import is_hub_id, model_folder
from padt.pretrained.weights import read_tensors, stored_name
from tests.padt.folders import edit_json, hub_folder, same_tensors
from tests.padt.tiny import tiny_model

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = tiny_model()
    return save_model(model, model.processor, tmp_path_factory.mktemp("own") / "model", max_shard_size="150KB")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def test_every_save_has_the_names_of_the_hub(saved):
    # Also of a model that was built and not loaded: transformers only renames classes that it knows.
    assert all(stored_name(tensor.name) == tensor.name for tensor in read_tensors(saved).values())


def test_half_copied_shards_are_named(folder):
    lost = shards(folder)[1]
    lost.unlink()
    with pytest.raises(UserError, match=rf"lacks 1 of its \d+ weight files: {lost.name}.*fetch the rest"):
        load_model(folder, device="cpu")


def test_a_shard_that_is_cut_short_is_named(folder):
    file = shards(folder)[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{file.name} cannot be read as safetensors"):
        load_model(folder, device="cpu")


def test_shards_without_their_index_are_not_guessed_at(folder):
    (folder / INDEX).unlink()
    with pytest.raises(UserError, match="neither model.safetensors nor .*index.json, only model-00001"):
        load_model(folder, device="cpu")


def test_an_index_of_another_save_is_refused(folder):
    map_ = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map={**map_, "vl_decoder.ghost.weight": next(iter(map_.values()))})
    with pytest.raises(UserError, match=r"lists tensors that its files do not hold: vl_decoder\.ghost\.weight"):
        load_model(folder, device="cpu")
    edit_json(folder / INDEX, weight_map={})
    with pytest.raises(UserError, match="has no weight_map"):
        load_model(folder, device="cpu")


def test_two_saves_in_one_folder_are_not_chosen_between(folder):
    shutil.copy(shards(folder)[0], folder / "model.safetensors")
    with pytest.raises(UserError, match="holds both model.safetensors and"):
        load_model(folder, device="cpu")


def test_a_tensor_that_is_there_twice_is_named(folder):
    first, second = shards(folder)[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name} twice, in {first.name} and in {second.name}"):
        load_model(folder, device="cpu")


def test_pickled_weights_are_not_opened(tmp_path):
    hub_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickles only \(pytorch_model\.bin\).*safetensors"):
        load_model(tmp_path, device="cpu")


def test_names_as_newer_transformers_has_them_in_memory_load_too(tmp_path, folder):
    model = load_model(folder, device="cpu")
    renamed = tmp_path / "renamed"
    shutil.copytree(folder, renamed, ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert any(name.startswith("model.language_model.") for name in state)
    save_file(state, renamed / "model.safetensors", metadata={"format": "pt"})
    assert same_tensors(load_model(renamed, device="cpu").state_dict(), model.state_dict())
    assert read_tensors(renamed).keys() == {stored_name(name) for name in state}


# ---------------------------------------------------------------------- the Hub


def test_only_what_can_be_no_path_is_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_id("Qwen/Qwen2.5-VL-3B-Instruct")
    for path in ("runs/modle", "./Qwen/model", "/Qwen/model", "~/model", "model", "a/b/c", "models:/padt@champion"):
        assert not is_hub_id(path), path
    with pytest.raises(UserError, match="There is no model folder runs/modle"):
        model_folder("runs/modle")


def test_a_model_comes_from_the_hub_by_name_and_revision(folder, monkeypatch):
    asked = []

    def fetch(name, revision=None, allow_patterns=None, **options):
        asked.append((name, revision))
        assert "*.bin" not in allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    model = load_model("PaDT-MLLM/PaDT_Pro_3B", device="cpu", revision="v2")
    assert asked == [("PaDT-MLLM/PaDT_Pro_3B", "v2")]
    assert model.processor is not None


def test_a_cached_hub_model_loads_without_a_network(folder, tmp_path, monkeypatch):
    # The layout that huggingface_hub leaves in its cache: refs/main names the commit, snapshots/COMMIT holds the files.
    commit = "0" * 40
    cache = tmp_path / "cache" / "models--somebody--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    shutil.copytree(folder, cache / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    model = load_model("somebody/tiny", device="cpu")
    assert same_tensors(model.state_dict(), load_model(folder, device="cpu").state_dict())


def test_a_hub_model_out_of_reach_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="hf download Nobody/Nothing --local-dir"):
        load_model("Nobody/Nothing", device="cpu")


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("RepositoryNotFoundError", "neither a local folder nor a repository"),
        ("GatedRepoError", "accept its terms"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
        ("HfHubHTTPError", "cannot be fetched from the Hub"),
    ],
)
def test_what_the_hub_answers_becomes_advice(monkeypatch, error, fix):
    import huggingface_hub.errors

    kind = getattr(huggingface_hub.errors, error)

    def refuse(*arguments, **options):
        raise kind.__new__(kind, "no")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=fix):
        load_model("Qwen/Qwen2.5-VL-3B-Instruct", device="cpu", revision="v9")
