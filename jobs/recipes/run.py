"""Running a recipe: its stages in order, each once, each in a folder of its own with a done marker.

A rerun skips what is done and re-enters what is not. A stage that was done (or begun) under other options, or on top of
a stage that has changed, is never replaced silently: the run is refused with the list of changes, and ``redo`` says
that the old results may go.
"""

import json
import logging
import platform
import posixpath
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jobs.common.config_tree import differences
from jobs.common.mlflow_run import check_server, tracking_uri
from jobs.common.ray_session import ray_session
from jobs.recipes.load import Recipe, load_recipe
from jobs.recipes.records import Observer, RecipeResult, StageRecord
from jobs.recipes.stage import BUILT_IN, Stage, StageContext
from jobs.recipes.stages import EvaluateStage
from jobs.recipes.tracking import RecipeTracker
from padt.errors import UserError, look_up
from pipelines.io.storage import Folder

logger = logging.getLogger(__name__)

DONE = "done.json"
STARTED = "started.json"


def run_recipe(
    file: str,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    redo: Sequence[str] = (),
    first: str | None = None,
    only: str | None = None,
    observer: Observer | None = None,
) -> RecipeResult:
    """Run the stages of a recipe that are not done yet, and write ``summary.json``.

    Args:
        file: YAML file, or the name of a packaged recipe.
        overrides: ``stage.key.path=value`` changes.
        output: run folder in place of the recipe's own.
        redo: stages whose results are thrown away and made again, with everything that builds on them.
        first: leave out all stages before this one, done or not.
        only: leave out all stages but this one.
        observer: is told how it goes.

    Raises:
        UserError: see ``load_recipe``; a stage was done under other options and ``redo`` does not name it; or a stage
            that is left out is not done, and another builds on it.
    """
    recipe = load_recipe(file, overrides, output)
    observer = observer or Observer()
    folders = stage_folders(recipe)
    chosen = chosen_stages(recipe, first, only)
    _clear(recipe, redo, folders)
    for name in chosen:
        refuse_other_options(recipe, name, folders[name])
    check_left_out(recipe, chosen, folders)

    parameters = {name: recipe.stages[name].resolved(folders).options() for name in recipe.stages}
    tracker = RecipeTracker(recipe.name, recipe.experiment, recipe.output, parameters)
    records: list[StageRecord] = []
    status = "FAILED"
    pending = [name for name in chosen if done_marker(recipe, name, folders[name]) is None]
    if pending:
        # Before the cluster: MLflow itself would try for minutes, and then fail with a traceback.
        check_server(tracking_uri())
    try:
        # One Ray for all stages: starting it takes seconds each time.
        with ray_session() if any(recipe.stages[name].uses_ray() for name in pending) else nullcontext():
            for number, name in enumerate(recipe.stages, start=1):
                marker = done_marker(recipe, name, folders[name])
                if marker is None and name not in chosen:
                    continue
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


def stage_folders(recipe: Recipe) -> dict[str, str]:
    """Folders by what stands for them in options: of the built-in things, and of the recipe's stages."""
    folders = {name: str(find()) for name, find in BUILT_IN.items()}
    return folders | {name: posixpath.join(recipe.output, name) for name in recipe.stages}


def chosen_stages(recipe: Recipe, first: str | None, only: str | None) -> list[str]:
    """The stages that a run is about.

    Raises:
        UserError: there is no such stage, or both are given.
    """
    if first is not None and only is not None:
        raise UserError("--from and --only are both given: --only names the one stage to run, --from the first.")
    names = list(recipe.stages)
    for option, name in (("--from", first), ("--only", only)):
        if name is not None:
            look_up(f"{option}: stage", name, recipe.stages)
    if only is not None:
        return [only]
    return names[names.index(first) :] if first is not None else names


def check_left_out(recipe: Recipe, chosen: Sequence[str], folders: Mapping[str, str]) -> None:
    """Make sure that what is left out, and built on, is there.

    Raises:
        UserError: names a stage that is not done.
    """
    for name in chosen:
        for used in sorted(recipe.uses[name] & set(recipe.stages) - set(chosen)):
            if read_json(folders[used], DONE) is None:
                raise UserError(
                    f"Stage '{name}' builds on '{used}', which is not done in {folders[used]}: run that first "
                    f"(--from {used}), or point at what you have in its place."
                )


def done_marker(recipe: Recipe, name: str, folder: str) -> dict[str, Any] | None:
    """The marker of a stage that is done; None also where it has to look whether other places hold the same."""
    marker = read_json(folder, DONE)
    places = recipe.stages[name].places()
    return None if marker is not None and marker.get("places", places) != places else marker


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
    earlier = read_json(folder, DONE)
    write_json(folder, STARTED, {"key": recipe.keys[name], "options": stage.options()})
    started = time.perf_counter()
    evaluations = [each.resolved(folders) for each in recipe.stages.values() if isinstance(each, EvaluateStage)]
    eval_sets = tuple(dict.fromkeys(url for each in evaluations for url in each.sets("").values()))
    context = StageContext(name, folder, tracker.open(), recipe.experiment, eval_sets)
    result = _performed(stage.resolved(folders), context, earlier)
    marker = {
        "stage": name,
        "kind": stage.kind,
        "key": recipe.keys[name],
        "options": stage.options(),
        "places": stage.places(),
        "seconds": round(time.perf_counter() - started, 1),
        "finished_at": _now(),
        "result": result,
    }
    if stage.kind == "evaluate":
        tracker.evaluated(name, folder, result["metrics"])
    elif stage.kind != "train":
        tracker.performed(name, stage.kind, folder, result)
    write_json(folder, DONE, marker)
    return marker


def _performed(stage: Stage, context: StageContext, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return stage.perform(context)
    except UserError as error:
        if earlier is None:
            raise
        raise UserError(
            f"Stage '{context.name}' was done with things at other places, and these do not hold the same: {error} "
            f"To make it again (and what builds on it), give --redo {context.name}."
        ) from error


def _clear(recipe: Recipe, redo: Sequence[str], folders: Mapping[str, str]) -> None:
    for name in redo:
        look_up("--redo: stage", name, recipe.stages)
    for name in recipe.dependents(redo):
        folder = Folder(folders[name])
        if folder.exists():
            logger.info("Redo: %s is removed", folder.url)
            folder.remove()


def refuse_other_options(recipe: Recipe, name: str, folder: str) -> None:
    """Refuse to run a stage that was done or begun otherwise.

    Raises:
        UserError: names what has changed, and the ways out.
    """
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
