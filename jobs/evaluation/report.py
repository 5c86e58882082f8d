"""What an evaluation leaves behind: answers, scores, COCO results, and a sheet of pictures to look at.

``predictions.jsonl`` holds one record a sample, sorted by id; scores can be computed from it again without the model.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.evaluation.samples import EvalSample, EvalSet, pixel_box
from padt.data.image import open_image
from padt.data.patches import unpack_patches
from padt.data.rle import decode
from padt.data.tasks import GROUNDED_TASKS
from padt.errors import ImageError
from padt.metrics.caption import CaptionAnswer, score_captions
from padt.metrics.detect import score_detect
from padt.metrics.records import FoundObject, Scores
from padt.metrics.refer import score_refer, score_refer_released
from pipelines.io.storage import Folder
from pipelines.loader.sample_source import BadSampleError, RowReader

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.jsonl"
COCO_FILE = "coco_results.json"
PICTURES_FILE = "predictions.png"
REPORT_FILES = (METRICS_FILE, PREDICTIONS_FILE, COCO_FILE, PICTURES_FILE)


def score_records(
    data: EvalSet, records: Sequence[Mapping[str, Any]], masks: bool, released: bool
) -> tuple[Scores, list[dict[str, Any]]]:
    """Score the records of a set.

    Args:
        data: the set.
        records: one a sample.
        masks: masks were asked for.
        released: also score by the released protocols, under names of their own.

    Returns:
        Scores of all tasks together, and COCO's results list (empty without ``detect``).
    """
    answered = [record["prediction"] for record in records if record["prediction"]]
    found = {record["id"]: _objects(record["prediction"]) for record in records if record["prediction"]}
    metrics: dict[str, float] = {}
    counts: dict[str, int] = {
        "errors": sum("error" in record for record in records),
        "answers_truncated": sum(bool(one.get("truncated")) for one in answered),
        "answers_with_warnings": sum(bool(one.get("warnings")) for one in answered),
        "objects_not_finite": sum(
            int(one.get("not_finite", 0)) + len(one["objects"]) - len(_objects(one)) for one in answered
        ),
    }
    results: list[dict[str, Any]] = []
    parts: list[Scores] = []
    if data.of_task("refer"):
        targets = data.refer_targets()
        answers = {target.id: found[target.id] for target in targets if target.id in found}
        parts.append(score_refer(targets, answers, masks))
        if released:
            parts.append(score_refer_released(targets, answers, masks))
    if data.of_task("detect"):
        images = data.detect_targets()
        answers = {image.id: found[image.id] for image in images if image.id in found}
        categories = [(category.id, category.name) for category in data.manifest.categories]
        scores, detections = score_detect(images, answers, categories, masks)
        parts.append(scores)
        results = detections.results
        if released:
            scores, _ = score_detect(images, answers, categories, masks, protocol="released")
            parts.append(Scores(scores.metrics, {f"released_{name}": n for name, n in scores.counts.items()}))
    if data.of_task("caption"):
        written = {
            record["id"]: _caption(record["prediction"])
            for record in records
            if record["task"] == "caption" and record["prediction"]
        }
        parts.append(score_captions(data.caption_targets(), written))
    for part in parts:
        metrics |= part.metrics
        counts |= part.counts
    return Scores(metrics, counts), results


def publish_report(
    url: str,
    data: EvalSet,
    records: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    pictures: int,
) -> None:
    """Write the results into a folder; an earlier evaluation there is replaced, other files are left alone.

    ``metrics.json`` goes away first and comes back last: where it is, the evaluation is whole.

    Args:
        url: folder, any fsspec URL; made if needed.
        data: the evaluated set.
        records: one a sample, sorted by id.
        results: COCO's results list.
        summary: content of ``metrics.json``.
        pictures: samples on the contact sheet.
    """
    folder = Folder(url)
    for name in REPORT_FILES:
        folder.remove(name)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with folder.writing(PREDICTIONS_FILE) as file:
        for line in lines:
            file.write(line.encode())
    if data.of_task("detect"):
        folder.write(COCO_FILE, json.dumps(results).encode())
    sheet = contact_sheet_of(data, records, pictures) if pictures else None
    if sheet is not None:
        encoded = io.BytesIO()
        sheet.save(encoded, "PNG")
        folder.write(PICTURES_FILE, encoded.getvalue())
    folder.write(METRICS_FILE, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())


def contact_sheet_of(data: EvalSet, records: Sequence[Mapping[str, Any]], pictures: int):
    """A picture of samples, evenly spread over each task: truth on the left, prediction on the right.

    Returns:
        A Pillow image, or None where no sample can be drawn.
    """
    from jobs.inference.drawing import found_objects, readable
    from padt.drawing.objects import contact_sheet, draw_objects

    by_id = {record["id"]: record for record in records}
    reader = RowReader(data.index)
    drawn, titles = [], []
    for sample in _spread(data, pictures):
        record, row = by_id[sample.id], data.truth[sample.row]
        try:
            image = open_image(reader.row(sample.row)["image"]["bytes"])
        except (ImageError, BadSampleError):
            continue
        grid = (row["grid_h"], row["grid_w"])
        prediction = record["prediction"] or {"objects": [], "text": ""}
        # The model's own grid, where it resizes otherwise than the set was prepared for.
        own = tuple(prediction.get("grid") or grid)
        title = sample.task if sample.sentence is None else f"{sample.task}: {sample.sentence}"
        drawn.append(draw_objects(image, _true_objects(row, sample), grid=grid, caption=_true_text(row, sample)))
        drawn.append(draw_objects(image, found_objects(prediction), grid=own, caption=readable(prediction["text"])))
        titles += [f"{title} (truth)", "prediction"]
    return contact_sheet(drawn, columns=4, titles=titles) if drawn else None


def _true_objects(row: Mapping[str, Any], sample: EvalSample) -> list[Any]:
    from padt.drawing.objects import DrawnObject

    chosen = range(len(row["objects"]))
    if sample.task == "refer":
        chosen = row["references"][sample.item]["objects"]
    elif sample.task == "caption":
        chosen = row["captions"][0]["objects"]
    drawn = []
    for index in dict.fromkeys(chosen):
        entry = row["objects"][index]
        patches = np.flatnonzero(unpack_patches(entry["patches"], row["grid_h"] * row["grid_w"]))
        drawn.append(
            DrawnObject(
                label=entry["label"],
                score=None,
                box=pixel_box(entry["box"], row),
                mask=decode(entry["rle"]) if entry["rle"] is not None else None,
                patches=tuple(patches.tolist()),
                vrts=(),
            )
        )
    return drawn


def _true_text(row: Mapping[str, Any], sample: EvalSample) -> str | None:
    from jobs.inference.drawing import readable

    return readable(row["captions"][0]["text"]) if sample.task == "caption" else None


def _spread(data: EvalSet, pictures: int) -> list[EvalSample]:
    groups = [group for task in GROUNDED_TASKS if (group := data.of_task(task))]
    chosen: list[EvalSample] = []
    for position, group in enumerate(groups):
        share = pictures // len(groups) + (position < pictures % len(groups))
        places = np.linspace(0, len(group) - 1, min(share, len(group))).round().astype(int)
        chosen += [group[place] for place in dict.fromkeys(places.tolist())]
    return chosen


def _objects(prediction: Mapping[str, Any]) -> list[FoundObject]:
    """Objects of an answer; those with a value that is not finite, which no metric can take, are left out."""
    objects = [FoundObject.from_dict(found) for found in prediction["objects"]]
    return [one for one in objects if all(math.isfinite(value) for value in (one.score, *one.box))]


def _caption(prediction: Mapping[str, Any]) -> CaptionAnswer:
    return CaptionAnswer(
        text=prediction["text"],
        objects=tuple(_objects(prediction)),
        tokens=int(prediction["tokens"]),
        truncated=bool(prediction["truncated"]),
    )
