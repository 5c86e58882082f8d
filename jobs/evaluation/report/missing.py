"""Labels that the truth may lack, for people to review: as COCO results, and as a folder that FiftyOne opens."""

import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.evaluation.report.analysis import SetAnalysis
from jobs.evaluation.samples import pixel_box
from padt.data.image import open_image
from padt.errors import ImageError, UserError
from padt.metrics.analysis.missing import MissingLabel
from padt.metrics.detect import coco_entry
from padt.metrics.overlap import RLE, compressed
from pipelines.io.storage import Folder
from pipelines.loader.sample_source import BadSampleError, RowReader

logger = logging.getLogger(__name__)

LABELS_FILE = "labels.json"
TRUTH_FILE = "truth.json"
DATA_FOLDER = "data"
_MOST_PICTURES = 500
_ENDINGS = {"JPEG": "jpg", "MPO": "jpg"}


def missing_results(analysis: SetAnalysis) -> list[dict[str, Any]]:
    """The detections that the truth may lack as COCO results, best scores first; pycocotools loads them."""
    rows = {sample.id: sample.row for sample in analysis.data.of_task("detect")}
    return [
        coco_entry(analysis.data.image_numbers[rows[one.image]], one.category_id, analysis.found[one.image][one.place])
        for one in analysis.missing
    ]


def write_review(url: str, analysis: SetAnalysis) -> None:
    """Write a folder in the layout of ``fiftyone.types.COCODetectionDataset``.

    ``data/`` holds the pictures as the set has them, ``labels.json`` the detections that their truth may lack, with
    ``score`` and ``segmentation`` (run lengths), ``truth.json`` what is known of the same pictures. At most 500
    pictures are written, those of the best scores.

    Args:
        url: a new folder, or one that this wrote before; any fsspec URL.
        analysis: of the answers.

    Raises:
        UserError: the folder holds other things, or cannot be written.
    """
    check_review(url)
    rows = {sample.id: sample.row for sample in analysis.data.of_task("detect")}
    by_row: dict[int, list[MissingLabel]] = {}
    for one in analysis.missing:
        by_row.setdefault(rows[one.image], []).append(one)
    if len(by_row) > _MOST_PICTURES:
        logger.warning("%s holds the %d pictures of the best scores, of %d", url, _MOST_PICTURES, len(by_row))
    chosen = dict(list(by_row.items())[:_MOST_PICTURES])
    Folder(url).publish(lambda new: _fill(new, analysis, chosen), LABELS_FILE)


def check_review(url: str) -> None:
    """Make sure that a folder can be written over.

    Raises:
        UserError: it holds other things than ``write_review`` leaves.
    """
    folder = Folder(url)
    folder.check_target()
    others = sorted(set(folder.names()) - {LABELS_FILE, TRUTH_FILE, DATA_FOLDER})
    if others:
        raise UserError(f"{url} holds other files ({', '.join(others[:3])}): give a new folder as --missing-labels.")


def _fill(new: Path, analysis: SetAnalysis, chosen: Mapping[int, Sequence[MissingLabel]]) -> None:
    reader = RowReader(analysis.data.index)
    pictures: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    (new / DATA_FOLDER).mkdir(parents=True)
    for number, listed in chosen.items():
        row = analysis.data.truth[number]
        try:
            content = reader.row(number)["image"]["bytes"]
            open_image(content)
        except (ImageError, BadSampleError) as error:
            logger.warning("The folder of missing labels leaves out %s: %s", row["key"], error)
            continue
        image, size = analysis.data.image_numbers[number], (row["width"], row["height"])
        kind = Image.open(io.BytesIO(content)).format or "JPEG"
        name = f"{image:012d}.{_ENDINGS.get(kind, kind.lower())}"
        (new / DATA_FOLDER / name).write_bytes(content)
        pictures.append({"id": image, "file_name": name, "width": size[0], "height": size[1]})
        for one in listed:
            found = analysis.found[one.image][one.place]
            entry = _annotation(len(labels) + 1, image, one.category_id, found.box, found.mask, size)
            labels.append({**entry, "score": one.score})
        for known in row["objects"]:
            box = pixel_box(known["box"], row)
            entry = _annotation(len(truth) + 1, image, known["category_id"], box, known["rle"], size)
            truth.append({**entry, "iscrowd": int(known["iscrowd"]), "area": float(known["area"])})
    for name, annotations in ((TRUTH_FILE, truth), (LABELS_FILE, labels)):
        (new / name).write_text(json.dumps(_coco(analysis, pictures, annotations)))


def _coco(analysis: SetAnalysis, pictures: Sequence[Any], annotations: Sequence[Any]) -> dict[str, Any]:
    manifest = analysis.data.manifest
    return {
        "info": {"description": f"{manifest.name}: labels that may be missing", "version": manifest.fingerprint},
        "licenses": [],
        "categories": [{"id": each.id, "name": each.name} for each in manifest.categories],
        "images": list(pictures),
        "annotations": list(annotations),
    }


def _annotation(
    number: int, image: int, category: int, box: Sequence[float], mask: RLE | None, size: tuple[int, int]
) -> dict[str, Any]:
    """A COCO annotation inside its picture: FiftyOne cuts masks to their boxes, whose corners must lie in it."""
    x0, x1 = (min(max(float(edge), 0.0), float(size[0])) for edge in (box[0], box[2]))
    y0, y1 = (min(max(float(edge), 0.0), float(size[1])) for edge in (box[1], box[3]))
    width, height = max(0.0, x1 - x0), max(0.0, y1 - y0)
    entry: dict[str, Any] = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [x0, y0, width, height],
        "area": width * height,
        "iscrowd": 0,
    }
    # A box that rounds to nothing would cut an empty mask out.
    if mask is not None and round(x0 + width) > round(x0) and round(y0 + height) > round(y0):
        entry["segmentation"] = _written(mask)
    return entry


def _written(mask: RLE) -> Mapping[str, Any]:
    code = compressed(mask)
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}
