"""Detection: official COCO average precision on the full ground truth, and the released protocol beside it.

The official numbers take every annotation of the data set: crowd regions are ignored in matching, areas are the
annotated ones, boxes are unrounded, at most 100 detections of a class in an image count. Detections of an image without
ground truth count as false positives, and an image without an answer stays in the set.

The released protocol (PaDT's ``eval_coco.py``) drops ground truth that the model can hardly find: objects without a
foreground patch, classes with more than 50 objects in an image, images with a side over 1288 pixels; and it rounds
boxes. Its AP is higher and not comparable with official COCO AP.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from padt.errors import UserError, install_command
from padt.metrics.overlap import RLE, Box, compressed, released_box
from padt.metrics.records import ObjectLike, Scores, check_ids
from padt.metrics.table import COCO_SUMMARY, RELEASED

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 100
RELEASED_MAX_SIDE = 1288
RELEASED_MAX_PER_CLASS = 50
Protocol = Literal["official", "released"]


@dataclass(frozen=True)
class TrueObject:
    """One annotation.

    Attributes:
        category_id: original category id.
        box: ``xyxy`` in absolute pixels.
        area: annotated area in pixels (of the mask, where there is one).
        iscrowd: a region of many; ignored in matching.
        mask: run-length mask, or None.
        has_patch: the object covers at least one foreground patch (the released protocol drops the others).
    """

    category_id: int
    box: Box
    area: float
    iscrowd: bool = False
    mask: RLE | None = None
    has_patch: bool = True


@dataclass(frozen=True)
class TrueImage:
    """One image of the set with all its annotations. ``image_id`` is the source's number; sides are in pixels."""

    id: str
    image_id: int
    height: int
    width: int
    objects: tuple[TrueObject, ...]


@dataclass
class Detections:
    """COCO results made from answers.

    Attributes:
        results: entries ``{image_id, category_id, bbox (xywh), score, segmentation}``, best first within an image.
        unknown_labels: labels that no category bears, with their number.
        beyond: detections beyond the best ``MAX_DETECTIONS`` of a class in an image, which COCO's scorers pass over.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    unknown_labels: Counter[str] = field(default_factory=Counter)
    beyond: int = 0


def category_ids(categories: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Category id by folded name.

    Raises:
        UserError: two categories have the same name apart from case and outer spaces.
    """
    ids: dict[str, int] = {}
    for number, name in categories:
        folded = fold(name)
        if folded in ids and ids[folded] != number:
            raise UserError(
                f"Categories {ids[folded]} and {number} are both named {name!r}: answers name classes in words, so "
                "give each category its own name."
            )
        ids[folded] = int(number)
    return ids


def fold(label: str) -> str:
    """A class name as it is compared: without case, outer spaces and doubled spaces."""
    return " ".join(label.casefold().split())


def coco_results(
    images: Sequence[TrueImage], answers: Mapping[str, Sequence[ObjectLike]], categories: Iterable[tuple[int, str]]
) -> Detections:
    """Turn answers into COCO's results list: original ids, float ``xywh`` pixels, run-length masks with str counts."""
    ids = category_ids(categories)
    detections = Detections()
    for image in sorted(images, key=lambda image: image.image_id):
        known = []
        for found in answers.get(image.id, ()):
            if fold(found.label) in ids:
                known.append(found)
            else:
                detections.unknown_labels[found.label] += 1
        # A stable sort: equal scores stay in the order of the answer.
        known.sort(key=lambda found: -found.score)
        numbers = Counter(ids[fold(found.label)] for found in known)
        detections.beyond += sum(max(0, number - MAX_DETECTIONS) for number in numbers.values())
        for found in known:
            detections.results.append(coco_entry(image.image_id, ids[fold(found.label)], found))
    return detections


def coco_entry(image_id: int, category_id: int, found: ObjectLike) -> dict[str, Any]:
    """One record of a COCO results file: float ``xywh`` pixels, and run lengths (str counts) where there is a mask."""
    entry: dict[str, Any] = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": _xywh(found.box),
        "score": float(found.score),
    }
    if found.mask is not None:
        code = compressed(found.mask)
        entry["segmentation"] = {"size": code["size"], "counts": code["counts"].decode("ascii")}
    return entry


def score_detect(
    images: Sequence[TrueImage],
    answers: Mapping[str, Sequence[ObjectLike]],
    categories: Sequence[tuple[int, str]],
    masks: bool = True,
    protocol: Protocol = "official",
) -> tuple[Scores, Detections]:
    """Average precision and recall of a set of images.

    Args:
        images: every image of the set; each is counted once, answered or not.
        answers: predicted objects by sample id.
        categories: ``(id, name)`` of the data set.
        masks: score masks too, over the images whose every annotation has one (``images_without_masks`` counts the
            others); False for predictions made without masks.
        protocol: ``official`` COCO, or ``released`` (metric names then begin with ``released_``).

    Returns:
        Scores with ``bbox_*`` and ``segm_*``: ``AP`` (IoU 0.5 to 0.95), ``AP50``, ``AP75``, ``AP_small|medium|large``,
        ``AR_1|10|100``, ``AR_small|medium|large``; and the results list they were computed from.

    Raises:
        ValueError: sample ids or image numbers are not unique, or an answer belongs to no image.
        UserError: faster-coco-eval is not installed, or category names collide.
    """
    check_ids([image.id for image in images], answers)
    if len({image.image_id for image in images}) != len(images):
        raise ValueError("Image numbers must be unique within one evaluation.")
    kept = [filtered for image in images if (filtered := _released(image))] if protocol == "released" else list(images)
    detections = coco_results(kept, answers, categories)
    truth = _ground_truth(kept, categories)
    counts = {
        "images": len(kept),
        "objects": sum(not true.iscrowd for image in kept for true in image.objects),
        "crowd_regions": sum(true.iscrowd for image in kept for true in image.objects),
        "detections": len(detections.results),
        "detections_beyond_100": detections.beyond,
        "unknown_labels": sum(detections.unknown_labels.values()),
    }
    prefix = RELEASED if protocol == "released" else ""
    results = (
        [{**entry, "bbox": [float(round(value)) for value in entry["bbox"]]} for entry in detections.results]
        if prefix
        else detections.results
    )
    metrics = _average_precision(truth, results, "bbox", prefix)
    masked = [image for image in kept if all(true.mask is not None for true in image.objects)]
    if masks and any(image.objects for image in masked):
        counts["images_without_masks"] = len(kept) - len(masked)
        numbers = {image.image_id for image in masked}
        # Official mask results carry no box: COCO would otherwise take a detection's area from it.
        outlined = [{k: v for k, v in entry.items() if k != "bbox"} for entry in results if "segmentation" in entry]
        outlined = [entry for entry in outlined if entry["image_id"] in numbers]
        metrics |= _average_precision(_ground_truth(masked, categories), outlined, "segm", prefix)
    return Scores(metrics, counts), detections


def _ground_truth(images: Sequence[TrueImage], categories: Sequence[tuple[int, str]]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image in images:
        for true in image.objects:
            # Numbered from 1: COCO's matching takes annotation id 0 for "unmatched".
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image.image_id,
                "category_id": int(true.category_id),
                "bbox": _xywh(true.box),
                "area": float(true.area),
                "iscrowd": int(true.iscrowd),
            }
            if true.mask is not None:
                entry["segmentation"] = compressed(true.mask)
            annotations.append(entry)
    return {
        "info": {},
        "images": [{"id": image.image_id, "height": image.height, "width": image.width} for image in images],
        "annotations": annotations,
        "categories": [{"id": int(number), "name": name} for number, name in categories],
    }


def _average_precision(
    truth: dict[str, Any], results: list[dict[str, Any]], kind: str, prefix: str
) -> dict[str, float]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise UserError(f"COCO AP needs faster-coco-eval: install it with `{install_command('eval')}`.") from error
    # Both sides are copied: the evaluator writes its own fields into what it is given.
    copied = {**truth, "annotations": [dict(entry) for entry in truth["annotations"]]}
    ground = COCO(copied, print_function=logger.debug)
    found = ground.loadRes([dict(entry) for entry in results])
    evaluator = COCOeval_faster(ground, found, kind, print_function=logger.debug)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    stats = [float(value) for value in evaluator.stats[: len(COCO_SUMMARY)]]
    # COCO writes -1 where a size class has no ground truth.
    return {f"{prefix}{kind}_{name}": value for name, value in zip(COCO_SUMMARY, stats, strict=True) if value >= 0}


def _released(image: TrueImage) -> TrueImage | None:
    if max(image.height, image.width) > RELEASED_MAX_SIDE:
        return None
    # The released preparation counts a class before it drops what has no patch.
    numbers = Counter(true.category_id for true in image.objects)
    kept = tuple(
        TrueObject(true.category_id, released_box(true.box), true.area, true.iscrowd, true.mask)
        for true in image.objects
        if true.has_patch and numbers[true.category_id] <= RELEASED_MAX_PER_CLASS
    )
    return TrueImage(image.id, image.image_id, image.height, image.width, kept)


def _xywh(box: Box) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
