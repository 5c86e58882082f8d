"""``padt calibrate``: fit the scores of a model's objects to how right they turn out to be, on a held-out set."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from jobs.common.model_reference import ResolvedModel, find_model
from jobs.evaluation.answerer import ModelAnswerer
from jobs.evaluation.answers import windows
from jobs.evaluation.checks import check_heads, check_scorers
from jobs.evaluation.evaluate import answered_windows
from jobs.evaluation.samples import EvalSet, open_eval_set
from padt.errors import UserError
from padt.inference.calibration import ScoreCalibration, features_of, fit_calibration, quality_of
from padt.inference.predict import GenerationSettings
from padt.metrics.analysis.shares import calibration_error
from padt.metrics.detect import TrueImage, score_detect
from padt.metrics.records import FoundObject
from padt.pretrained.hub import is_hub_id
from pipelines.io.storage import Folder

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class CalibrationResult:
    """What a calibration found and changed.

    Attributes:
        calibration: fitted on all objects of the set.
        before, after: ``calibration_error`` (expected) and ``bbox_AP*`` with the decoder's scores and with calibrated
            ones; each half of the images is scored by a calibration that was fitted on the other half.
        images, objects: what it stands on.
        folder: the calibrated model.
    """

    calibration: ScoreCalibration
    before: dict[str, float]
    after: dict[str, float]
    images: int
    objects: int
    folder: str


@dataclass(frozen=True)
class Answered:
    """Answers to one image: objects, their features, how right they are, and the truth."""

    objects: list[FoundObject]
    features: np.ndarray
    quality: np.ndarray
    truth: TrueImage


class AskOptions(TypedDict, total=False):
    """How a held-out set is asked about.

    Attributes:
        limit: only the first so many images.
        batch_size: images asked about together; 16 by default.
        max_new_tokens: longest answer; 1024 by default.
        workers: Ray actors that answer; 0 = this process, the default.
        load_options: further arguments of ``padt.load_model``.
        answerer: answers in place of the model, as ``jobs.evaluation.evaluate.answer`` takes it.
        progress: show a progress bar; True by default.
    """

    limit: int | None
    batch_size: int
    max_new_tokens: int
    workers: int
    load_options: Mapping[str, Any] | None
    answerer: Any
    progress: bool


def run_calibrate(
    model: str | os.PathLike,
    data_url: str | os.PathLike,
    out: str | os.PathLike | None = None,
    **options: Unpack[AskOptions],
) -> CalibrationResult:
    """Ask a model for every class of a prepared set and write a calibration into its configuration.

    Args:
        model: model folder, or ``models:/padt@champion`` with ``out``.
        data_url: prepared set with categories that the model was not trained on, any fsspec URL.
        out: a new folder for a calibrated copy; None = change the model's own ``config.json``.
        **options: see :class:`AskOptions`.

    Raises:
        UserError: model, set or folder cannot be used, or the model finds too few objects.
    """
    found, data, answers = ask_for_all(model, data_url, out, calibrated=False, **options)
    halves = [answers[0::2], answers[1::2]]
    calibration = _fit(answers)
    before = _measured(data, halves, [None, None])
    after = _measured(data, halves, [_fit(halves[1]), _fit(halves[0])])
    # Thresholds stand for the scores as they were.
    folder = write_config(found, out, {"score_calibration": calibration.to_dict(), "score_thresholds": None})
    count = sum(len(each.objects) for each in answers)
    return CalibrationResult(calibration, before, after, len(answers), count, folder)


def ask_for_all(
    model: str | os.PathLike,
    data_url: str | os.PathLike,
    out: str | os.PathLike | None,
    *,
    calibrated: bool,
    **options: Unpack[AskOptions],
) -> tuple[ResolvedModel, EvalSet, list[Answered]]:
    """Ask a model for every class of a prepared set; see :func:`run_calibrate`.

    Of each answer only what is needed is kept, window by window.

    Args:
        model: model folder.
        data_url: the set.
        out: folder for a copy of the model, or None.
        calibrated: with the scores that the model gives; False = with the decoder's.
        **options: see :class:`AskOptions`.

    Returns:
        The model, the set, and what was answered about each image.
    """
    found = find_model(model)
    check_place(model, found, out)
    data = open_eval_set(str(data_url), ["detect"], options.get("limit"))
    check_scorers(data, masks=False)
    check_heads(found.path)
    settings = GenerationSettings(
        max_new_tokens=options.get("max_new_tokens", 1024), masks=False, calibrated=calibrated
    )
    asked = options.get("answerer") or ModelAnswerer(
        str(found.path),
        data.index.class_names,
        settings,
        dict(options.get("load_options") or {}),
        options.get("batch_size", 16),
    )
    truth = {image.id: image for image in data.detect_targets()}
    names = {category.id: category.name for category in data.manifest.categories}
    answers: dict[str, Answered] = {}
    todo = dict(enumerate(windows(data.samples)))
    for _, part in answered_windows(data, asked, todo, options.get("workers", 0), options.get("progress", True)):
        answers |= {record["id"]: _answered(record, truth[record["id"]], names) for record in part}
    return found, data, [answers[name] for name in truth]


def check_place(model: str | os.PathLike, found: ResolvedModel, out: str | os.PathLike | None) -> None:
    """Make sure that a changed configuration has a place.

    Raises:
        UserError: the model must not change and there is no folder for a copy, or that folder is taken.
    """
    if out is None and (found.version is not None or is_hub_id(model)):
        raise UserError(f"{model} is a published version, which must not change: give a folder for a copy as --out.")
    if out is not None:
        _check_new(Folder(str(out)), found.path)


def _answered(record: Mapping[str, Any], image: TrueImage, names: Mapping[int, str]) -> Answered:
    """What was answered about an image.

    Args:
        record: of its ``detect`` sample.
        image: its truth.
        names: of the categories by id.
    """
    prediction = record["prediction"] or {"objects": []}
    # An object that is not finite ranks nowhere.
    entries = [entry for entry in prediction["objects"] if np.isfinite([entry["score"], *entry["box"]]).all()]
    # Features need what a metric's object has not.
    scored = [_Scored(**{name: entry[name] for name in _Scored.__annotations__}) for entry in entries]
    truth = [(names[true.category_id], true.box) for true in image.objects if not true.iscrowd]
    # Masks are not ranked, and are the largest part of an answer.
    objects = [replace(FoundObject.from_dict(entry), mask=None) for entry in entries]
    return Answered(objects, features_of(scored), quality_of(scored, truth), image)


@dataclass(frozen=True)
class _Scored:
    label: str
    score: float
    confidence: float
    complete: bool
    box: Sequence[float]
    image: int


def _fit(answers: Sequence[Answered]) -> ScoreCalibration:
    return fit_calibration(
        np.concatenate([each.features for each in answers]), np.concatenate([each.quality for each in answers])
    )


def _measured(
    data: EvalSet, halves: Sequence[Sequence[Answered]], calibrations: Sequence[ScoreCalibration | None]
) -> dict[str, float]:
    found: dict[str, list[FoundObject]] = {}
    scores, quality = [], []
    for answers, calibration in zip(halves, calibrations, strict=True):
        for each in answers:
            own = [thing.score for thing in each.objects]
            values = np.array(own) if calibration is None else calibration.scores(each.features)
            scores.append(values)
            quality.append(each.quality)
            pairs = zip(each.objects, values.tolist(), strict=True)
            found[each.truth.id] = [replace(thing, score=value) for thing, value in pairs]
    images = [each.truth for answers in halves for each in answers]
    categories = [(category.id, category.name) for category in data.manifest.categories]
    metrics = score_detect(images, found, categories, masks=False)[0].metrics
    error = calibration_error(np.concatenate(scores), np.concatenate(quality))
    return {"calibration_error": error, **{name: metrics[name] for name in ("bbox_AP", "bbox_AP50", "bbox_AP75")}}


def _check_new(out: Folder, model: Path) -> None:
    """Refuse a folder that holds anything but what an unfinished attempt left."""
    out.check_target()
    left = set(out.names())
    if out.exists() and (not left or CONFIG_FILE in left or left - {path.name for path in model.iterdir()}):
        raise UserError(f"{out.url} exists already: give a new folder as --out.")


def write_config(found: ResolvedModel, out: str | os.PathLike | None, changes: Mapping[str, Any]) -> str:
    """Change the configuration of a copy of the model, or its own; whole or not at all. Returns the model's place."""
    values = json.loads((found.path / CONFIG_FILE).read_text(encoding="utf-8"))
    values |= changes
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    if out is None:
        own = Folder(found.source or str(found.path))
        own.write(CONFIG_FILE, text)
        return own.url

    def fill(folder: Path) -> None:
        shutil.copytree(found.path, folder)
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")

    Folder(str(out)).publish(fill, CONFIG_FILE)
    return str(out)
