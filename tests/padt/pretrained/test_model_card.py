"""The model card says where a model comes from and what it was measured at, and survives saves and exports."""

import yaml
from huggingface_hub import ModelCard

import padt
from padt.pretrained.model_card import CARD, ModelFacts, add_scores, base_name, model_card, read_facts, write_card
from tests.padt.tiny import tiny_config, tiny_model

FACTS = ModelFacts(
    base_model="Qwen/Qwen2.5-VL-3B-Instruct",
    data={"coco": "ab12", "refcoco | val": "cd34"},
    metrics={"eval/coco/bbox_AP": 0.5, "eval/coco/segm_AP": 0.25},
    measured_on={"coco": "ff00"},
    training={"steps": 300, "seed": 42},
    classes=("person", "traffic light"),
)


def test_the_front_matter_is_what_the_hub_reads():
    card = ModelCard(model_card(FACTS, tiny_config()))
    values = card.data.to_dict()
    assert values["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (values["license"], values["license_name"]) == ("other", "qwen-research")
    assert values["pipeline_tag"] == "image-text-to-text" and values["library_name"] == "padt"
    assert "object-detection" in values["tags"] and values["datasets"] == ["coco", "refcoco | val"]
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores == {"bbox_AP": 0.5, "segm_AP": 0.25}
    for heading in ("How to load it", "Intended use and limits", "Licence", "Training data", "Scores"):
        assert f"## {heading}" in card.text
    assert "| coco | ab12 |" in card.text and "| eval/coco/bbox_AP | 0.5000 |" in card.text
    assert "refcoco \\| val" in card.text, "a bar in a name would break the table"


def test_facts_come_back_from_the_card(tmp_path):
    write_card(tmp_path, FACTS, tiny_config())
    assert read_facts(tmp_path) == FACTS
    add_scores(tmp_path, {"eval/toy/gIoU": 0.75}, {"toy": "0001"}, tiny_config())
    facts = read_facts(tmp_path)
    assert facts.metrics == {**FACTS.metrics, "eval/toy/gIoU": 0.75}
    assert facts.measured_on == {"coco": "ff00", "toy": "0001"}
    assert [file.name for file in tmp_path.iterdir()] == [CARD]


def test_a_card_of_somebody_else_holds_no_facts(tmp_path):
    assert read_facts(tmp_path) == ModelFacts()
    for text in (
        "padt: [1]",
        "padt: {metrics: high, data: 3, base_model: [x], classes: cat}",
        "padt: [",
        "\x00",
        "- 1",
    ):
        # A training that ends must not fail over the card of its base.
        (tmp_path / CARD).write_text(f"---\n{text}\n---\n# Mine\n")
        assert read_facts(tmp_path) == ModelFacts(), text
    (tmp_path / CARD).write_bytes(b"---\n\xff\xfe\n---\n")
    assert read_facts(tmp_path) == ModelFacts()


def test_a_base_is_named_by_its_card_its_hub_name_or_its_run_never_by_a_path(tmp_path):
    assert base_name("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"
    cached = tmp_path / "hub" / "models--PaDT-MLLM--PaDT_Pro_3B" / "snapshots" / "0123"
    cached.mkdir(parents=True)
    assert base_name(cached) == "PaDT-MLLM/PaDT_Pro_3B"
    run = tmp_path / "pretrain" / "model"
    run.mkdir(parents=True)
    assert base_name(run) == "pretrain"
    write_card(run, FACTS, tiny_config())
    assert base_name(run) == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_a_folder_is_not_passed_off_as_a_hub_model():
    values = yaml.safe_load(model_card(ModelFacts(base_model="pretrain"), tiny_config()).split("---\n")[1])
    assert "base_model" not in values
    assert values["license_name"] == "as-the-base-model"


def test_saves_and_exports_carry_the_card(tmp_path):
    model = tiny_model()
    own = padt.save_model(model, model.processor, tmp_path / "own", facts=FACTS)
    assert read_facts(own) == FACTS
    padt.export(own, tmp_path / "released", "released")
    padt.export(own, tmp_path / "hub", "hub")
    assert read_facts(tmp_path / "released") == FACTS
    # The released code would read this raster model in its own order.
    assert "**Not with the released PaDT code**" in (tmp_path / "released" / CARD).read_text()
    plain = ModelCard.load(tmp_path / "hub" / CARD)
    assert plain.data.library_name == "transformers"
    assert "without its prototypes and its object decoder" in plain.text
