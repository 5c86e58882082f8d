"""COCO AP of resampled images: detections are matched once, and each draw only adds up what was matched.

Matching follows COCO's own loop, so that the figures of all images are those of ``padt.metrics.detect``. In a draw an
image that was drawn twice has its objects and detections twice; both copies of a detection stand side by side in the
ranking, where no interpolated precision lies between them. (COCO would mix those of equal scores within an image.)
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from padt.metrics.detect import MAX_DETECTIONS, TrueImage, TrueObject, category_ids, fold
from padt.metrics.overlap import compressed, mask_tools
from padt.metrics.paired.resampling import Array, Measure
from padt.metrics.records import ObjectLike

THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_SMALL, _LARGE = 32.0**2, 96.0**2
_SIZES = {"": (0.0, 1e10), "_small": (0.0, _SMALL), "_medium": (_SMALL, _LARGE), "_large": (_LARGE, 1e10)}
# Values of one step: 32 MiB.
_CHUNK = 2**22


@dataclass
class _Matches:
    """Detections of one class in one range of sizes.

    Attributes:
        places: the image of each.
        scores: by which they rank.
        right, counted: ``(thresholds, detections)``.
        truths: images of the true objects, once for each object.
    """

    places: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    right: list[NDArray[np.bool_]] = field(default_factory=list)
    counted: list[NDArray[np.bool_]] = field(default_factory=list)
    truths: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Ranked:
    """The same in the order of scores; detections that count nowhere are left out, and true objects are counted."""

    places: NDArray[np.int64]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    truths: Array

    @classmethod
    def of(cls, matches: _Matches, images: int) -> "_Ranked":
        shape = (len(THRESHOLDS), -1)
        counted = np.array(matches.counted, bool).T.reshape(shape)
        right = np.array(matches.right, bool).T.reshape(shape)
        # A stable sort: equal scores stay in the order of images.
        order = np.argsort(-np.array(matches.scores), kind="stable")
        order = order[counted[:, order].any(0)]
        right, counted = right[:, order], counted[:, order]
        truths = np.bincount(np.array(matches.truths, int), minlength=images).astype(np.float64)
        return cls(np.array(matches.places, int)[order], right & counted, ~right & counted, truths)

    def scores(self, weights: Array) -> tuple[Array, Array]:
        """Average precision and recall of each draw at each threshold; NaN where the draw has no such object."""
        total = weights @ self.truths
        precision, recall = (np.zeros((len(weights), len(THRESHOLDS))) for _ in range(2))
        step = max(1, _CHUNK // max(1, self.right.size))
        for start in range(0, len(weights) if len(self.places) else 0, step):
            rows = slice(start, start + step)
            drawn = weights[rows, self.places][:, None]
            found = (drawn * self.right).cumsum(-1)
            wrong = (drawn * self.wrong).cumsum(-1)
            share = found / np.maximum(total[rows, None, None], 1)
            exact = found / (found + wrong + np.spacing(1))
            # The best precision at this recall or beyond.
            exact = np.maximum.accumulate(exact[..., ::-1], axis=-1)[..., ::-1]
            # How many of the 101 recalls each detection is the first to reach.
            reached = np.searchsorted(_RECALLS, share, side="right")
            reached[..., 1:] -= reached[..., :-1].copy()
            precision[rows] = (exact * reached).sum(-1) / len(_RECALLS)
            recall[rows] = share[..., -1]
        none = total == 0
        precision[none] = recall[none] = np.nan
        return precision, recall


def detect_measure(
    images: Sequence[TrueImage],
    answers: Mapping[str, Sequence[ObjectLike]],
    categories: Iterable[tuple[int, str]],
    masks: bool = False,
) -> Measure:
    """``bbox_AP``, ``AP50``, ``AP75``, ``AP_small|medium|large`` and ``AR_100``, or ``segm_*``.

    Args:
        images: every image of the set.
        answers: predicted objects by sample id.
        categories: ``(id, name)`` of the data set.
        masks: compare masks in place of boxes; images of which an object has none count with no draw.

    Raises:
        UserError: category names collide, or pycocotools is missing.
    """
    ids = category_ids(categories)
    matches: dict[str, dict[int, _Matches]] = {size: defaultdict(_Matches) for size in _SIZES}
    # Equal scores rank in the order of the images' numbers.
    for place, image in sorted(enumerate(images), key=lambda pair: pair[1].image_id):
        if masks and not all(true.mask is not None for true in image.objects):
            continue
        by_class: dict[int, tuple[list[TrueObject], list[ObjectLike]]] = defaultdict(lambda: ([], []))
        for true in image.objects:
            by_class[true.category_id][0].append(true)
        for one in answers.get(image.id, ()):
            if fold(one.label) in ids and not (masks and one.mask is None):
                by_class[ids[fold(one.label)]][1].append(one)
        for number, (truth, found) in by_class.items():
            _add(matches, number, place, truth, sorted(found, key=lambda one: -one.score)[:MAX_DETECTIONS], masks)
    ranked = {
        size: [_Ranked.of(own, len(images)) for own in by_class.values() if own.truths]
        for size, by_class in matches.items()
    }
    kind = "segm" if masks else "bbox"

    def scores(weights: Array) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for size, classes in ranked.items():
            if not classes:
                continue
            pairs = [one.scores(weights) for one in classes]
            precision = np.stack([one for one, _ in pairs])
            found[f"{kind}_AP{size}"] = _mean(precision)
            if not size:
                found[f"{kind}_AP50"] = _mean(precision[..., :1])
                found[f"{kind}_AP75"] = _mean(precision[..., 5:6])
                found[f"{kind}_AR_100"] = _mean(np.stack([recall for _, recall in pairs]))
        return found

    return Measure(scores)


def image_f1(
    images: Sequence[TrueImage], answers: Mapping[str, Sequence[ObjectLike]], categories: Iterable[tuple[int, str]]
) -> dict[str, float]:
    """F1 of each image's boxes at IoU 0.5, all classes together; 1 where nothing is to be found and nothing was."""
    ids = category_ids(categories)
    values = {}
    for image in images:
        right = wrong = total = 0
        found: dict[int | None, list[ObjectLike]] = defaultdict(list)
        for one in sorted(answers.get(image.id, ()), key=lambda one: -one.score):
            found[ids.get(fold(one.label))].append(one)
        for number in {true.category_id for true in image.objects} | set(found):
            truth = [true for true in image.objects if true.category_id == number]
            total += sum(not true.iscrowd for true in truth)
            ignored = np.array([true.iscrowd for true in truth], bool)
            if found[number]:
                owners = _matched(_overlaps(truth, found[number], False), ignored, ignored, THRESHOLDS[:1])[0]
                hit = owners >= 0
                outside = hit & ignored[owners] if len(truth) else hit
                right += int((hit & ~outside).sum())
                wrong += int((~hit).sum())
        values[image.id] = 2 * right / (right + wrong + total) if wrong or total else 1.0
    return values


def _add(
    matches: Mapping[str, Mapping[int, _Matches]],
    number: int,
    place: int,
    truth: Sequence[TrueObject],
    found: Sequence[ObjectLike],
    masks: bool,
) -> None:
    overlaps = _overlaps(truth, found, masks)
    crowd = np.array([true.iscrowd for true in truth], bool)
    areas = _areas(found, masks)
    for size, (low, high) in _SIZES.items():
        outside = np.array([true.area < low or true.area > high for true in truth], bool)
        ignored = crowd | outside
        own = matches[size][number]
        own.truths += [place] * int((~ignored).sum())
        if not found:
            continue
        owners = _matched(overlaps, ignored, crowd, THRESHOLDS)
        hit = owners >= 0
        passed = hit & ignored[owners] if len(truth) else hit
        passed |= ~hit & ((areas < low) | (areas > high))
        own.places += [place] * len(found)
        own.scores += [float(one.score) for one in found]
        own.right += list((hit & ~passed).T)
        own.counted += list((~passed).T)


def _overlaps(truth: Sequence[TrueObject], found: Sequence[ObjectLike], masks: bool) -> Array:
    """``(detections, objects)``, by COCO's own arithmetic: with a crowd region, the part of the detection inside."""
    if not truth or not found:
        return np.zeros((len(found), len(truth)))
    crowd = [int(true.iscrowd) for true in truth]
    if masks:
        codes = ([compressed(one.mask) for one in side if one.mask is not None] for side in (found, truth))
        return np.asarray(mask_tools().iou(*codes, crowd))
    return np.asarray(mask_tools().iou(_xywh(found), _xywh(truth), crowd))


def _areas(found: Sequence[ObjectLike], masks: bool) -> Array:
    if masks:
        return np.array([mask_tools().area(compressed(one.mask)) for one in found if one.mask is not None], float)
    return _xywh(found)[:, 2:].prod(1)


def _xywh(objects: Sequence[ObjectLike] | Sequence[TrueObject]) -> Array:
    boxes = np.array([one.box for one in objects], np.float64).reshape(-1, 4)
    return np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def _matched(
    overlaps: Array, ignored: NDArray[np.bool_], crowd: NDArray[np.bool_], thresholds: Array
) -> NDArray[np.int64]:
    """COCO's matching: ``(thresholds, detections)``, the object of each detection, -1 for none.

    A detection takes the free object that it overlaps most, the last of equals; one that is ignored only where no other
    is left. Crowd regions are never used up.
    """
    least = np.minimum(thresholds, 1 - 1e-10)[:, None]
    owners = np.full((len(thresholds), len(overlaps)), -1)
    if not overlaps.shape[1]:
        return owners
    free = np.ones((len(thresholds), overlaps.shape[1]), bool)
    levels = np.arange(len(thresholds))
    for place in np.flatnonzero(overlaps.max(1) >= least.min()):
        near = free & (overlaps[place] >= least)
        for group in (~ignored, ignored):
            values = np.where(near & group, overlaps[place], -1.0)
            best = values.shape[1] - 1 - values[:, ::-1].argmax(1)
            taken = (owners[:, place] < 0) & (values[levels, best] >= 0)
            owners[taken, place] = best[taken]
            free[levels[taken], best[taken]] = crowd[best[taken]]
    return owners


def _mean(values: Array) -> Array:
    """``(classes, draws, thresholds)`` -> ``(draws,)``, over the classes that a draw has objects of."""
    known = np.isfinite(values[..., 0])
    number = known.sum(0)
    total = np.where(known, values.mean(-1), 0.0).sum(0)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)
