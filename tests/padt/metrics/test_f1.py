"""F1 over IoU: by hand, and on random answers from the matches that pycocotools makes."""

import contextlib
import io

import numpy as np
import pytest

from padt.metrics.detect import TrueImage, TrueObject
from padt.metrics.f1 import THRESHOLDS, score_f1
from padt.metrics.records import FoundObject

CATEGORIES = [(1, "cat"), (2, "dog"), (3, "owl")]


def true(category: int, *box: float, crowd: bool = False) -> TrueObject:
    return TrueObject(category, box, (box[2] - box[0]) * (box[3] - box[1]), crowd)


def image(*objects: TrueObject, number: int = 1) -> TrueImage:
    return TrueImage(str(number), number, 100, 100, objects)


def found(label: str, *box: float, score: float = 0.5) -> FoundObject:
    return FoundObject(label, score, box)


def f1(images, answers) -> list[float]:
    metrics = score_f1(images, answers, CATEGORIES).metrics
    return [metrics["bbox_F1"], metrics["bbox_F1_50"], metrics["bbox_F1_95"]]


def test_by_hand():
    one = image(true(1, 0, 0, 10, 10), true(2, 20, 20, 30, 30))
    # Both right at every threshold; a second cat box and an unknown label.
    answers = [
        found("Cat", 0, 0, 10, 10),
        found("dog", 20, 20, 30, 30),
        found("cat", 50, 50, 60, 60),
        found("cow", 0, 0, 9, 9),
    ]
    # Precision: cat 1/2, dog 1; recall 1.
    assert f1([one], {"1": answers}) == pytest.approx([2 * 0.75 / 1.75] * 3)
    # IoU .7 for the cat: right at .5 to .7, five of ten thresholds.
    answers = [found("cat", 0, 0, 10, 7), found("dog", 20, 20, 30, 30)]
    assert f1([one], {"1": answers}) == pytest.approx([0.75, 1.0, 0.5])


def test_edge_cases():
    one = image(true(1, 0, 0, 10, 10))
    assert f1([one], {}) == [0.0, 0.0, 0.0]
    assert f1([one], {"1": []}) == [0.0, 0.0, 0.0]
    assert score_f1([image()], {"1": [found("cat", 0, 0, 1, 1)]}, CATEGORIES).metrics == {}
    # A class that the truth lacks is in no average; an image without truth still has false positives.
    both = [one, image(number=2)]
    assert f1(both, {"1": [found("cat", 0, 0, 10, 10)], "2": [found("dog", 0, 0, 5, 5)]}) == [1.0, 1.0, 1.0]
    assert f1(both, {"1": [found("cat", 0, 0, 10, 10)], "2": [found("cat", 0, 0, 5, 5)]})[0] == pytest.approx(2 / 3)
    # What lies in a crowd does not count, and a crowd need not be found.
    crowd = image(true(1, 0, 0, 10, 10), true(1, 40, 40, 90, 90, crowd=True))
    answers = [found("cat", 0, 0, 10, 10), found("cat", 45, 45, 55, 55)]
    assert f1([crowd], {"1": answers}) == [1.0, 1.0, 1.0]
    # An object is found once.
    assert f1([one], {"1": [found("cat", 0, 0, 10, 10)] * 2}) == pytest.approx([2 / 3] * 3)
    with pytest.raises(ValueError, match="unknown samples"):
        f1([one], {"7": []})


@pytest.mark.parametrize("seed", range(3))
def test_random_answers_from_pycocotools_matches(seed):
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(seed)

    def box(near=None):
        if near is not None:
            return tuple((np.asarray(near) + rng.normal(0, 1.5, 4)).tolist())
        corner, size = rng.uniform(0, 60, 2), rng.uniform(8, 40, 2)
        return (*corner.tolist(), *(corner + size).tolist())

    images, answers = [], {}
    for number in range(1, 13):
        objects = [true(int(rng.integers(1, 3)), *box(), crowd=rng.random() < 0.15) for _ in range(rng.integers(0, 7))]
        images.append(image(*objects, number=number))
        near = [found(CATEGORIES[one.category_id - 1][1], *box(one.box), score=rng.random()) for one in objects * 2]
        far = [found("cat", *box(), score=rng.random()) for _ in range(120 if number == 3 else 2)]
        answers[str(number)] = near + far
    ids = {name: number for number, name in CATEGORIES}
    width = lambda one: [one[0], one[1], one[2] - one[0], one[3] - one[1]]  # noqa: E731
    with contextlib.redirect_stdout(io.StringIO()):
        ground = coco.COCO()
        every = [(each.image_id, one) for each in images for one in each.objects]
        ground.dataset = {
            "info": {},
            "images": [{"id": each.image_id} for each in images],
            "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
            "annotations": [
                {"id": k, "image_id": n, "category_id": one.category_id, "bbox": width(one.box), "area": one.area,
                 "iscrowd": int(one.iscrowd)}
                for k, (n, one) in enumerate(every, 1)
            ],
        }  # fmt: skip
        ground.createIndex()
        entries = [
            {"image_id": int(n), "category_id": ids[one.label], "bbox": width(one.box), "score": one.score}
            for n, objects in answers.items()
            for one in objects
        ]
        public = evaluation.COCOeval(ground, ground.loadRes(entries), "bbox")
        public.params.maxDets = [1000]
        public.params.areaRng, public.params.areaRngLbl = [[0, 1e10]], ["all"]
        public.evaluate()
    precision, recall = [], []
    for number in (1, 2):
        parts = [each for each in public.evalImgs if each is not None and each["category_id"] == number]
        counted = sum((~each["dtIgnore"].astype(bool)).sum(1) for each in parts)
        right = sum(((each["dtMatches"] > 0) & ~each["dtIgnore"].astype(bool)).sum(1) for each in parts)
        truth = sum((~np.asarray(each["gtIgnore"], bool)).sum() for each in parts)
        precision.append(right / counted)
        recall.append(right / truth)
    p, r = np.mean(precision, 0), np.mean(recall, 0)
    expected = [2 * a * b / (a + b) if a + b else 0.0 for a, b in ((p.mean(), r.mean()), (p[0], r[0]), (p[-1], r[-1]))]
    assert len(THRESHOLDS) == 10
    assert f1(images, answers) == pytest.approx(expected, abs=1e-9)
