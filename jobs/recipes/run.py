"""Recipes: stages that are run in order, each once, each in a folder of its own with a done marker.

A recipe is a YAML file::

    name: toy
    output: runs/toy
    stages:
      prepare:  {do: prepare-toy, scenes: 4000}
      finetune: {do: train, config: toy_finetune, data: {sets: [{url: "${prepare}/train"}]}}

``${prepare}`` is the folder of an earlier stage. A rerun skips what is done and re-enters what is not. A stage that was
done (or begun) under other options, or on top of a stage that has changed, is never replaced silently: the run is
refused with the list of changes, and ``redo`` says that the old results may go.
"""

import hashlib
import json
import logging
import platform
import posixpath
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jobs.common.config_tree import differences, read_yaml
from jobs.common.ray_session import ray_session
from jobs.recipes.records import Observer, RecipeResult, StageRecord
from jobs.recipes.stages import BUILT_IN, EvaluateStage, Stage, StageContext, build_stage, built_in_digest, references
from jobs.recipes.tracking import RecipeTracker
from padt.errors import UserError, look_up
from pipelines.io.storage import Folder

logger = logging.getLogger(__name__)

RECIPE_KEYS = ("name", "output", "experiment", "stages")
DONE = "done.json"
STARTED = "started.json"


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. ``keys[stage]`` hashes the stage's options together with those of all stages it builds on."""

    name: str
    output: str
    experiment: str
    stages: dict[str, Stage]
    uses: dict[str, set[str]]
    keys: dict[str, str]

    def dependents(self, names: Sequence[str]) -> set[str]:
        """The given stages and every stage that builds on one of them."""
        found = set(names)
        for stage, used in self.uses.items():
            if used & found:
                found.add(stage)
        return found


def load_recipe(file: str, overrides: Sequence[str] = (), output: str | None = None) -> Recipe:
    """Read and check a recipe: a YAML file or the name of one in ``jobs/recipes``.

    Args:
        file: path or packaged name.
        overrides: ``stage.key.path=value`` changes, for example ``finetune.optimizer.lr=1e-3``.
        output: run folder in place of the recipe's own (any fsspec URL).

    Raises:
        UserError: file, stage, kind, option or reference that is missing, unknown or wrong.
    """
    tree = read_yaml(recipe_path(file))
    unknown = [key for key in tree if key not in RECIPE_KEYS]
    if unknown:
        raise UserError(f"Unknown key {unknown[0]} in {file}: a recipe has {', '.join(RECIPE_KEYS)}.")
    entries = tree.get("stages")
    if not isinstance(entries, Mapping) or not entries:
        raise UserError(f"{file} has no stages: name at least one, as in 'stages: {{prepare: {{do: prepare-toy}}}}'.")
    by_stage = _split_overrides(overrides, list(entries))
    stages = {name: build_stage(name, entry, file, by_stage.get(name, ())) for name, entry in entries.items()}
    uses = {name: references(stage.options()) - {name} for name, stage in stages.items()}
    _check_references(file, uses)
    folder = output or tree.get("output") or f"runs/{tree.get('name', Path(file).stem)}"
    return Recipe(
        name=str(tree.get("name", Path(file).stem)),
        output=folder.rstrip("/") if "://" in folder else str(Path(folder).expanduser().resolve()),
        experiment=str(tree.get("experiment", "padt")),
        stages=stages,
        uses=uses,
        keys=_keys(stages, uses),
    )


def run_recipe(
    file: str,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    redo: Sequence[str] = (),
    observer: Observer | None = None,
) -> RecipeResult:
    """Run the stages of a recipe that are not done yet, and write ``summary.json``.

    Args:
        file: YAML file, or the name of a packaged recipe.
        overrides: ``stage.key.path=value`` changes.
        output: run folder in place of the recipe's own.
        redo: stages whose results are thrown away and made again, with everything that builds on them.
        observer: is told how it goes.

    Raises:
        UserError: see ``load_recipe``; or a stage was done under other options and ``redo`` does not name it.
    """
    recipe = load_recipe(file, overrides, output)
    observer = observer or Observer()
    folders = {name: str(find()) for name, find in BUILT_IN.items()}
    folders |= {name: posixpath.join(recipe.output, name) for name in recipe.stages}
    _clear(recipe, redo, folders)
    for name in recipe.stages:
        _refuse_other_options(recipe, name, folders[name])

    parameters = {name: stage.resolved(folders).options() for name, stage in recipe.stages.items()}
    tracker = RecipeTracker(recipe.name, recipe.experiment, recipe.output, parameters)
    records: list[StageRecord] = []
    status = "FAILED"
    pending = [name for name in recipe.stages if not Folder(folders[name]).exists(DONE)]
    try:
        # One Ray for all stages: starting it takes seconds each time.
        with ray_session() if pending else nullcontext():
            for number, name in enumerate(recipe.stages, start=1):
                marker = read_json(folders[name], DONE)
                skipped = marker is not None
                if marker is None:
                    observer.started(name, number, len(recipe.stages))
                    marker = _perform(recipe, name, folders, tracker)
                kind = recipe.stages[name].kind
                records.append(StageRecord(name, kind, folders[name], marker["seconds"], skipped, marker["result"]))
                observer.finished(records[-1])
        status = "FINISHED"
    finally:
        result = RecipeResult(recipe.name, recipe.output, records, tracker.run_id, tracker.uri)
        tracker.close(status, result.metrics)
    return write_summary(result)


def write_summary(result: RecipeResult, **extra: Any) -> RecipeResult:
    """Write ``summary.json`` into the run folder; ``extra`` adds top-level entries."""
    summary = {
        "recipe": result.name,
        "written_at": _now(),
        "stages": {record.name: {"seconds": record.seconds, "folder": record.folder} for record in result.stages},
        "metrics": result.metrics,
        "scores": result.scores,
        "results": {
            record.name: {key: value for key, value in record.result.items() if key != "metrics"}
            for record in result.stages
        },
        "mlflow": {"tracking_uri": result.tracking_uri, "run_id": result.run_id},
        "versions": versions(),
    } | extra
    write_json(result.output, "summary.json", summary)
    return replace(result, summary_path=posixpath.join(result.output, "summary.json"))


def recipe_path(file: str) -> Path:
    """The YAML file that ``file`` means: a path, or the name of a packaged recipe."""
    path = Path(file)
    packaged = Path(__file__).parent / f"{file.removesuffix('.yaml')}.yaml"
    if not path.exists() and path.parent == Path(".") and packaged.exists():
        return packaged
    if not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in packaged.parent.glob("*.yaml")))
        raise UserError(f"Recipe {file} does not exist: give a YAML file or one of {known}.")
    return path


def read_json(folder: str, name: str) -> Any:
    """A JSON file in a folder of any file system, or None where there is none."""
    text = Folder(folder).read_text(name)
    return None if text is None else json.loads(text)


def write_json(folder: str, name: str, value: Any) -> None:
    """Write a JSON file; it appears under its name only when complete."""
    Folder(folder).write(name, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def versions() -> dict[str, str]:
    """Versions of what shapes results, for summaries."""
    found = {"python": platform.python_version()}
    for package in ("padt", "torch", "transformers", "ray", "deepspeed", "mlflow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _perform(recipe: Recipe, name: str, folders: Mapping[str, str], tracker: RecipeTracker) -> dict[str, Any]:
    stage, folder = recipe.stages[name], folders[name]
    write_json(folder, STARTED, {"key": recipe.keys[name], "options": stage.options()})
    started = time.perf_counter()
    evaluations = [each.resolved(folders) for each in recipe.stages.values() if isinstance(each, EvaluateStage)]
    eval_sets = tuple(dict.fromkeys(str(each.options()["data"]) for each in evaluations))
    context = StageContext(name, folder, tracker.open(), recipe.experiment, eval_sets)
    result = stage.resolved(folders).perform(context)
    marker = {
        "stage": name,
        "kind": stage.kind,
        "key": recipe.keys[name],
        "options": stage.options(),
        "seconds": round(time.perf_counter() - started, 1),
        "finished_at": _now(),
        "result": result,
    }
    if stage.kind == "evaluate":
        tracker.evaluated(name, folder, result["metrics"])
    write_json(folder, DONE, marker)
    return marker


def _clear(recipe: Recipe, redo: Sequence[str], folders: Mapping[str, str]) -> None:
    for name in redo:
        look_up("--redo: stage", name, recipe.stages)
    for name in recipe.dependents(redo):
        folder = Folder(folders[name])
        if folder.exists():
            logger.info("Redo: %s is removed", folder.url)
            folder.remove()


def _refuse_other_options(recipe: Recipe, name: str, folder: str) -> None:
    for file, word in ((DONE, "done"), (STARTED, "begun")):
        marker = read_json(folder, file)
        if marker is None or marker["key"] == recipe.keys[name]:
            continue
        changes = differences(marker["options"], recipe.stages[name].options())
        what = "; ".join(changes[:5]) if changes else "a stage or base model that it builds on has changed"
        raise UserError(
            f"Stage '{name}' was {word} under other options ({what}). "
            f"Keep it by giving another --output, or make it again (and what builds on it) with --redo {name}."
        )


def _split_overrides(overrides: Sequence[str], stages: Sequence[str]) -> dict[str, list[str]]:
    by_stage: dict[str, list[str]] = {}
    for override in overrides:
        stage, dot, rest = override.partition(".")
        if stage not in stages or not dot or "=" not in rest:
            raise UserError(
                f"Override {override!r} is not stage.key=value with one of the stages {', '.join(stages)}: "
                f"write for example {stages[0]}.seed=1."
            )
        by_stage.setdefault(stage, []).append(rest)
    return by_stage


def _check_references(file: str, uses: Mapping[str, set[str]]) -> None:
    earlier: list[str] = []
    for name, used in uses.items():
        wrong = sorted(used - set(earlier) - set(BUILT_IN))
        if wrong:
            known = ", ".join([*earlier, *BUILT_IN])
            raise UserError(f"{file}, stage {name}: ${{{wrong[0]}}} is no earlier stage: use one of {known}.")
        earlier.append(name)


def _keys(stages: Mapping[str, Stage], uses: Mapping[str, set[str]]) -> dict[str, str]:
    keys: dict[str, str] = {}
    for name, stage in stages.items():
        below = [(used, keys[used] if used in keys else built_in_digest(used)) for used in sorted(uses[name])]
        text = json.dumps([stage.kind, stage.digest(), below])
        keys[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return keys


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
