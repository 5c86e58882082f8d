"""Labels that may be missing: what a model is sure of and the truth of a picture does not have at all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from padt.metrics.detect import TrueImage, category_ids, fold
from padt.metrics.overlap import Box, box_iou
from padt.metrics.records import ObjectLike, check_ids

MOST_OVERLAP = 0.3
_SAME_OBJECT = 0.5


@dataclass(frozen=True)
class MissingLabel:
    """A detection that the truth may lack.

    Attributes:
        image: id of the sample.
        place: among the objects of the answer, in the order of writing.
        category_id: of its label.
        score: confidence in (0, 1).
        overlap: with the nearest true object of any class.
    """

    image: str
    place: int
    category_id: int
    score: float
    overlap: float


def missing_labels(
    images: Sequence[TrueImage],
    answers: Mapping[str, Sequence[ObjectLike]],
    categories: Iterable[tuple[int, str]],
    score: float = 0.5,
) -> list[MissingLabel]:
    """Confident detections that overlap no true object of any class by more than ``MOST_OVERLAP``.

    Of an object in a crowd region, that region is the truth: what lies in one by more than so much is left out too. Of
    several boxes of one class that overlap by half or more, the one with the best score is listed.

    Args:
        images: every image of the set.
        answers: predicted objects by sample id; labels that no category bears are left out.
        categories: ``(id, name)`` of the data set.
        score: least score.

    Returns:
        Best scores first; equal ones in the order of images and answers.

    Raises:
        ValueError: sample ids are not unique, or an answer belongs to no image.
        UserError: category names collide.
    """
    check_ids([image.id for image in images], answers)
    ids = category_ids(categories)
    listed: list[MissingLabel] = []
    for image in sorted(images, key=lambda image: image.image_id):
        answer = answers.get(image.id, ())
        kept: dict[int, list[Box]] = {}
        for place in sorted(range(len(answer)), key=lambda place: -answer[place].score):
            one, number = answer[place], ids.get(fold(answer[place].label))
            if number is None or one.score < score:
                continue
            overlap = _nearest(one.box, image)
            same = kept.setdefault(number, [])
            if overlap <= MOST_OVERLAP and np.max(box_iou([one.box], same), initial=0.0) < _SAME_OBJECT:
                same.append(one.box)
                listed.append(MissingLabel(image.id, place, number, float(one.score), overlap))
    return sorted(listed, key=lambda one: -one.score)


def _nearest(box: Box, image: TrueImage) -> float:
    single = box_iou([box], [true.box for true in image.objects if not true.iscrowd])
    area = max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
    inside = [0.0]
    for true in image.objects:
        if true.iscrowd and area:
            width = min(box[2], true.box[2]) - max(box[0], true.box[0])
            height = min(box[3], true.box[3]) - max(box[1], true.box[1])
            inside.append(max(0.0, width) * max(0.0, height) / area)
    return float(max(np.max(single, initial=0.0), *inside))
