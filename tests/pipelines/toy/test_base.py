"""The shipped base model belongs to the toy set as it is now: a changed template must not leave it behind."""

import json
from pathlib import Path

import pytest

import pipelines.toy
from jobs.training.toy_base import BaseRecipe, Lessons, PatchHead, Phase, toy_model, toy_processor, train
from pipelines.toy.lessons import PATCH_ATTRIBUTES, patch_labels
from pipelines.toy.model_config import toy_config
from pipelines.toy.scenes import COLOURS, KINDS, SIZES, SceneOptions, draw_scene, scene_rng

BASE = Path(pipelines.toy.__file__).parent / "base"


@pytest.fixture(scope="module")
def processor():
    return toy_processor(576)


def test_it_is_small_enough_to_ship():
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 8 * 2**20


def test_its_tokenizer_is_the_one_that_the_texts_give_today(processor):
    shipped = json.loads((BASE / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    built = json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]
    assert (shipped["vocab"], shipped["merges"]) == (built["vocab"], built["merges"])


def test_its_sizes_are_those_of_the_toy_configuration(processor):
    shipped = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    wanted = toy_config(processor.tokenizer).to_dict()
    for part in ("text_config", "vision_config"):
        for name in ("hidden_size", "intermediate_size", "vocab_size", "depth", "num_hidden_layers"):
            assert shipped[part].get(name) == wanted[part].get(name), (part, name)


def test_its_lessons_can_be_given_again(processor):
    recipe = BaseRecipe(images=2)
    for number, phase in enumerate(recipe.phases):
        (first, seen), (again, same) = (next(iter(Lessons(processor, recipe, number))) for _ in range(2))
        assert first.input_ids.equal(again.input_ids) and first.pixels.equal(again.pixels)
        assert seen.attributes.equal(same.attributes) and seen.boxes.equal(same.boxes)
        assert len(seen.attributes) == sum(first.patch_counts)
        assert (len(first.objects.counts) > 0) == phase.talks


def test_the_tower_learns_alone_and_then_the_whole_model(processor):
    recipe = BaseRecipe(images=2, phases=(Phase(steps=2), Phase(steps=2, patches=0.1, pointing=1, talking=1)))
    model = toy_model(recipe.seed)
    head = PatchHead(model.config.text_config.hidden_size)
    for number, phase in enumerate(recipe.phases):
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        train(model, head, processor, recipe, number)
        changed = {name for name, weight in model.state_dict().items() if not weight.equal(before[name])}
        assert any(".visual." in name for name in changed)
        assert all(".visual." in name for name in changed) != phase.talks
    assert not model.model.visual._forward_hooks


def test_patches_are_labelled_with_the_shape_that_covers_most_of_them():
    scene = draw_scene(scene_rng(5, 0, 3), SceneOptions(sizes=((112, 140),), min_shapes=3))
    labels = patch_labels(scene)
    assert labels.attributes.shape == (20, 3) and labels.boxes.shape == (20, 4)
    for patch, (words, box) in enumerate(zip(labels.attributes, labels.boxes, strict=True)):
        top, left = 28 * (patch // 5), 28 * (patch % 5)
        areas = [int(shape.mask[top : top + 28, left : left + 28].sum()) for shape in scene.shapes]
        if max(areas) < 28:
            assert words.tolist() == [len(KINDS), len(COLOURS), len(SIZES)] and not box.any()
            continue
        named = [tuple(names)[word] for names, word in zip(PATCH_ATTRIBUTES.values(), words, strict=True)]
        shape = scene.shapes[areas.index(max(areas))]
        assert named == [shape.kind, shape.colour, shape.size]
        assert box * (140, 112, 140, 112) == pytest.approx(shape.box, abs=1e-3)
