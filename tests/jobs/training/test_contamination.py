"""Scores on images that were trained on mislead; whoever starts such a training must be told."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.recipes import run as recipe_module
from jobs.recipes.load import load_recipe
from jobs.recipes.stages import StageContext, TrainStage
from jobs.recipes.tracking import RecipeTracker
from jobs.training.config import load_config
from jobs.training.contamination import overlap_tags, warn_of_overlap
from tests.pipelines.mini_set import scene_row, write_mini_set, write_set


@pytest.fixture
def train_set(tmp_path):
    return write_mini_set(tmp_path / "train", 6)


@pytest.fixture
def leaking_set(tmp_path):
    """Three pictures of the training set under other keys, and three of their own."""
    rows = [scene_row(number, name="held-out") for number in range(3)]
    rows += [scene_row(number, name="held-out", seed=5) for number in range(3, 6)]
    return write_set(tmp_path / "eval", rows, name="held-out")


def test_shared_images_are_shouted_about_and_kept_as_tags(train_set, leaking_set, caplog):
    caplog.set_level(logging.INFO)
    (overlap,) = warn_of_overlap([train_set, train_set], [f"{leaking_set}:train"])
    assert overlap.shared["same_bytes"] == 3 and overlap.certain == 3
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("LEAK") and "shares 3 images with held-out/train" in warning and "--exclude" in warning
    assert "mini/train/0 = held-out/train/0" in warning
    assert overlap_tags([overlap])["padt.leaked_images"] == "3"


def test_clean_sets_and_sets_that_are_not_there_are_no_reason_to_shout(train_set, tmp_path, caplog):
    other = write_mini_set(tmp_path / "other", 4, seed=9, name="other")
    found = warn_of_overlap([train_set], [other, str(tmp_path / "nowhere")])
    assert sum(each.certain for each in found) == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert overlap_tags([]) == {"padt.leaked_images": "0", "padt.overlap": "none"}


def test_what_a_model_is_eval_sets_does_not_change_what_it_is():
    plain, measured = (
        load_config("toy_finetune"),
        load_config("toy_finetune", ["data.eval_sets=[runs/toy/prepare/val]"]),
    )
    assert measured.data.eval_sets == ["runs/toy/prepare/val"] and plain.shaping_options() == measured.shaping_options()


def test_trainings_of_a_recipe_know_what_its_evaluations_measure_on(tmp_path, monkeypatch):
    told: list[tuple[str, ...]] = []

    def perform(stage: TrainStage, context: StageContext) -> dict[str, Any]:
        told.append(context.eval_sets)
        return {}

    monkeypatch.setattr(TrainStage, "perform", perform)
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: leak\nstages:\n"
        "  train: {do: train, config: toy_pretrain, model: '${toy_base}'}\n"
        "  evaluate: {do: evaluate, model: '${train}/model', data: /data/val}\n"
        "  again: {do: evaluate, model: '${train}/model', data: '${train}/val'}\n"
    )
    recipe = load_recipe(str(file), output=str(tmp_path / "run"))
    folders = {"toy_base": "base"} | {name: f"{recipe.output}/{name}" for name in recipe.stages}
    recipe_module._perform(recipe, "train", folders, cast(RecipeTracker, SimpleNamespace(open=lambda: None)))
    assert told == [("/data/val", f"{tmp_path}/run/train/val")]
