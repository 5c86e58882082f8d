"""`padt demo`: the toy recipe, then the registered model at work: loaded by its alias, drawn, served and asked once."""

import base64
import json
import logging
import os
import shutil
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.recipes.records import Observer, RecipeResult, StageRecord
from jobs.recipes.run import run_recipe, write_summary
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
    with ray_session():
        recipe = run_recipe(RECIPE, overrides, output=str(folder), observer=observer)
        model = _model_reference(recipe)
        count = len(recipe.stages) + 2
        questions = held_out_questions(recipe["prepare"].result["sets"]["val"]["url"], folder / "predict")

        observer.started("predict", count - 1, count)
        pictures, predicted = _timed("predict", folder / "predict", lambda: _predict(model, questions))
        observer.finished(predicted)

        observer.started("serve", count, count)
        served, answered = _timed("serve", folder / "serve", lambda: _ask_served(model, questions[0], folder / "serve"))
        observer.finished(answered)
    recipe = replace(recipe, stages=[*recipe.stages, predicted, answered])
    result = DemoResult(recipe, model, tuple(pictures), served)
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


def _timed(name: str, folder: Path, work: Callable[[], Any]) -> tuple[Any, StageRecord]:
    started = time.perf_counter()
    result = work()
    return result, StageRecord(name, name, str(folder), round(time.perf_counter() - started, 1), False, {})


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
