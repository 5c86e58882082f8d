"""Referring expressions: REC (boxes) and RES (masks), one sentence counted exactly once.

Rules, where an answer holds several objects for one sentence:

- REC takes the object of the highest score (the first of equals); its box is compared unrounded, IoU >= threshold.
- RES takes the union of all masks.
- A sentence with several targets (gRefCOCO) is right for REC when predicted and target boxes pair off completely.
- A sentence without target is right when the answer has no object. It stays out of REC's precision; in RES it counts as
  IoU 1 or 0 in gIoU, and the pixels of a wrong mask enlarge the union of cIoU, as in gRefCOCO's own scorer.
- A missing answer is an answer without objects.

- VLM-R1's rule, for comparison with its tables (``vlm_r1_accuracy``): of an answer to a sentence with one target the
  first object in the order of writing counts; right is an IoU above 0.5, not at it, with an intersection wider and
  higher than one pixel.
- Presence is the question whether a sentence has a target at all; an answer with an object says yes. Its Matthews
  correlation is 0 where one side always says the same.

cIoU = sum of intersections / sum of unions over the set; gIoU = mean IoU over sentences. The released PaDT prints gIoU
under the name cIoU.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from padt.metrics.overlap import RLE, Box, box_iou, mask_overlap, match_greedily, released_box
from padt.metrics.records import ObjectLike, Scores, check_ids
from padt.metrics.table import RELEASED

BOX_THRESHOLDS = (0.5, 0.7, 0.75, 0.9)
MASK_THRESHOLDS = (0.5, 0.7, 0.9)
REFCOCO_SPLITS = tuple(
    f"{source}/{split}"
    for source, splits in (
        ("refcoco", ("val", "testA", "testB")),
        ("refcoco+", ("val", "testA", "testB")),
        ("refcocog", ("val", "test")),
    )
    for split in splits
)
"""The eight splits whose mean papers report."""


@dataclass(frozen=True)
class ReferTarget:
    """One sentence and what it refers to.

    Attributes:
        id: unique name of the sample.
        image: key of the image (the released protocol collects predictions by image and sentence).
        sentence: the referring expression.
        boxes: target boxes, ``xyxy`` in absolute pixels; empty = the sentence refers to nothing.
        masks: one run-length mask per box, or None where the source has boxes only.
    """

    id: str
    image: str
    sentence: str
    boxes: tuple[Box, ...]
    masks: tuple[RLE, ...] | None


@dataclass(frozen=True)
class SentenceGrade:
    """How one answer did.

    Attributes:
        hits: right at each of ``BOX_THRESHOLDS``; empty for a sentence without target.
        box_iou: IoU of the chosen box; None unless there is exactly one target.
        intersection: pixels shared by the predicted and target areas; None where masks are not compared.
        union: pixels in either area; None likewise.
        answered: the answer has at least one object.
        vlm_r1: right by VLM-R1's rule; None unless there is exactly one target.
    """

    hits: tuple[bool, ...]
    box_iou: float | None
    intersection: int | None
    union: int | None
    answered: bool
    vlm_r1: bool | None = None

    @property
    def mask_iou(self) -> float | None:
        """Mask IoU of the sentence; 1 where neither side has a pixel (a sentence without target, rightly refused)."""
        if self.union is None or self.intersection is None:
            return None
        return self.intersection / self.union if self.union else 1.0


def grade_sentence(target: ReferTarget, objects: Sequence[ObjectLike], masks: bool = True) -> SentenceGrade:
    """Grade one answer.

    Args:
        target: the sentence.
        objects: predicted objects; empty when the model found nothing or did not answer.
        masks: compare masks too; False for predictions made without masks.
    """
    hits: tuple[bool, ...] = ()
    iou: float | None = None
    vlm_r1: bool | None = None
    if len(target.boxes) == 1:
        vlm_r1 = bool(objects) and _right_for_vlm_r1(objects[0].box, target.boxes[0])
        iou = float(box_iou([best_object(objects).box], target.boxes)[0, 0]) if objects else 0.0
        hits = tuple(iou >= threshold for threshold in BOX_THRESHOLDS)
    elif target.boxes:
        table = box_iou([found.box for found in objects], target.boxes)
        complete = len(objects) == len(target.boxes)
        hits = tuple(complete and len(match_greedily(table, t)) == len(objects) for t in BOX_THRESHOLDS)
    intersection = union = None
    if masks and target.masks is not None:
        predicted = [found.mask for found in objects if found.mask is not None]
        intersection, union = mask_overlap(predicted, target.masks)
    grade = SentenceGrade(hits, iou, intersection, union, bool(objects), vlm_r1)
    if not target.boxes and objects and union == 0:
        # An object with an empty mask is still a wrong answer to a sentence that refers to nothing.
        return SentenceGrade(hits, iou, 0, 1, answered=True)
    return grade


def _right_for_vlm_r1(box: Box, target: Box) -> bool:
    sides = [min(box[k + 2], target[k + 2]) - max(box[k], target[k]) for k in (0, 1)]
    return min(sides) > 1 and float(box_iou([box], [target])[0, 0]) > 0.5


def best_object(objects: Sequence[ObjectLike]) -> ObjectLike:
    """The object that stands for the answer in REC: highest score, the first of equals."""
    return max(objects, key=lambda found: found.score)


def score_refer(
    targets: Sequence[ReferTarget], answers: Mapping[str, Sequence[ObjectLike]], masks: bool = True
) -> Scores:
    """REC and RES over a set of sentences.

    Args:
        targets: every sentence of the set; each is counted once, answered or not.
        answers: predicted objects by sample id.
        masks: compare masks too; False for predictions made without masks.

    Returns:
        ``precision_at_{0.5,0.7,0.75,0.9}``, ``vlm_r1_accuracy`` and ``box_mIoU`` (REC); ``cIoU``, ``gIoU``,
        ``mask_precision_at_{0.5,0.7,0.9}`` (RES, over sentences with target masks); ``N_acc``, ``T_acc`` and
        ``presence_MCC`` where some sentences have no target.

    Raises:
        ValueError: sample ids are not unique, or an answer belongs to no sentence.
    """
    check_ids([target.id for target in targets], answers)
    return summarise_grades(grade_sentence(target, answers.get(target.id, ()), masks) for target in targets)


def summarise_grades(grades: Iterable[SentenceGrade]) -> Scores:
    """Aggregate graded sentences; see :func:`score_refer`."""
    grades = list(grades)
    aimed = [grade for grade in grades if grade.hits]
    empty = [grade for grade in grades if not grade.hits]
    masked = [grade for grade in grades if grade.union is not None]
    metrics: dict[str, float] = {}
    if aimed:
        for position, threshold in enumerate(BOX_THRESHOLDS):
            metrics[f"precision_at_{threshold}"] = _mean(grade.hits[position] for grade in aimed)
        single = [grade.box_iou for grade in aimed if grade.box_iou is not None]
        if single:
            metrics["vlm_r1_accuracy"] = _mean(grade.vlm_r1 for grade in aimed if grade.vlm_r1 is not None)
            metrics["box_mIoU"] = _mean(single)
    if masked:
        union = sum(grade.union or 0 for grade in masked)
        metrics["cIoU"] = sum(grade.intersection or 0 for grade in masked) / union if union else 1.0
        metrics["gIoU"] = _mean(grade.mask_iou for grade in masked)
        with_target = [grade.mask_iou or 0.0 for grade in masked if grade.hits]
        if with_target:
            for threshold in MASK_THRESHOLDS:
                metrics[f"mask_precision_at_{threshold}"] = _mean(iou >= threshold for iou in with_target)
    if empty:
        metrics["N_acc"] = _mean(not grade.answered for grade in empty)
        if aimed:
            metrics["T_acc"] = _mean(grade.answered for grade in aimed)
            metrics["presence_MCC"] = _matthews(aimed, empty)
    counts = {
        "sentences": len(grades),
        "sentences_without_target": len(empty),
        "sentences_with_masks": len(masked),
        "sentences_unanswered": sum(not grade.answered for grade in aimed),
    }
    return Scores(metrics, counts)


def score_refer_released(
    targets: Sequence[ReferTarget], answers: Mapping[str, Sequence[ObjectLike]], masks: bool = True
) -> Scores:
    """The released scorer's protocol, for comparison with the paper's tables; flattering, so never the headline.

    Boxes become integer ``xywh``; a prediction counts for (image, label) when its label repeats the sentence exactly;
    the best IoU over all predictions of that pair is taken, for box and mask apart. Where a sentence occurs twice in an
    image the last target wins and the pair is counted once. Sentences without target are left out (RefCOCO has none).

    Returns:
        ``released_precision_at_0.5`` and ``released_mask_mIoU`` (printed as cIoU by the released script).
    """
    check_ids([target.id for target in targets], answers)
    by_pair: dict[tuple[str, str], ReferTarget] = {}
    found: dict[tuple[str, str], list[ObjectLike]] = {}
    for target in targets:
        if target.boxes:
            by_pair[target.image, target.sentence] = target
        for one in answers.get(target.id, ()):
            found.setdefault((target.image, one.label), []).append(one)
    hits: list[bool] = []
    ious: list[float] = []
    for pair, target in by_pair.items():
        objects = found.get(pair, [])
        table = box_iou([released_box(one.box) for one in objects], [released_box(box) for box in target.boxes])
        hits.append(bool(table.max(initial=0.0) >= 0.5))
        if masks and target.masks is not None:
            overlaps = [mask_overlap([one.mask], target.masks) for one in objects if one.mask is not None]
            ious.append(max((inner / outer if outer else 0.0 for inner, outer in overlaps), default=0.0))
    metrics = {f"{RELEASED}precision_at_0.5": _mean(hits)} if hits else {}
    if ious:
        metrics[f"{RELEASED}mask_mIoU"] = _mean(ious)
    return Scores(metrics, {"released_pairs": len(by_pair)})


def mean_of_splits(splits: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the eight splits of RefCOCO, RefCOCO+ and RefCOCOg.

    Args:
        splits: metrics by ``source/split``; other splits are passed over.

    Returns:
        Metrics that all eight have; nothing where a split lacks.
    """
    if any(split not in splits for split in REFCOCO_SPLITS):
        return {}
    first, *others = (splits[split] for split in REFCOCO_SPLITS)
    shared = [name for name in first if all(name in other for other in others)]
    return {name: _mean(splits[split][name] for split in REFCOCO_SPLITS) for name in shared}


def _matthews(aimed: Sequence[SentenceGrade], empty: Sequence[SentenceGrade]) -> float:
    right, missed = sum(grade.answered for grade in aimed), sum(not grade.answered for grade in aimed)
    wrong, refused = sum(grade.answered for grade in empty), sum(not grade.answered for grade in empty)
    product = float(right + wrong) * (right + missed) * (refused + wrong) * (refused + missed)
    return (right * refused - wrong * missed) / product**0.5 if product else 0.0


def _mean(values: Iterable[float | bool | None]) -> float:
    return float(np.mean([float(value or 0.0) for value in values]))
