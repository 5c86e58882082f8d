"""`padt export`, and what training and registration write into the model card."""

import json
from types import SimpleNamespace

import pytest

from jobs.cli.main import main
from jobs.registry.export import run_export
from jobs.registry.register import note_scores
from jobs.training.config import TrainConfig
from jobs.training.model_card_facts import training_facts
from padt.checkpoints.loading import save_model
from padt.errors import UserError
from padt.pretrained.config import load_config
from padt.pretrained.model_card import CARD, ModelFacts, read_facts
from tests.padt.tiny import tiny_model


@pytest.fixture
def folder(tmp_path):
    model = tiny_model()
    facts = ModelFacts(base_model="Qwen/Qwen2.5-VL-7B-Instruct", license="apache-2.0", data={"objects": "0a0a"})
    return save_model(model, model.processor, tmp_path / "pretrain" / "model", facts=facts)


def test_the_verb_writes_a_folder_and_says_what_was_left_out(folder, tmp_path, capsys):
    assert main(["export", str(folder), "--to", "hub", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "padt -> hub" in said.out and "left out" in said.out
    assert "Plain Qwen2.5-VL has no" in said.err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "Qwen2_5_VLForConditionalGeneration"
    ]
    assert main(["export", str(folder), "--to", "hub", "--out", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "onnx", "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_a_registered_model_is_exported_by_its_alias_and_its_card_has_its_scores(folder, tmp_path):
    pytest.importorskip("mlflow")
    from jobs.common.model_reference import find_model
    from jobs.registry.register import run_register

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_register(folder, {"eval/toy/gIoU": 0.75}, tracking_uri=uri)
    facts = read_facts(folder)
    assert facts.metrics == {"eval/toy/gIoU": 0.75} and facts.data == {"objects": "0a0a"}
    result = run_export("models:/padt@champion", tmp_path / "out", "released", tracking_uri=uri)
    assert load_config(result.folder)[1] == "released"
    assert read_facts(result.folder) == facts
    assert find_model("models:/padt@champion", uri).path == folder.resolve(), "a card may change after registration"


def test_a_model_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nowhere"):
        run_export(tmp_path / "nowhere", tmp_path / "out", "hub")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="hf download Nobody/Nothing"):
        run_export("Nobody/Nothing", tmp_path / "out", "hub")


def test_training_facts_name_base_data_and_settings(folder):
    config = TrainConfig(
        model=str(folder), output="runs/x", data={"sets": [{"url": "runs/toy", "tasks": {"refer": 1}}]}, steps=30
    )
    index = SimpleNamespace(fingerprint="beef", class_names=("cat", "dog"))
    specs = [SimpleNamespace(tasks={"refer": 1})]
    mixture = SimpleNamespace(names=("toy",), indices=(index,), specs=specs, fingerprint=lambda: "f00d")
    plan = SimpleNamespace(mixture=mixture)
    facts = training_facts(config, plan, 30)
    assert facts.base_model == "Qwen/Qwen2.5-VL-7B-Instruct" and facts.license == "apache-2.0"
    assert facts.data == {"objects": "0a0a", "toy": "beef"}, "what the base was trained on counts too"
    assert facts.training["steps"] == 30 and facts.training["mixture"] == "f00d"
    assert facts.metrics == {}, "the base's scores are not this model's"
    assert facts.classes == (), "sentences teach no classes"
    specs[0].tasks["detect"] = 1.0
    assert training_facts(config, plan, 30).classes == ("cat", "dog")


def test_scores_go_into_our_own_cards_only(folder, tmp_path):
    assert note_scores(folder, {"eval/toy/gIoU": 0.5}, {"toy": "0001"})
    assert read_facts(folder).measured_on == {"toy": "0001"}
    run_export(folder, tmp_path / "released", "released")
    before = (tmp_path / "released" / CARD).read_text()
    assert not note_scores(tmp_path / "released", {"eval/toy/gIoU": 0.9}, {})
    assert (tmp_path / "released" / CARD).read_text() == before
    assert not note_scores(tmp_path / "nowhere", {"eval/toy/gIoU": 0.9}, {})
