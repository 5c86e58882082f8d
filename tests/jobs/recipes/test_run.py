"""A recipe must never do finished work twice nor throw results away unasked, and must say what is wrong beforehand."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from jobs.common.mlflow_run import client
from jobs.recipes import run as recipe_module
from jobs.recipes import stages as stages_module
from jobs.recipes.load import load_recipe
from jobs.recipes.records import Observer
from jobs.recipes.run import run_recipe
from jobs.recipes.stages import Stage, StageContext
from jobs.recipes.tracking import RecipeTracker
from padt.errors import UserError

CALLS: list[str] = []


class WriteStage(Stage):
    """Stands for a stage that makes something out of something."""

    kind: ClassVar[str] = "write"
    text: str
    source: str | None = None
    fail: bool = False

    def perform(self, context: StageContext) -> dict[str, Any]:
        CALLS.append(context.name)
        if self.fail:
            raise UserError("broken on purpose")
        before = Path(self.source, "out.txt").read_text() if self.source else ""
        Path(context.folder, "out.txt").write_text(before + self.text)
        return {"made": before + self.text}


class ScoreStage(Stage):
    """Stands for an evaluation."""

    kind: ClassVar[str] = "evaluate"
    model: str

    def perform(self, context: StageContext) -> dict[str, Any]:
        CALLS.append(context.name)
        Path(context.folder, "metrics.json").write_text('{"metrics": {"eval/toy/gIoU": 0.5}}')
        Path(context.folder, "predictions.png").write_bytes(b"picture")
        return {"metrics": {"eval/toy/gIoU": 0.5}}


class PlaceStage(Stage):
    """Stands for a stage that knows what lies at a place by its content."""

    kind: ClassVar[str] = "place"
    file: str

    def places(self) -> dict[str, Any]:
        return {"file": self.file}

    def perform(self, context: StageContext) -> dict[str, Any]:
        CALLS.append(context.name)
        known, content = Path(context.folder, "out.txt"), Path(self.file).read_text()
        if known.exists() and known.read_text() != content:
            raise UserError("holds other content.")
        known.write_text(content)
        return {}


STAGES = {
    "prepare": {"do": "write", "text": "a"},
    "pretrain": {"do": "write", "text": "b", "source": "${prepare}"},
    "other": {"do": "write", "text": "x"},
    "evaluate": {"do": "evaluate", "model": "${pretrain}"},
}


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    # One database for all tests of this file: making its tables takes seconds.
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str) -> str:
    monkeypatch.setattr(stages_module, "KINDS", {"write": WriteStage, "evaluate": ScoreStage, "place": PlaceStage})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    # These stages need no Ray.
    monkeypatch.setattr(recipe_module, "ray_session", recipe_module.nullcontext)
    CALLS.clear()
    return write_recipe(tmp_path, STAGES)


def write_recipe(folder: Path, stages: dict) -> str:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump({"name": "tiny", "output": str(folder / "run"), "stages": stages}, sort_keys=False))
    return str(file)


def test_a_rerun_skips_what_is_done_and_keeps_one_mlflow_run(recipe_file: str) -> None:
    first = run_recipe(recipe_file)
    second = run_recipe(recipe_file)
    assert CALLS == ["prepare", "pretrain", "other", "evaluate"]
    assert first["pretrain"].result == {"made": "ab"}
    assert [record.skipped for record in second.stages] == [True] * 4
    assert first.run_id and first.run_id == second.run_id
    assert second.metrics == {"eval/toy/gIoU": 0.5}


def test_mlflow_holds_what_was_run_and_what_it_left(recipe_file: str, tmp_path: Path) -> None:
    # A run without parameters, with placeholders for values or without its answers explains nothing afterwards.
    parent = run_recipe(recipe_file).run_id
    found = client().get_run(parent)
    folder = str(tmp_path / "run" / "pretrain")
    assert found.data.params["pretrain.text"] == "b" and found.data.params["evaluate.model"] == folder
    assert not any("${" in value for value in found.data.params.values())
    children = client().search_runs([found.info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    assert sorted(each.info.run_name for each in children) == sorted(STAGES), "each stage has a run"
    assert all(each.info.status == "FINISHED" for each in children)
    assert set(found.data.tags) >= {"mlflow.source.git.commit", "padt.git.clean"}
    (child,) = [each for each in children if each.data.tags["padt.stage"] == "evaluate"]
    assert child.data.params == {"model": folder}
    files = {each.path for each in client().list_artifacts(child.info.run_id)}
    assert files == {"metrics.json", "predictions.png"}


def test_prepared_sets_are_inputs_of_their_stage(recipe_file: str, tmp_path: Path) -> None:
    tracker = RecipeTracker("r", "padt", str(tmp_path / "run"), {"prepare": {"a": 1}})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "report.html").write_text("<p>")
    facts = {"url": str(tmp_path / "set"), "fingerprint": "f" * 64}
    tracker.performed("prepare", "prepare", str(tmp_path), {"sets": {"coco_train": facts}})
    parent = client().get_run(tracker.open())
    (child,) = client().search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    (entry,) = child.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("coco_train", "f" * 36)
    assert json.loads(entry.dataset.source) == {"url": facts["url"]}
    assert [each.path for each in client().list_artifacts(child.info.run_id)] == ["coco_train-report.html"]


def test_other_parameters_are_another_mlflow_run(recipe_file: str) -> None:
    first = run_recipe(recipe_file)
    again = run_recipe(recipe_file, redo=["evaluate"])
    other = run_recipe(recipe_file, ["other.text=y"], redo=["other"])
    assert again.run_id == first.run_id != other.run_id
    assert client().get_run(other.run_id).data.params["other.text"] == "y"


def test_the_summary_holds_seconds_and_metrics(recipe_file: str) -> None:
    result = run_recipe(recipe_file)
    summary = json.loads(Path(result.summary_path).read_text())
    assert set(summary["stages"]) == set(STAGES)
    assert all(stage["seconds"] >= 0 for stage in summary["stages"].values())
    assert summary["metrics"] == {"eval/toy/gIoU": 0.5}
    assert summary["scores"] == {"evaluate": {"eval/toy/gIoU": 0.5}}


def test_a_stage_that_failed_is_entered_again(recipe_file: str, tmp_path: Path) -> None:
    seen: list[str] = []
    observer = Observer(lambda name, number, count: seen.append(f"{number}/{count} {name}"))
    with pytest.raises(UserError, match="on purpose"):
        run_recipe(
            write_recipe(tmp_path, STAGES | {"pretrain": STAGES["pretrain"] | {"fail": True}}), observer=observer
        )
    assert seen == ["1/4 prepare", "2/4 pretrain"]
    # The failed attempt is a beginning under other options: it may hold a checkpoint, so it is not replaced unasked.
    with pytest.raises(UserError, match=r"'pretrain' was begun .*fail: True -> False.*--redo pretrain"):
        run_recipe(write_recipe(tmp_path, STAGES))
    CALLS.clear()
    run_recipe(write_recipe(tmp_path, STAGES), redo=["pretrain"])
    assert CALLS == ["pretrain", "other", "evaluate"]


def test_changed_options_are_refused_with_the_change_and_the_fix(recipe_file: str) -> None:
    run_recipe(recipe_file)
    with pytest.raises(UserError, match=r"'prepare' was done under other options \(text: 'a' -> 'c'\).*--redo prepare"):
        run_recipe(recipe_file, ["prepare.text=c"])
    assert Path(load_recipe(recipe_file).output, "prepare", "out.txt").read_text() == "a"


def test_a_change_below_makes_what_builds_on_it_out_of_date(recipe_file: str) -> None:
    run_recipe(recipe_file)
    changed = load_recipe(recipe_file, ["prepare.text=c"]).keys
    before = load_recipe(recipe_file).keys
    assert {name for name in before if before[name] != changed[name]} == {"prepare", "pretrain", "evaluate"}


def test_redo_makes_the_stage_and_its_dependents_again(recipe_file: str) -> None:
    run_recipe(recipe_file)
    CALLS.clear()
    result = run_recipe(recipe_file, ["prepare.text=c"], redo=["prepare"])
    assert CALLS == ["prepare", "pretrain", "evaluate"]
    assert result["pretrain"].result == {"made": "cb"}


def test_from_and_only_leave_stages_out(recipe_file: str) -> None:
    with pytest.raises(UserError, match=r"'pretrain' builds on 'prepare', which is not done in .*--from prepare"):
        run_recipe(recipe_file, first="pretrain")
    with pytest.raises(UserError, match="--only: stage 'prepara' is unknown: did you mean prepare"):
        run_recipe(recipe_file, only="prepara")
    with pytest.raises(UserError, match="both given"):
        run_recipe(recipe_file, only="prepare", first="prepare")
    assert not CALLS
    assert [record.name for record in run_recipe(recipe_file, only="prepare").stages] == ["prepare"]
    run_recipe(recipe_file, first="pretrain")
    assert CALLS == ["prepare", "pretrain", "other", "evaluate"]
    # What is left out may have been done otherwise: only what the run is about must fit.
    run_recipe(recipe_file, ["other.text=y"], only="pretrain")
    assert len(CALLS) == 4


def test_the_same_content_at_another_place_is_the_same_stage(recipe_file: str, tmp_path: Path) -> None:
    # Other mounts on another day must not cost a training, and other content must not pass for the same.
    stages = {"first": {"do": "place", "file": str(tmp_path / "a")}, "second": {"do": "write", "text": "x"}}
    stages["second"]["source"] = "${first}"
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    run_recipe(write_recipe(tmp_path, stages))
    moved = f"first.file={tmp_path / 'b'}"
    result = run_recipe(write_recipe(tmp_path, stages), [moved])
    assert CALLS == ["first", "second", "first"] and result["second"].skipped
    run_recipe(write_recipe(tmp_path, stages), [moved])
    assert len(CALLS) == 3, "the place is remembered"
    with pytest.raises(UserError, match=r"other places, and these do not hold the same: .* give --redo first"):
        run_recipe(write_recipe(tmp_path, stages), [f"first.file={tmp_path / 'c'}"])


def test_a_registered_version_points_at_the_training_that_made_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, Any] = {}

    def register(model: str, **options: Any) -> Any:
        given.update(options)
        return type("Version", (), {"uri": "u", "aliases": (), "promoted": True, "objections": ()})

    monkeypatch.setattr("jobs.registry.register.run_register", register)
    for name in ("x", "y"):
        (tmp_path / "scores" / name).mkdir(parents=True)
        (tmp_path / "scores" / name / "metrics.json").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "run.json").write_text('{"run_id": "of the training"}')
    for model, run_id in (("finetune/model", "of the training"), ("elsewhere/model", "of the recipe")):
        stage = stages_module.RegisterStage(
            model=str(tmp_path / model), evaluation=[str(tmp_path / "scores"), str(tmp_path / "other")]
        )
        stage.perform(StageContext("register", str(tmp_path), parent_run_id="of the recipe"))
        assert given["run_id"] == run_id
    found = [str(Path(each).relative_to(tmp_path)) for each in given["evaluations"]]
    assert found == ["scores/x", "scores/y", "other"]


def test_another_output_starts_afresh(recipe_file: str, tmp_path: Path) -> None:
    run_recipe(recipe_file)
    result = run_recipe(recipe_file, ["prepare.text=c"], output=str(tmp_path / "second"))
    assert result["pretrain"].result == {"made": "cb"}
    assert (tmp_path / "run" / "prepare" / "out.txt").read_text() == "a"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            {"a": {"do": "wrote", "text": "x"}},
            r"stage a: kind of stage \(do\) 'wrote' is unknown: did you mean write\?",
        ),
        ({"a": {"do": "cook"}}, "'cook' is unknown: known are write, evaluate"),
        ({"a": ["write"]}, "kind of stage"),
        ({"a": {"do": "write", "txt": "x"}}, "Unknown key txt .*stage a.* did you mean text"),
        ({"a": {"do": "write", "text": "x", "source": "${b}"}}, r"stage a: \$\{b\} is no earlier stage"),
        ({}, "has no stages"),
    ],
)
def test_mistakes_are_named_before_anything_runs(recipe_file: str, tmp_path: Path, stages: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_recipe(write_recipe(tmp_path, {"first": STAGES["prepare"], **stages} if stages else stages))
    assert not CALLS


@pytest.mark.parametrize("override", ["nope.text=c", "prepare.text", "text=c"])
def test_an_override_must_name_a_stage(recipe_file: str, override: str) -> None:
    with pytest.raises(UserError, match=r"stage\.key=value"):
        run_recipe(recipe_file, [override])


def test_a_tracking_server_that_is_down_is_told_before_anything_starts(
    recipe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"MLflow server http://127\.0\.0\.1:9 does not answer .* MLFLOW_TRACKING_URI"):
        run_recipe(recipe_file)
    assert not CALLS


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(UserError, match=r"Recipe nowhere\.yaml does not exist"):
        run_recipe("nowhere.yaml")


def test_a_task_that_no_evaluation_has_is_refused_before_anything_runs() -> None:
    entry = {"do": "evaluate", "model": "m", "data": "d", "tasks": ["refer", "detcet"]}
    with pytest.raises(UserError, match=r"tiny\.yaml, stage scores(.|\n)*'detcet' is unknown: did you mean detect\?"):
        stages_module.build_stage("scores", entry, "tiny.yaml")


def test_a_threshold_for_no_metric_is_refused_before_anything_runs() -> None:
    entry = {"do": "register", "model": "m", "evaluation": "e", "thresholds": {"eval/toy/giou": 0.5}}
    with pytest.raises(UserError, match=r"tiny\.yaml, stage champion(.|\n)*'eval/toy/giou' is unknown: .* gIoU"):
        stages_module.build_stage("champion", entry, "tiny.yaml")


def test_the_packaged_toy_recipe_holds() -> None:
    """Every option of every stage is checked here, so that `make demo` cannot stumble over one after minutes."""
    recipe = load_recipe("toy")
    kinds = [stage.kind for stage in recipe.stages.values()]
    assert kinds == ["prepare-toy", "evaluate", "train", "evaluate", "train", "evaluate", "register"]
    assert recipe.dependents(["pretrain"]) == {"pretrain", "evaluate_pretrain", "finetune", "evaluate", "register"}
