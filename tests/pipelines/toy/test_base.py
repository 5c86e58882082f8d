"""The shipped base model belongs to the toy set as it is now: a changed template must not leave it behind."""

import json
from pathlib import Path

import pytest

import pipelines.toy
from jobs.training.toy_base import BaseRecipe, Conversations, toy_processor
from pipelines.toy.model_config import toy_config
from pipelines.toy.tokenizer import build_tokenizer

BASE = Path(pipelines.toy.__file__).parent / "base"


def test_it_is_small_enough_to_ship():
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 8 * 2**20


def test_its_tokenizer_is_the_one_that_the_texts_give_today():
    shipped = json.loads((BASE / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    built = json.loads(build_tokenizer().backend_tokenizer.to_str())["model"]
    assert (shipped["vocab"], shipped["merges"]) == (built["vocab"], built["merges"])


def test_its_sizes_are_those_of_the_toy_configuration():
    shipped = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    wanted = toy_config().to_dict()
    for part in ("text_config", "vision_config"):
        for name in ("hidden_size", "intermediate_size", "vocab_size", "depth", "num_hidden_layers"):
            assert shipped[part].get(name) == wanted[part].get(name), (part, name)


def test_its_lessons_can_be_given_again():
    pytest.importorskip("torch")
    recipe = BaseRecipe(images=2)
    first, again = (next(iter(Conversations(toy_processor(576), recipe, 0))) for _ in range(2))
    assert first.input_ids.equal(again.input_ids) and first.pixels.equal(again.pixels)
    assert len(first.objects.counts) > 0
