"""Sentences: what became of each, so that it can be told why a model points at the wrong thing.

Outcomes follow REC's rules (``padt.metrics.refer``) at IoU 0.5: of several objects the one with the highest score is
the answer. Whatever is not right is told apart by what the box lies on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from padt.metrics.analysis.detect import NEAR_IOU, RIGHT_IOU
from padt.metrics.overlap import Box, box_iou, match_greedily
from padt.metrics.records import ObjectLike
from padt.metrics.refer import BOX_THRESHOLDS, ReferTarget, best_object, grade_sentence

REFER_OUTCOMES = {
    "right": "the box fits, and so does the mask where there is one; a sentence without target is refused",
    "poor_mask": f"the box fits, the mask has an IoU below {RIGHT_IOU}",
    "outscored": "an object of the answer fits, but another has a higher score",
    "poor_box": f"on the right object, with an IoU of {NEAR_IOU} to {RIGHT_IOU}",
    "wrong_object": "on another object of the picture",
    "nothing_there": "on nothing that the truth knows",
    "incomplete": "several targets, of which not all are found",
    "too_many": "several targets, all found, and more besides",
    "not_refused": "an object is named, though the sentence refers to nothing",
    "nothing_found": "the answer names no object",
    "malformed": "no object, and the answer was cut off, hard to read, or never came",
}
"""Outcomes and what they are, in the order of tables."""


@dataclass(frozen=True)
class SentenceOutcome:
    """What became of one sentence.

    Attributes:
        kind: a key of ``REFER_OUTCOMES``.
        score: of the object that stands for the answer; None without one.
        place: of that object in the answer, in the order of writing; None without one.
        iou: of its box with the target; None unless there is exactly one target.
        mistaken_for: place among ``others`` of what the box lies on, for ``wrong_object``.
    """

    kind: str
    score: float | None = None
    place: int | None = None
    iou: float | None = None
    mistaken_for: int | None = None

    @property
    def hit(self) -> bool:
        """Right for REC at IoU 0.5."""
        return self.kind in ("right", "poor_mask")


def outcome_of(
    target: ReferTarget,
    objects: Sequence[ObjectLike],
    others: Sequence[Box] = (),
    malformed: bool = False,
    masks: bool = False,
) -> SentenceOutcome:
    """Tell what became of a sentence.

    Args:
        target: the sentence.
        objects: of the answer, in the order of writing.
        others: boxes of the picture's other objects, ``xyxy`` in pixels.
        malformed: the form of the answer is at fault.
        masks: masks were asked for.
    """
    if not objects:
        kind = "malformed" if malformed else "nothing_found" if target.boxes else "right"
        return SentenceOutcome(kind, iou=0.0 if len(target.boxes) == 1 else None)
    chosen = best_object(objects)
    place = next(place for place, one in enumerate(objects) if one is chosen)
    grade = grade_sentence(target, objects, masks)
    kind, mistaken = _kind(target, objects, chosen.box, others), None
    if grade.hits and grade.hits[BOX_THRESHOLDS.index(RIGHT_IOU)]:
        kind = "poor_mask" if grade.mask_iou is not None and grade.mask_iou < RIGHT_IOU else "right"
    elif kind == "wrong_object":
        mistaken = int(box_iou([chosen.box], others).argmax())
    return SentenceOutcome(kind, float(chosen.score), place, grade.box_iou, mistaken)


def _kind(target: ReferTarget, objects: Sequence[ObjectLike], box: Box, others: Sequence[Box]) -> str:
    """Kind of an answer with objects that is not right."""
    if not target.boxes:
        return "not_refused"
    table = box_iou([one.box for one in objects], target.boxes)
    if len(target.boxes) > 1:
        return "too_many" if len(match_greedily(table, RIGHT_IOU)) == len(target.boxes) else "incomplete"
    if table.max() >= RIGHT_IOU:
        return "outscored"
    own = float(box_iou([box], target.boxes)[0, 0])
    elsewhere = float(np.max(box_iou([box], others), initial=0.0))
    if max(own, elsewhere) < NEAR_IOU:
        return "nothing_there"
    return "poor_box" if own >= elsewhere else "wrong_object"
