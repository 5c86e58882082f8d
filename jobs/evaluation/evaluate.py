"""``padt evaluate``: measure a model on a prepared set.

REC and RES are counted by sentence, detection and captions by image, each exactly once whatever the number of workers.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.common.model_reference import find_model, fingerprint
from jobs.common.progress_bar import counting
from jobs.evaluation.answers import ModelAnswerer, answer_here, answer_on_ray, collect
from jobs.evaluation.report import publish_report, score_records
from jobs.evaluation.samples import EvalSet, open_eval_set, policy_mismatch
from padt.errors import UserError
from pipelines.io.storage import Folder

if TYPE_CHECKING:
    from padt.inference.requests import GenerationSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        metrics: by name ``eval/<set>/<metric>``.
        counts: sentences, images, captions, errors and the like that the metrics stand on.
        warnings: what a reader of the scores should know.
        seconds: from the first question to the last answer, loading of the model included.
        samples: questions asked.
        out_dir: folder with ``metrics.json``, ``predictions.jsonl`` and the rest; None if nothing was written.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    warnings: tuple[str, ...]
    seconds: float
    samples: int
    out_dir: str | None


def run_evaluate(
    model: str | os.PathLike,
    data_url: str | os.PathLike,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    out_dir: str | os.PathLike | None = None,
    *,
    settings: "GenerationSettings | None" = None,
    max_new_tokens: int | None = None,
    workers: int = 0,
    set_name: str | None = None,
    released: bool = False,
    pictures: int = 12,
    load_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Ask a model every question of a prepared set, and score the answers.

    Args:
        model: model folder, ``models:/padt@champion`` or ``models:/padt/3``.
        data_url: prepared set, any fsspec URL.
        tasks: ``refer``, ``detect``, ``caption``; None = all that the set has truth for.
        limit: only the first so many images, in the order of their keys.
        batch_size: questions asked together.
        out_dir: folder for the results, any fsspec URL (an earlier evaluation there is replaced); None = write nothing.
        settings: how to generate; default: greedy, with masks.
        max_new_tokens: longest answer, in place of the settings' (an untrained model talks up to the limit).
        workers: Ray actors that answer; 0 or 1 = this process, without Ray.
        set_name: middle part of the metrics' names; default: the manifest's name.
        released: also score by the released scorers' protocols (metrics ``released_*``).
        pictures: samples on the contact sheet.
        load_options: further arguments of ``padt.load_model``, such as ``device``.
        progress: show a progress bar (a line now and then where the output is no terminal).

    Raises:
        UserError: model, set, task or output folder cannot be used; the message names which and the fix.
    """
    if batch_size < 1 or workers < 0:
        raise UserError(f"batch_size {batch_size} and workers {workers} cannot be: give at least 1 and 0.")
    if out_dir is not None:
        Folder(str(out_dir)).check_target()
    data = open_eval_set(str(data_url), tasks, limit)
    found = find_model(model)
    answerer, mismatch = _model(str(found.path), data, settings, max_new_tokens, dict(load_options or {}))
    warnings = [mismatch] if mismatch else []
    for line in warnings:
        logger.warning("%s", line)
    started = time.monotonic()
    records = answer(data, answerer, batch_size, workers, progress)
    seconds = time.monotonic() - started
    scores, results = score_records(data, records, answerer.settings.masks, released)
    name = set_name or data.manifest.name
    metrics = {f"eval/{name}/{metric}": value for metric, value in scores.metrics.items()}
    warnings += _remarks(scores.counts)
    summary = {
        "metrics": metrics,
        "counts": scores.counts,
        "set": name,
        "data": str(data_url),
        "data_fingerprint": _data_fingerprint(data),
        "model": str(model),
        "model_version": found.version,
        "model_fingerprint": fingerprint(found.path),
        "tasks": sorted({sample.task for sample in data.samples}),
        "settings": asdict(answerer.settings),
        "batch_size": batch_size,
        "samples": len(records),
        "seconds": round(seconds, 2),
        "warnings": warnings,
    }
    if out_dir is not None:
        publish_report(str(out_dir), data, records, results, summary, pictures)
    return EvaluationResult(
        metrics=metrics,
        counts=scores.counts,
        warnings=tuple(warnings),
        seconds=seconds,
        samples=len(records),
        out_dir=str(out_dir) if out_dir is not None else None,
    )


def answer(data: EvalSet, model: Any, batch_size: int, workers: int, progress: bool) -> list[dict[str, Any]]:
    """All answers, sorted by sample id.

    Args:
        data: the set.
        model: a ``ModelAnswerer``, or anything picklable whose ``load`` gives an ``Answerer``.
        batch_size: questions asked together.
        workers: Ray actors; 0 or 1 = this process.
        progress: show a progress bar.
    """
    if workers > 1:
        answered = answer_on_ray(data.samples, data.index.url, model, batch_size, workers)
    else:
        answered = answer_here(data.samples, data.index, model, batch_size)
    records: list[dict[str, Any]] = []
    with counting(f"evaluate {data.manifest.name}", len(data.samples), "samples", progress) as advance:
        for part in collect(data.samples, answered):
            records += part
            advance(len(part))
    return sorted(records, key=lambda record: record["id"])


def _model(
    path: str,
    data: EvalSet,
    settings: "GenerationSettings | None",
    max_new_tokens: int | None,
    load_options: dict[str, Any],
) -> tuple[ModelAnswerer, str | None]:
    from padt.data.processor import load_processor
    from padt.inference.requests import GenerationSettings

    mismatch = policy_mismatch(load_processor(path).policy, data.manifest)
    chosen = settings or GenerationSettings()
    if max_new_tokens is not None:
        chosen = replace(chosen, max_new_tokens=max_new_tokens)
    return ModelAnswerer(path, data.index.class_names, chosen, load_options), mismatch


def _data_fingerprint(data: EvalSet) -> str:
    """The set's fingerprint; a part of it is other data than the whole."""
    part = "" if len(data.truth) == len(data.index) else f"[:{len(data.truth)}]"
    return data.manifest.fingerprint + part


def _remarks(counts: Mapping[str, int]) -> list[str]:
    remarks = []
    if counts.get("errors"):
        remarks.append(f"{counts['errors']} samples had an unreadable image and count as unanswered.")
    if counts.get("unknown_labels"):
        remarks.append(f"{counts['unknown_labels']} detections bear a label that is no category; they were left out.")
    if counts.get("detections_beyond_100"):
        remarks.append(
            f"{counts['detections_beyond_100']} detections beyond the 100 best of a class in an image do not count."
        )
    if counts.get("images_without_masks"):
        remarks.append(
            f"{counts['images_without_masks']} images have an object without a mask and stay out of the mask AP."
        )
    if counts.get("answers_truncated"):
        remarks.append(f"{counts['answers_truncated']} answers ended at max_new_tokens, unfinished: give more.")
    if counts.get("answers_with_warnings"):
        remarks.append(f"{counts['answers_with_warnings']} answers were malformed in part; their warnings say how.")
    if counts.get("objects_not_finite"):
        remarks.append(
            f"{counts['objects_not_finite']} objects are not finite (inf or NaN) and were left out: use float32."
        )
    return remarks
