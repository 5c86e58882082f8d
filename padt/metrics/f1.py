"""Detection without scores to rank by: F1 over IoU, as Rex-Omni and LocateAnything report it.

At each IoU threshold ``t`` of .5, .55, ..., .95, for each class that the truth has: detections of an image are taken
best score first, and each is matched to the unmatched true object of its class that it overlaps most, if that overlap
reaches ``t``. What matches nothing is wrong, unless a crowd region of the class covers at least ``t`` of it: then it
does not count. All detections count, whatever their score or number.

Precision and recall are taken for each class over the whole set, then averaged over classes (a class without
detections has no precision and stays out of that average), then, for the mean, over thresholds. F1 is the harmonic mean
of the two averages. So do the published scorers; Rex-Omni's also leaves classes of value 0 out of its averages, which
flatters and is not followed here.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from padt.metrics.detect import TrueImage, category_ids, fold
from padt.metrics.overlap import box_iou
from padt.metrics.records import ObjectLike, Scores, check_ids

THRESHOLDS = np.arange(50, 100, 5) / 100


def score_f1(
    images: Sequence[TrueImage], answers: Mapping[str, Sequence[ObjectLike]], categories: Iterable[tuple[int, str]]
) -> Scores:
    """F1 of boxes over a set of images.

    Args:
        images: every image of the set; each is counted once, answered or not.
        answers: predicted objects by sample id; labels that no category bears are left out.
        categories: ``(id, name)`` of the data set.

    Returns:
        ``bbox_F1`` (of means over the thresholds), ``bbox_F1_50`` and ``bbox_F1_95``; nothing where the truth is empty.

    Raises:
        ValueError: sample ids are not unique, or an answer belongs to no image.
        UserError: category names collide.
    """
    check_ids([image.id for image in images], answers)
    ids = category_ids(categories)
    # By class: true positives and detections that count, at each threshold; true objects.
    hits: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(len(THRESHOLDS)))
    counted: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(len(THRESHOLDS)))
    true: dict[int, int] = defaultdict(int)
    for image in images:
        found: dict[int, list[ObjectLike]] = defaultdict(list)
        for one in sorted(answers.get(image.id, ()), key=lambda one: -one.score):
            if fold(one.label) in ids:
                found[ids[fold(one.label)]].append(one)
        for number in {entry.category_id for entry in image.objects} | set(found):
            single = [entry.box for entry in image.objects if entry.category_id == number and not entry.iscrowd]
            crowds = [entry.box for entry in image.objects if entry.category_id == number and entry.iscrowd]
            boxes = [one.box for one in found[number]]
            right, ignored = _matched(np.asarray(boxes, np.float64).reshape(-1, 4), single, crowds)
            hits[number] += right.sum(1)
            counted[number] += (~ignored).sum(1)
            true[number] += len(single)
    classes = [number for number, count in true.items() if count]
    if not classes:
        return Scores({})
    recall = np.mean([hits[number] / true[number] for number in classes], 0)
    shares = np.array([_share(hits[number], counted[number]) for number in classes])
    defined = ~np.isnan(shares)
    precision = np.where(defined, shares, 0).sum(0) / np.maximum(defined.sum(0), 1)
    return Scores(
        {
            "bbox_F1": _f1(float(precision.mean()), float(recall.mean())),
            "bbox_F1_50": _f1(float(precision[0]), float(recall[0])),
            "bbox_F1_95": _f1(float(precision[-1]), float(recall[-1])),
        }
    )


def _matched(boxes: np.ndarray, single: Sequence, crowds: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Whether each box, best first, is right, and whether it does not count; both ``(thresholds, boxes)``."""
    right = np.zeros((len(THRESHOLDS), len(boxes)), bool)
    overlap = box_iou(boxes.tolist(), single)
    for row, threshold in enumerate(THRESHOLDS):
        free = overlap.copy()
        for place in range(len(boxes)):
            if free.shape[1] and free[place].max() >= threshold:
                right[row, place] = True
                free[:, free[place].argmax()] = -1.0
    covered = np.zeros(len(boxes))
    for crowd in crowds:
        covered = np.maximum(covered, _inside(boxes, crowd))
    return right, ~right & (covered[None] >= THRESHOLDS[:, None])


def _inside(boxes: np.ndarray, crowd: Sequence[float]) -> np.ndarray:
    """Share of each box's area that lies in a region."""
    region = np.asarray(crowd, np.float64)
    sides = np.minimum(boxes[:, 2:], region[2:]) - np.maximum(boxes[:, :2], region[:2])
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1)
    return np.divide(sides.clip(min=0).prod(1), areas, out=np.zeros(len(boxes)), where=areas > 0)


def _share(hits: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return np.divide(hits, counted, out=np.full(len(hits), np.nan), where=counted > 0)


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
