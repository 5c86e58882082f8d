"""Recipes as files: all that are shipped hold and say what the paper says, however they are written down."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from jobs.cli.main import main
from jobs.recipes.load import RECIPES, about_recipes, find_recipe, load_recipe, packaged_recipes
from jobs.recipes.schema import recipe_schema
from jobs.recipes.stages import TrainStage
from padt.errors import UserError

NAMES = sorted(packaged_recipes())
OF_THE_PAPER = [name for name in NAMES if name not in ("toy", "toy_ablation", "pro_lora_24gb")]


def training(recipe, stage="finetune"):
    found = recipe.stages[stage]
    assert isinstance(found, TrainStage)
    return found.tree


def write(folder: Path, name: str, **tree: object) -> str:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(folder / f"{name}.yaml")


def test_all_sizes_of_all_recipes_are_there():
    families = ("pretrain_objects365", "rec", "ovd", "ric", "pro", "pro_clean")
    expected = {f"{family}_{size}" for family in families for size in ("3b", "7b")}
    assert set(NAMES) == expected | {"pro_lora_24gb", "toy", "toy_ablation"}
    assert all(about_recipes().values()), "the list says what each is"


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_recipes_of_the_paper_have_its_values(name):
    # A recipe that is named after the paper and trains otherwise makes comparisons worthless.
    recipe = load_recipe(name)
    large = name.endswith("7b")
    tree = training(recipe)
    assert tree.epochs == (6 if large else 4)
    assert tree.batch_size * tree.gradient_accumulation_steps * tree.workers == 128
    optimizer = tree.optimizer
    assert (optimizer.lr, optimizer.schedule, optimizer.weight_decay, optimizer.max_grad_norm) == (2e-5, "linear", 0, 1)
    assert optimizer.warmup_steps == 0 and tree.seed == 42 and tree.checkpoint.every == 100
    assert tree.loss.average == "rank" and tree.freeze == [] and tree.lora is None and tree.precision == "bf16"
    base = "pretrain" if "pretrain" in recipe.stages else "finetune"
    assert training(recipe, base).model == f"Qwen/Qwen2.5-VL-{'7B' if large else '3B'}-Instruct"
    assert {"prepare", "finetune", "evaluate", "register"} <= set(recipe.stages)
    # 16 pictures of 12.8 megapixels fit on no GPU, and sets and model must agree.
    prepared = [each for stage in recipe.stages.values() if stage.kind == "prepare" for each in stage.sets.values()]
    assert {each.max_pixels for each in prepared} == {tree.max_pixels} == {1_003_520}


def test_pro_starts_from_the_base_and_lists_coco_twice():
    tree = training(load_recipe("pro_3b"))
    listed = {each.url.rpartition("/")[2]: (each.repeat, each.tasks) for each in tree.data.sets}
    assert listed == {
        "ric_train": (1, {"caption": 1.0}),
        "coco_train": (2, {"detect": 1.0}),
        "refcoco_train": (1, {"refer": 1.0}),
        "refcocoplus_train": (1, {"refer": 1.0}),
        "refcocog_train": (1, {"refer": 1.0}),
    }


def test_the_clean_recipe_leaves_all_evaluated_pictures_out_of_all_it_trains_on_and_changes_nothing_else():
    clean, leaky = load_recipe("pro_clean_7b"), load_recipe("pro_7b")
    evaluated = {
        url
        for stage in clean.stages.values()
        if stage.kind == "evaluate"
        for url in stage.resolved({}).sets("").values()
    }
    assert len(evaluated) == 10
    for each in clean.stages["prepare"].sets.values():
        assert set(each.exclude) == evaluated
    assert list(clean.stages).index("prepare_evaluation") < list(clean.stages).index("prepare")
    changed = {name for name, stage in clean.stages.items() if stage.options() != leaky.stages[name].options()}
    assert changed == {"prepare"}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_out_is_the_same_recipe(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "whole.yaml").write_text(recipe.to_yaml())
    again = load_recipe(str(tmp_path / "whole.yaml"))
    assert again.keys == recipe.keys and again.output == recipe.output and again.name == recipe.name


def test_the_schema_takes_every_shipped_file_and_refuses_a_mistyped_key():
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    files = sorted(RECIPES.glob("*.yaml"))
    for file in files:
        tree = yaml.safe_load(file.read_text())
        # A stage of a recipe that extends another one may leave out everything.
        assert [error.message for error in check.iter_errors(tree)] == [], file
    tree = yaml.safe_load((RECIPES / "ovd.yaml").read_text())
    tree["stages"]["finetune"]["epoch"] = 4
    assert not check.is_valid(tree)


def test_a_variant_must_be_named_and_a_wrong_one_gets_the_nearest():
    with pytest.raises(UserError, match="several variants: name one of pro_3b, pro_7b"):
        load_recipe("pro")
    with pytest.raises(UserError, match=r"pro_8b does not exist.* Did you mean pro_"):
        load_recipe("pro_8b")
    assert find_recipe("pro_clean_7b").path.name == "pro_clean.yaml"


def test_values_stand_for_parts_of_options_and_keep_their_type(tmp_path):
    toy = {"do": "prepare-toy", "scenes": "${scenes}"}
    file = write(tmp_path, "r", values={"scenes": 8, "part": "a"}, output="runs/${part}-x", stages={"prepare": toy})
    assert load_recipe(file).stages["prepare"].scenes == 8
    changed = load_recipe(file, ["scenes=4", "part=b"])
    assert changed.stages["prepare"].scenes == 4 and changed.output.endswith("runs/b-x")
    with pytest.raises(UserError, match="scene=3' is not stage.key=value .* or value=... with one of scenes, part"):
        load_recipe(file, ["scene=3"])
    with pytest.raises(UserError, match="value scenes is not given: add scenes="):
        load_recipe(file, ["scenes=null"])


def test_a_recipe_of_ones_own_extends_a_shipped_one_and_has_sizes(tmp_path):
    stages = {"finetune": {"optimizer": {"lr": 1e-4}}, "prepare": {"options": {"shard_mb": 64}}}
    write(tmp_path, "mine", extends="ovd", stages=stages)
    tree = training(recipe := load_recipe(str(tmp_path / "mine_7b.yaml")))
    assert (tree.optimizer.lr, tree.epochs, recipe.name) == (1e-4, 6, "mine_7b")
    assert recipe.stages["prepare"].sets["coco_val"].shard_mb == 64
    write(tmp_path, "one", extends="two")
    write(tmp_path, "two", extends="one")
    with pytest.raises(UserError, match="extends"):
        load_recipe(str(tmp_path / "one.yaml"))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"catalogue": "published", "sets": ["coco_trian"]}, "set 'coco_trian' is unknown: did you mean coco_train"),
        ({"catalogue": "publsihed", "sets": ["coco_train"]}, "publsihed does not exist.*published"),
        ({"sets": ["coco_train"]}, "give them by name, or a catalogue"),
        ({"raw": "x", "sets": {"a": {}}}, "name a catalogue"),
        ({"sets": {"a": {"annotatoins": "x"}}}, r"sets\.a\.annotatoins.*did you mean annotations"),
        ({"sets": {"a": {"annotations": "x", "images": "y", "max_pixels": 0}}}, "max_pixels is 0"),
    ],
)
def test_mistakes_in_sets_are_named(stage, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path, "r", stages={"prepare": {"do": "prepare", **stage}}))


def test_the_command_line_lists_prints_and_describes(capsys):
    assert main(["run", "--list"]) == 0
    assert "pro_lora_24gb" in capsys.readouterr().out
    assert main(["run", "ovd_3b", "finetune.seed=7", "raw=/data", "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["stages"]["finetune"]["seed"] == 7
    assert printed["stages"]["prepare"]["sets"]["coco_val"]["images"] == "/data/coco/val2017"
    assert main(["train", "-c", "paper", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["optimizer"]["lr"] == 2e-5
    for verb in ("run", "train"):
        assert main([verb, "--schema"]) == 0
        jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))
    assert main(["run"]) == 2 and "--list" in capsys.readouterr().err
