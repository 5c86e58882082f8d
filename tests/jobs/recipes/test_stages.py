"""Stages that make models and sets for others must leave what these take."""

from pathlib import Path

import pytest

from jobs.recipes.stage import BUILT_IN, StageContext
from jobs.recipes.stages import build_stage
from padt.errors import UserError
from padt.pretrained.config import load_config
from padt.pretrained.tokenizer import load_tokenizer
from pipelines.dataset.manifest import open_set
from tests.jobs.tiny_model import write_tiny_model

SMALL = {
    "vision": {"depth": 2, "fullatt_block_indexes": [1]},
    "language": {"num_hidden_layers": 1},
}


@pytest.fixture(autouse=True)
def shipped_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training the toy's tokenizer anew takes seconds."""
    tokenizer = load_tokenizer(BUILT_IN["toy_base"](), 768)
    for module in ("jobs.training.toy_base", "pipelines.toy.model_config", "tests.jobs.tiny_model"):
        monkeypatch.setattr(f"{module}.build_tokenizer", lambda: tokenizer)


def test_an_untrained_toy_model_is_plain_qwen_of_the_size_asked_for(tmp_path: Path) -> None:
    stage = build_stage("untrained", {"do": "toy-model", "seed": 3, **SMALL}, "test")
    result = stage.perform(StageContext("untrained", str(tmp_path)))
    config, layout = load_config(tmp_path / "model")
    assert layout == "hub" and result["parameters"] > 0
    assert (config.vision_config.depth, config.text_config.num_hidden_layers) == (2, 1)
    # An attempt that was cut off before its marker is made again.
    assert stage.perform(StageContext("untrained", str(tmp_path))) == result


def test_an_export_can_be_the_start_of_another_training(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    stage = build_stage("talker", {"do": "export", "model": model, "to": "hub"}, "test")
    result = stage.perform(StageContext("talker", str(tmp_path / "out")))
    assert load_config(result["model"])[1] == "hub" and result["dropped"] > 0
    with pytest.raises(UserError, match="hub"):
        build_stage("talker", {"do": "export", "model": model, "to": "hubb"}, "test")


def test_toy_sets_hold_the_scenes_and_conversations_asked_for(tmp_path: Path) -> None:
    pictures = {"sizes": [[112, 112]], "min_shapes": 2, "shared_colour": 1.0, "classes": "kind"}
    entry = {"do": "prepare-toy", "scenes": 3, "heldout": 2, "talk": 4, "pictures": pictures}
    build_stage("prepare", entry, "test").perform(StageContext("prepare", str(tmp_path)))
    counts = {name: open_set(str(tmp_path / name)).counts for name in ("train", "val", "talk")}
    assert [counts[name].rows for name in counts] == [3, 2, 4]
    assert counts["talk"].conversations == 4 and not counts["talk"].objects
    assert {category.name for category in open_set(str(tmp_path / "train")).categories} >= {"circle", "cross"}
    with pytest.raises(UserError, match=r"shared_colour 2\.0"):
        build_stage("prepare", {**entry, "pictures": {"shared_colour": 2.0}}, "test")
