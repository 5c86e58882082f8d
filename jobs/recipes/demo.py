"""`padt demo`: the toy recipe, then the registered model at work: loaded by its alias, drawn, served and asked once."""

import base64
import json
import logging
import os
import shutil
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.recipes.records import Observer, RecipeResult, StageRecord
from jobs.recipes.run import DONE, read_json, run_recipe, write_json, write_summary
from padt.errors import UserError
from padt.metrics.table import in_order, is_headline

logger = logging.getLogger(__name__)

RECIPE = "toy"
ALIAS = "models:/padt@champion"
CANDIDATE = "models:/padt@candidate"
PICTURES = 3
_MAX_NEW_TOKENS = 160


@dataclass(frozen=True)
class Asked:
    """A held-out scene and what is asked about it."""

    name: str
    picture: Path
    words: str
    options: dict[str, Any]


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        recipe: the recipe's result; the demo's own steps ``predict`` and ``serve`` are among its stages.
        model: reference under which the model answers.
        pictures: pictures of the answers.
        served: what the served model answered, as JSON.
    """

    recipe: RecipeResult
    model: str
    pictures: tuple[Path, ...]
    served: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Seconds of all stages, also of those that an earlier run did."""
        return sum(record.seconds for record in self.recipe.stages)

    @property
    def worked_s(self) -> float | None:
        """Seconds of what this run did; None where all was done before."""
        worked = [record.seconds for record in self.recipe.stages if not record.skipped]
        return sum(worked) if worked else None

    def shown_scores(self) -> dict[str, dict[str, float]]:
        """The metrics of a short table, by evaluation."""
        return {
            stage: {name: metrics[name] for name in in_order(metrics) if is_headline(name)}
            for stage, metrics in self.recipe.scores.items()
        }


def run_demo(
    output: str = "runs/demo", overrides: Sequence[str] = (), *, fresh: bool = False, observer: Observer | None = None
) -> DemoResult:
    """Run the toy recipe into ``output`` and show what came of it; what is done already is not done again.

    MLflow lives in the run folder, so that a demo never meets another champion, unless ``MLFLOW_TRACKING_URI`` is set.

    Args:
        output: local run folder.
        overrides: ``stage.key=value`` changes of the recipe.
        fresh: remove an earlier demo first.
        observer: is told how it goes.

    Raises:
        UserError: see ``jobs.recipes.run.run_recipe``.
    """
    from jobs.common.ray_session import ray_session

    observer = observer or Observer()
    folder = Path(output).expanduser().resolve()
    if fresh and folder.exists():
        _remove(folder)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    folder.mkdir(parents=True, exist_ok=True)
    # One Ray for everything that is left to do.
    with nullcontext() if (folder / "serve" / DONE).exists() else ray_session():
        recipe = run_recipe(RECIPE, overrides, output=str(folder), observer=observer)
        model = _model_reference(recipe)
        # What the steps below show is this version's: another one is asked again.
        key = f"{model} = {recipe['register'].result['uri']}"
        count = len(recipe.stages) + 2
        scenes = recipe["prepare"].result["sets"]["val"]["url"]

        def predict(place: Path) -> dict[str, Any]:
            return {"pictures": [str(path) for path in _predict(model, held_out_questions(scenes, place))]}

        def serve(place: Path) -> dict[str, Any]:
            return _ask_served(model, held_out_questions(scenes, folder / "predict")[0], place)

        for number, work in ((count - 1, predict), (count, serve)):
            step = _once(folder / work.__name__, key, work, partial(observer.started, work.__name__, number, count))
            recipe.stages.append(step)
            observer.finished(step)
    served = recipe["serve"].result
    result = DemoResult(recipe, model, tuple(map(Path, recipe["predict"].result["pictures"])), served)
    write_summary(
        recipe,
        seconds=round(result.seconds, 1),
        model=model,
        pictures=[str(path) for path in result.pictures],
        served={key: served[key] for key in ("text", "milliseconds")},
    )
    return result


def held_out_questions(data_url: str, folder: Path) -> list[Asked]:
    """Three held-out scenes with a question of each task; the pictures are written into ``folder``."""
    from pipelines.dataset.manifest import open_set
    from pipelines.dataset.read import spread_rows

    manifest = open_set(data_url)
    folder.mkdir(parents=True, exist_ok=True)
    questions = []
    for row, task in zip(spread_rows(data_url, manifest, PICTURES), ("refer", "detect", "caption"), strict=True):
        picture = folder / f"{task}.jpg"
        picture.write_bytes(row["image"]["bytes"])
        if task == "refer":
            sentence = row["references"][0]["text"]
            questions.append(Asked(task, picture, f'find "{sentence}"', {"refer": sentence}))
        elif task == "detect":
            names = list(manifest.class_names)
            questions.append(Asked(task, picture, f"detect {', '.join(names)}", {"detect": names}))
        else:
            questions.append(Asked(task, picture, "describe the picture", {"caption": True}))
    return questions


def _predict(model: str, questions: Sequence[Asked]) -> list[Path]:
    from jobs.inference.predict import make_request, run_predict
    from padt.inference.predict import GenerationSettings

    pictures = []
    settings = GenerationSettings(max_new_tokens=_MAX_NEW_TOKENS)
    for question in questions:
        (answer,) = run_predict(
            model, question.picture, make_request(**question.options), question.picture.parent, settings=settings
        )
        logger.info("%s -> %s", question.words, answer.record["text"])
        if answer.picture_path is not None:
            pictures.append(answer.picture_path)
    return pictures


def _ask_served(model: str, question: Asked, folder: Path) -> dict[str, Any]:
    from jobs.inference.serve import serving

    body = {
        "image": base64.b64encode(question.picture.read_bytes()).decode(),
        "task": "refer",
        "sentence": question.options["refer"],
        "mask": "none",
    }
    with serving(model, port=0, max_new_tokens=_MAX_NEW_TOKENS) as served:
        request = urllib.request.Request(
            f"{served.url}/v1/predict", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answer.json").write_text(json.dumps(answer, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    logger.info("served: %s -> %s", question.words, answer["text"])
    return answer


def _once(folder: Path, key: str, work: Callable[[Path], dict[str, Any]], begin: Callable[[], None]) -> StageRecord:
    """The record of a step of the demo; it is done unless ``folder`` holds a marker with the same key."""
    marker = read_json(str(folder), DONE)
    skipped = marker is not None and marker["key"] == key
    if not skipped:
        begin()
        started = time.perf_counter()
        marker = {"key": key, "result": work(folder), "seconds": round(time.perf_counter() - started, 1)}
        write_json(str(folder), DONE, marker)
    return StageRecord(folder.name, folder.name, str(folder), marker["seconds"], skipped, marker["result"])


def _model_reference(recipe: RecipeResult) -> str:
    registered = recipe["register"].result
    if registered["promoted"]:
        return ALIAS
    for objection in registered["objections"]:
        logger.warning("gate: %s", objection)
    logger.warning("The model did not become champion; the demo goes on with the candidate")
    return CANDIDATE


def _remove(folder: Path) -> None:
    # Only a folder that a demo has made: the option must not become a way to lose other things.
    if any(folder.iterdir()) and not (folder / "recipe.json").exists() and not (folder / "prepare").exists():
        raise UserError(f"{folder} holds something else than a demo: give another --output, or remove it yourself.")
    shutil.rmtree(folder)
