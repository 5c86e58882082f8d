"""``padt score``: score stored answers again, or those of another system, without a model.

Answers are what ``padt evaluate`` has left (its folder, whole or not, or its ``predictions.parquet``), or a list of
COCO results as detectors write it. What does not fit the data is counted, and left out.
"""

import json
import math
import os
import posixpath
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.evaluation.checks import check_scorers
from jobs.evaluation.evaluate import EvaluationResult, summarise
from jobs.evaluation.report.publish import ReportOptions, publish_report
from jobs.evaluation.samples import EvalSet, open_eval_set
from jobs.evaluation.scoring import read_kinds, read_synonyms, score_records
from jobs.evaluation.store import AnswerStore, read_parquet
from jobs.evaluation.tracking import check_tracking, track
from padt.errors import UserError
from padt.metrics.overlap import compressed, mask_tools
from pipelines.io.reading import open_input, reaching
from pipelines.io.storage import Folder

Record = dict[str, Any]


def run_score(
    predictions: str | os.PathLike,
    data_url: str | os.PathLike,
    out_dir: str | os.PathLike | None = None,
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    masks: bool | None = None,
    synonyms: str | os.PathLike | None = None,
    sentence_kinds: str | os.PathLike | Mapping[str, str] | None = None,
    set_name: str | None = None,
    released: bool = False,
    report: ReportOptions | None = None,
    mlflow: bool = False,
) -> EvaluationResult:
    """Score answers that are there already.

    Args:
        predictions: folder of ``padt evaluate``, its ``predictions.parquet``, or a JSON list of COCO results (boxes,
            masks or both); any fsspec URL.
        data_url: prepared set, any fsspec URL.
        out_dir: folder for scores and pictures; default: the folder of the evaluation, else nothing is written.
        tasks: what to score; default: what was asked, else all that answers and set have in common.
        limit: only the first so many images, in the order of their keys; default: as was asked.
        masks: score masks; None = where set and answers have them.
        synonyms: YAML file of other names of categories that answers use; default: as was asked.
        sentence_kinds: kinds of sentences that are also scored apart, see ``jobs.evaluation.scoring.read_kinds``;
            default: as was asked.
        set_name: middle part of the metrics' names; default: as before, else the manifest's name.
        released: also score by the released scorers' protocols (metrics ``released_*``).
        report: what to leave besides the scores: ``report.html``, a contact sheet, labels that may be missing.
        mlflow: also enter the scores in MLflow, as a run of their own.

    Raises:
        UserError: answers or set cannot be used, nothing of the answers belongs to the set, or a package is missing.
    """
    started = time.monotonic()
    place, plan, records = _stored(str(predictions).rstrip("/"))
    about: dict[str, Any] = dict((plan or {}).get("about", {}))
    if records is None:
        tasks = tasks or ["detect"]
    else:
        there = {record["task"] for record in records}
        tasks = tasks or about.get("tasks") or sorted(there)
    data = open_eval_set(str(data_url), tasks, limit or about.get("limit"))
    read = _of_results(_json(place), data) if records is None else _of_store(records, data)
    kept, counts = read
    if not kept:
        raise UserError(
            f"None of the answers in {place} belong to {data_url} ({counts['answers_unknown']} are about other "
            "samples): give the set that was asked about as --data."
        )
    made = any(
        found["mask"] is not None for record in kept for found in (record["prediction"] or {}).get("objects", ())
    )
    with_masks = made and data.has_masks if masks is None else masks
    check_scorers(data, with_masks)
    (report or ReportOptions()).check(data)
    categories = [(category.id, category.name) for category in data.manifest.categories]
    others = read_synonyms(str(synonyms), categories) if synonyms is not None else about.get("synonyms")
    kinds = read_kinds(about.get("sentence_kinds") if sentence_kinds is None else sentence_kinds)
    if mlflow:
        check_tracking()
    scores = score_records(data, kept, with_masks, released, others, kinds, about.get("unseen_classes"))
    scores.counts.update(counts)
    warnings = []
    if about.get("data_fingerprint") not in (None, data.fingerprint):
        warnings.append(f"The answers are to {about['data']}, and {data_url} is another set, or has changed since.")
    about |= {
        "set": set_name or about.get("set") or data.manifest.name,
        "data": str(data_url),
        "data_fingerprint": data.fingerprint,
        "tasks": sorted({sample.task for sample in data.samples}),
        "sentence_kinds": kinds,
        "synonyms": others,
        "predictions": place,
    }
    summary = summarise(about, scores, warnings) | {"samples": len(data.samples)}
    out = str(out_dir) if out_dir is not None else (place if plan is not None else None)
    publish_report(out, data, kept, scores.results, summary, with_masks, others, report)
    if mlflow:
        track(summary, out)
    return EvaluationResult(
        metrics=summary["metrics"],
        counts=scores.counts,
        warnings=tuple(summary["warnings"]),
        seconds=time.monotonic() - started,
        samples=len(data.samples),
        out_dir=out,
        splits=scores.splits,
        kinds=scores.kinds,
    )


def _stored(place: str) -> tuple[str, dict[str, Any] | None, list[Record] | None]:
    """Place, plan and records of answers; no records for a file of another system."""
    folder, name = posixpath.split(place)
    if name.endswith(".parquet"):
        return place, None, read_parquet(Folder(folder or "."), name)
    if name.endswith((".json", ".json.gz", ".zip")):
        return place, None, None
    store = AnswerStore(place)
    plan = store.plan()
    if plan is None:
        raise UserError(
            f"{place} holds no evaluation: give a folder of `padt evaluate`, its predictions.parquet, or a JSON list "
            "of COCO results."
        )
    return place, plan, store.records()


def _of_store(records: Sequence[Record], data: EvalSet) -> tuple[list[Record], dict[str, int]]:
    """Records of the set's samples, each once, and counts of the others."""
    wanted = {sample.id for sample in data.samples}
    kept: dict[str, Record] = {}
    counts = Counter(answers_unknown=0, answers_double=0)
    for record in records:
        if record["id"] not in wanted:
            counts["answers_unknown"] += 1
        elif record["id"] in kept:
            counts["answers_double"] += 1
        else:
            kept[record["id"]] = record
    return list(kept.values()), {**counts, "answers_missing": len(wanted) - len(kept)}


def _of_results(results: Any, data: EvalSet) -> tuple[list[Record], dict[str, int]]:
    """COCO results as records: one for each image of the set that they speak of.

    Returns:
        Records, and counts: ``answers_unknown`` (results about images or categories that the set does not have),
        ``answers_double`` (results that repeat an earlier one exactly), ``answers_missing`` (images without a result),
        ``objects_not_finite`` (boxes or scores that are no finite numbers).

    Raises:
        UserError: an entry is no COCO result.
    """
    if not isinstance(results, list):
        raise UserError("COCO results are a JSON list of {image_id, category_id, bbox or segmentation, score}.")
    names = {category.id: category.name for category in data.manifest.categories}
    samples = {data.image_numbers[sample.row]: sample for sample in data.of_task("detect")}
    objects: dict[int, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    counts = Counter(answers_unknown=0, answers_double=0, objects_not_finite=0)
    for number, entry in enumerate(results):
        image, category = _whole(entry, "image_id", number), _whole(entry, "category_id", number)
        if image not in samples or category not in names:
            counts["answers_unknown"] += 1
            continue
        written = json.dumps(entry, sort_keys=True)
        if written in seen:
            counts["answers_double"] += 1
            continue
        seen.add(written)
        row = data.truth[samples[image].row]
        found = _object(entry, number, names[category], (row["height"], row["width"]))
        objects.setdefault(image, [])
        if all(math.isfinite(value) for value in (found["score"], *found["box"])):
            objects[image].append(found)
        else:
            counts["objects_not_finite"] += 1
    records = [_record(samples[image], found) for image, found in objects.items()]
    return records, {**counts, "answers_missing": len(samples) - len(records)}


def _record(sample: Any, objects: list[dict[str, Any]]) -> Record:
    prediction = {"text": "", "objects": objects, "truncated": False, "warnings": [], "tokens": 0}
    return {"id": sample.id, "key": sample.key, "task": sample.task, "prediction": prediction}


def _object(entry: Mapping[str, Any], number: int, label: str, size: tuple[int, int]) -> dict[str, Any]:
    mask = _mask(entry["segmentation"], number, size) if entry.get("segmentation") else None
    # A file of masks only: a mask's box is the smallest that holds it.
    box = entry.get("bbox") or (mask_tools().toBbox(compressed(mask)).tolist() if mask is not None else None)
    try:
        x, y, width, height = (float(value) for value in box or ())
        score = float(entry["score"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"COCO result {number} lacks a score, or a bbox [x, y, width, height] or segmentation ({error})."
        ) from error
    return {"label": label, "score": score, "box": (x, y, x + width, y + height), "mask": mask, "complete": True}


def _mask(value: Any, number: int, size: tuple[int, int]) -> dict[str, Any]:
    try:
        if isinstance(value, list):
            tools = mask_tools()
            return dict(tools.merge(tools.frPyObjects(value, *size)))
        code = compressed(value)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"COCO result {number} has no valid segmentation ({error}): give run lengths or polygons."
        ) from error
    if tuple(code["size"]) != size:
        raise UserError(
            f"COCO result {number} has a mask of {code['size']} (height, width), and its image has {list(size)}: masks "
            "are of the upright original image."
        )
    return code


def _whole(entry: Any, name: str, number: int) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    try:
        return int(str(value))
    except (TypeError, ValueError) as error:
        raise UserError(f"COCO result {number} has no whole number as {name}: give the set's own ids.") from error


def _json(url: str) -> Any:
    with open_input(url, "Predictions") as handle, reaching(url, "Predictions"):
        content = handle.read()
    try:
        return json.loads(content)
    except ValueError as error:
        raise UserError(f"Predictions {url} are no JSON ({error}): give a list of COCO results.") from error
