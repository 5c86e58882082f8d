"""Detection mistakes and the average precision that each kind costs, after TIDE (Bolya et al., 2020).

Every detection is right, ignored (in a crowd region) or a mistake of one kind; every true object that no detection is
right about, and that no mended mistake would give, is missed. What a kind costs is the AP at IoU 0.5 that would be
gained if its mistakes were mended and all others stayed (``dAP``). Mending means:

- a poor box, poor mask or wrong label becomes right, if its object is not found otherwise; of several the one with the
  best score, and the others go;
- a duplicate, a detection of nothing, and one that is wrong in both label and box go;
- a missed object leaves the truth. A class of which nothing is left to find then counts 1 if it has no wrong detection,
  else 0.

Costs do not add up to what is missing: one mistake may hide another.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from padt.metrics.detect import MAX_DETECTIONS, TrueImage, category_ids, fold
from padt.metrics.overlap import box_iou, compressed, mask_tools
from padt.metrics.records import ObjectLike, check_ids

RIGHT_IOU = 0.5
NEAR_IOU = 0.1

DETECT_MISTAKES = {
    "missed": "an object that no detection points at",
    "malformed": "an object missed by an answer that was cut off, hard to read, or never came",
    "wrong_label": f"IoU of {RIGHT_IOU} or more with an object of another class",
    "poor_box": f"right class, IoU of {NEAR_IOU} to {RIGHT_IOU}",
    "poor_mask": f"right class and box, but a mask IoU below {RIGHT_IOU}",
    "duplicate": "an object that a better score has found already",
    "wrong_label_and_box": f"IoU of {NEAR_IOU} to {RIGHT_IOU} with an object of another class",
    "nothing_there": f"IoU below {NEAR_IOU} with every object",
}
"""Kinds of mistakes and what they are, in the order of tables."""

_LIFTED = ("wrong_label", "poor_box", "poor_mask")
_LEAVING = ("duplicate", "wrong_label_and_box", "nothing_there")


@dataclass(frozen=True)
class GradedDetection:
    """What one detection is worth.

    Attributes:
        image: id of the sample.
        place: among the objects of the answer, in the order of writing.
        category_id: of its label; None for a label that no category bears, which no AP counts.
        score: confidence in (0, 1).
        mistake: a key of ``DETECT_MISTAKES``, or None: it is right, or in a crowd region.
        target: place among the image's true objects of what it found, or would find if it were mended; else None.
        iou: with that object, else the best with any object.
        ignored: it matches a crowd region and does not count.
    """

    image: str
    place: int
    category_id: int | None
    score: float
    mistake: str | None
    target: int | None
    iou: float
    ignored: bool = False

    @property
    def right(self) -> bool:
        """Whether it found an object."""
        return self.mistake is None and not self.ignored


@dataclass(frozen=True)
class DetectAnalysis:
    """Mistakes of a set of answers.

    Attributes:
        ap: average precision at IoU 0.5; None where the truth is empty.
        costs: AP that would be gained, by kind of mistake.
        counts: mistakes by kind.
        detections: all that count, images by number and best scores first.
        missed: image and place of each missed object, with its kind (``missed`` or ``malformed``).
    """

    ap: float | None
    costs: dict[str, float]
    counts: dict[str, int]
    detections: tuple[GradedDetection, ...]
    missed: tuple[tuple[str, int, str], ...]

    @cached_property
    def found(self) -> frozenset[tuple[str, int]]:
        """Image and place of the objects that were found."""
        return frozenset((one.image, one.target) for one in self.detections if one.right and one.target is not None)


def analyse_detect(
    images: Sequence[TrueImage],
    answers: Mapping[str, Sequence[ObjectLike]],
    categories: Iterable[tuple[int, str]],
    malformed: Collection[str] = (),
    masks: bool = False,
) -> DetectAnalysis:
    """Tell what is wrong with the detections of a set.

    Args:
        images: every image of the set.
        answers: predicted objects by sample id; an image without an answer counts as malformed.
        categories: ``(id, name)`` of the data set.
        malformed: ids of answers whose form is at fault.
        masks: judge by masks in place of boxes, as mask AP does: over the images whose every object has a mask, and
            the detections that have one.

    Raises:
        ValueError: sample ids are not unique, or an answer belongs to no image.
        UserError: category names collide, or pycocotools is missing for masks.
    """
    check_ids([image.id for image in images], answers)
    ids = category_ids(categories)
    kept = [image for image in images if not masks or all(true.mask is not None for true in image.objects)]
    detections: list[GradedDetection] = []
    missed: list[tuple[str, int, str]] = []
    totals: Counter[int] = Counter()
    for image in sorted(kept, key=lambda image: image.image_id):
        graded = _grade(image, answers.get(image.id, ()), ids, masks)
        detections += graded
        single = {place: true.category_id for place, true in enumerate(image.objects) if not true.iscrowd}
        totals.update(single.values())
        reached = {one.target for one in graded if one.right or one.mistake in _LIFTED}
        kind = "malformed" if image.id in malformed or image.id not in answers else "missed"
        missed += [(image.id, place, kind) for place in single if place not in reached]
    classes = {image.id: [true.category_id for true in image.objects] for image in kept}
    kinds = [kind for kind in DETECT_MISTAKES if masks or kind != "poor_mask"]
    mistakes = Counter(one.mistake for one in detections) + Counter(kind for _, _, kind in missed)
    ap = _mean_ap(detections, totals)
    return DetectAnalysis(
        ap=ap if totals else None,
        costs={kind: _mended(kind, detections, missed, classes, totals) - ap for kind in kinds} if totals else {},
        counts={kind: mistakes[kind] for kind in kinds},
        detections=tuple(detections),
        missed=tuple(missed),
    )


def _grade(
    image: TrueImage, answer: Sequence[ObjectLike], ids: Mapping[str, int], masks: bool
) -> list[GradedDetection]:
    """Grade the detections of one image, best scores first; equal scores stay in the order of the answer."""
    order = sorted(range(len(answer)), key=lambda place: -answer[place].score)
    category = {place: ids.get(fold(answer[place].label)) for place in order}
    if masks:
        order = [place for place in order if answer[place].mask is not None]
    numbers: Counter[int | None] = Counter()
    counted = []
    for place in order:
        numbers[category[place]] += 1
        # COCO's scorers pass over what is beyond, and so does this.
        if category[place] is None or numbers[category[place]] <= MAX_DETECTIONS:
            counted.append(place)
    boxes = _box_overlaps([answer[place].box for place in counted], image)
    overlaps = _mask_overlaps([answer[place].mask for place in counted], image) if masks else boxes
    owners, ignored = _matched([category[place] for place in counted], overlaps, image)
    graded = []
    for row, place in enumerate(counted):
        if row in ignored:
            mistake, target, iou = None, None, float(overlaps[row, ignored[row]])
        elif row in owners:
            mistake, target, iou = None, owners[row], float(overlaps[row, owners[row]])
        else:
            mistake, target, iou = _mistake(category[place], overlaps[row], boxes[row], image)
        score = float(answer[place].score)
        graded.append(
            GradedDetection(image.id, place, category[place], score, mistake, target, iou, ignored=row in ignored)
        )
    # What would have to be mended is of use only where nothing else found the object.
    used = set(owners.values())
    return [replace(one, target=None) if one.mistake in _LIFTED and one.target in used else one for one in graded]


def _matched(
    categories: Sequence[int | None], overlaps: np.ndarray, image: TrueImage
) -> tuple[dict[int, int], dict[int, int]]:
    """COCO's matching at ``RIGHT_IOU``: true object by row of a detection, crowd region by row of an ignored one."""
    owners: dict[int, int] = {}
    ignored: dict[int, int] = {}
    free = {place for place, true in enumerate(image.objects) if not true.iscrowd}
    for row, number in enumerate(categories):
        same = [place for place, true in enumerate(image.objects) if true.category_id == number]
        # The last of equals, as in COCO's own loop.
        near = [place for place in same if place in free and overlaps[row, place] >= RIGHT_IOU]
        crowds = [place for place in same if image.objects[place].iscrowd and overlaps[row, place] >= RIGHT_IOU]
        if near:
            owners[row] = max(near, key=lambda place: (overlaps[row, place], place))
            free.discard(owners[row])
        elif crowds:
            ignored[row] = max(crowds, key=lambda place: (overlaps[row, place], place))
    return owners, ignored


def _mistake(
    category: int | None, overlaps: np.ndarray, boxes: np.ndarray, image: TrueImage
) -> tuple[str, int | None, float]:
    """Kind of a detection that is not right, the object that mending it would give, and the IoU that it is about."""
    single = [place for place, true in enumerate(image.objects) if not true.iscrowd]
    same = [place for place in single if image.objects[place].category_id == category]
    other = [place for place in single if image.objects[place].category_id != category]
    own, iou = _best(same, overlaps)
    if own is not None and iou < RIGHT_IOU:
        boxed, _ = _best(same, boxes)
        if boxed is not None and boxes[boxed] >= RIGHT_IOU:
            return "poor_mask", boxed, float(overlaps[boxed])
        if iou >= NEAR_IOU:
            return "poor_box", own, iou
    strange, elsewhere = _best(other, overlaps)
    if elsewhere >= RIGHT_IOU:
        return "wrong_label", strange, elsewhere
    if iou >= RIGHT_IOU:
        return "duplicate", own, iou
    if max(iou, elsewhere) < NEAR_IOU:
        return "nothing_there", None, max(iou, elsewhere)
    return "wrong_label_and_box", None, elsewhere


def _best(places: Sequence[int], overlaps: np.ndarray) -> tuple[int | None, float]:
    best = max(places, key=lambda place: overlaps[place], default=None)
    return best, 0.0 if best is None else float(overlaps[best])


def _mended(
    kind: str,
    detections: Sequence[GradedDetection],
    missed: Sequence[tuple[str, int, str]],
    classes: Mapping[str, Sequence[int]],
    totals: Mapping[int, int],
) -> float:
    """Mean AP if the mistakes of one kind were mended."""
    if kind in ("missed", "malformed"):
        gone = Counter(classes[image][place] for image, place, why in missed if why == kind)
        return _mean_ap(detections, {number: totals[number] - gone[number] for number in totals})
    stays = [one for one in detections if one.mistake != kind]
    if kind in _LEAVING:
        return _mean_ap(stays, totals)
    best: dict[tuple[str, int], GradedDetection] = {}
    for one in detections:
        if one.mistake == kind and one.target is not None:
            rival = best.get((one.image, one.target))
            if rival is None or one.score > rival.score:
                best[one.image, one.target] = one
    lifted = {
        (image, one.place): replace(one, category_id=classes[image][target], mistake=None)
        for (image, target), one in best.items()
    }
    # In its old place, for equal scores keep their order.
    changed = [lifted.get((one.image, one.place), one) for one in detections]
    return _mean_ap([one for one in changed if one.mistake != kind], totals)


def _mean_ap(detections: Sequence[GradedDetection], totals: Mapping[int, int]) -> float:
    """Mean over the classes that the truth has, by number of their objects."""
    rows: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for one in detections:
        if one.category_id is not None and not one.ignored:
            rows[one.category_id].append((one.score, one.right))
    return float(np.mean([_ap(rows[number], total) for number, total in totals.items()])) if totals else 0.0


def _ap(rows: Sequence[tuple[float, bool]], total: int) -> float:
    """COCO's 101-point average precision of ``(score, right)`` in the order of images."""
    if not total:
        return 0.0 if rows else 1.0
    order = np.argsort([-score for score, _ in rows], kind="mergesort")
    hits = np.array([right for _, right in rows], bool)[order]
    found = hits.cumsum()
    precision = found / np.arange(1, len(hits) + 1)
    # The best precision at this recall or beyond.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(found / total, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[places].mean())


def _box_overlaps(boxes: Sequence[Sequence[float]], image: TrueImage) -> np.ndarray:
    """``(detections, objects)``: IoU with objects, and the part of the detection that lies in a crowd region."""
    overlaps = box_iou(boxes, [true.box for true in image.objects])
    found = np.asarray(boxes, np.float64).reshape(-1, 4)
    for place, true in enumerate(image.objects):
        if true.iscrowd:
            sides = np.minimum(found[:, 2:], true.box[2:]) - np.maximum(found[:, :2], true.box[:2])
            areas = (found[:, 2:] - found[:, :2]).clip(min=0).prod(1)
            inside = sides.clip(min=0).prod(1)
            overlaps[:, place] = np.divide(inside, areas, out=np.zeros(len(found)), where=areas > 0)
    return overlaps


def _mask_overlaps(masks: Sequence, image: TrueImage) -> np.ndarray:
    truth = [true.mask for true in image.objects if true.mask is not None]
    if not masks or not truth:
        return np.zeros((len(masks), len(truth)))
    codes = ([compressed(mask) for mask in side] for side in (masks, truth))
    return np.asarray(mask_tools().iou(*codes, [int(true.iscrowd) for true in image.objects]))
