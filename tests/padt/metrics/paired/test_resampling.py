"""Intervals of differences: those of known cases, and draws whose scores are those of a set with these images."""

from dataclasses import replace

import numpy as np
import pytest

from padt.metrics.caption import CaptionAnswer, CaptionTarget, score_captions
from padt.metrics.detect import TrueImage, score_detect
from padt.metrics.paired.caption import caption_measure
from padt.metrics.paired.detect import detect_measure, image_f1
from padt.metrics.paired.refer import refer_measure, sentence_right, sentence_value
from padt.metrics.paired.resampling import Measure, differences, image_draws, mcnemar, tally
from padt.metrics.records import FoundObject
from padt.metrics.refer import ReferTarget, grade_sentence, summarise_grades
from tests.padt.metrics.test_detect import CATEGORIES, cat, coco_truth, found, image, jittered

mask_tools = pytest.importorskip("pycocotools.mask")
pytest.importorskip("faster_coco_eval")


def mean_of(values):
    return Measure(lambda weights: {"mean": (weights @ np.asarray(values, float)) / weights.sum(1)})


def whole(measure: Measure, images: int) -> dict[str, float]:
    return {
        name: float(values[0])
        for name, values in measure.scores(np.ones((1, images))).items()
        if np.isfinite(values[0])
    }


def test_intervals_are_those_of_the_paired_bootstrap():
    rng = np.random.default_rng(1)
    first = rng.random(400)
    # The same hard and easy images: the difference is known far better than either value.
    second = first + 0.05 + rng.normal(0, 0.1, 400)
    draws = image_draws(400, 1000, seed=7)
    one = differences(mean_of(first), mean_of(second), draws)["mean"]
    assert one.difference == pytest.approx(float((second - first).mean()))
    deviation = (second - first).std() / 20
    assert (one.low, one.high) == pytest.approx(
        (one.difference - 1.96 * deviation, one.difference + 1.96 * deviation), abs=0.2 * deviation
    )
    assert one.clear and one.draws == 1000
    same = differences(mean_of(first), mean_of(first), draws)["mean"]
    assert (same.difference, same.low, same.high, same.clear) == (0, 0, 0, False)
    in_parts = differences(mean_of(first), mean_of(second), draws, chunk=7)["mean"]
    assert (in_parts.low, in_parts.high) == pytest.approx((one.low, one.high))
    assert (draws == image_draws(400, 1000, seed=7)).all() and (draws.sum(1) == 400).all()
    assert not (draws == image_draws(400, 1000, seed=8)).all()


def test_who_won_and_whether_chance_would_divide_so():
    tallied = tally({"a": 0.5, "b": 0.2, "c": 1.0}, {"a": 0.5, "b": 0.9, "c": 0.9})
    assert (tallied.first, tallied.second, tallied.ties, tallied.p) == (1, 1, 1, None)
    right = [{"a": True, "b": False, "c": True}, {"a": True, "b": True, "c": True}]
    tallied = tally({"a": 0.5, "b": 0.2, "c": 1.0}, {"a": 0.5, "b": 0.9, "c": 0.9}, right)
    assert (tallied.only_first, tallied.only_second, tallied.p) == (0, 1, 1.0)
    # Binomial tails of n = 12: 2 (1 + 12 + 66) / 4096.
    assert mcnemar(10, 2) == pytest.approx(158 / 4096)
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    assert mcnemar(3000, 2000) == pytest.approx(0, abs=1e-40)


def test_ap_of_all_images_and_of_a_draw_is_cocos(samples):
    truth, images = coco_truth(samples, "val")
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    categories = list(names.items())
    answers = jittered(images, names, np.random.default_rng(5))
    ties = {name: list(found) for name, found in answers.items()}
    # Where detections of two copies have one score, their order is anybody's; all images have such ties.
    own = np.random.default_rng(6)
    answers = {
        name: [replace(one, score=one.score + 1e-4 * own.random()) for one in found] for name, found in answers.items()
    }
    weights = image_draws(len(images), 1, seed=3)[0]
    copies, drawn = [], {}
    for one, weight in zip(images, weights, strict=True):
        for copy in range(weight):
            name, number = f"{one.id}/{copy}", 10 * one.image_id + copy
            copies.append(TrueImage(name, number, one.height, one.width, one.objects))
            if one.id in answers:
                drawn[name] = answers[one.id]
    official = score_detect(images, ties, categories)[0].metrics
    of_draw = score_detect(copies, drawn, categories)[0].metrics
    for kind in ("bbox", "segm"):
        own = whole(detect_measure(images, ties, categories, masks=kind == "segm"), len(images))
        assert set(own) == {f"{kind}_{name}" for name in ("AP", "AP50", "AP75", "AR_100")} | {
            f"{kind}_AP_{size}" for size in ("small", "medium", "large")
        }
        assert own == pytest.approx({name: official[name] for name in own}, abs=1e-9)
        measure = detect_measure(images, answers, categories, masks=kind == "segm")
        found_now = {name: float(values[0]) for name, values in measure.scores(weights[None].astype(float)).items()}
        assert found_now == pytest.approx({name: of_draw[name] for name in own}, abs=1e-9)


def test_ap_of_cases_by_hand():
    images = [
        image("a", 1, cat(0, 0, 10, 10), cat(50, 50, 90, 90, iscrowd=True)),
        image("b", 2, cat(0, 0, 10, 10), cat(20, 0, 30, 10)),
        image("c", 3),
    ]
    answers = {
        "a": [found("cat", 0.9, 0, 0, 10, 10), found("cat", 0.8, 50, 50, 60, 60), found("cat", 0.7, 50, 50, 60, 60)],
        "b": [found("cat", 0.6, 0, 0, 10, 10), found("CAT", 0.5, 0, 0, 10, 10), found("dog", 0.4, 20, 0, 30, 10)],
        "c": [found("cat", float("0.95"), 0, 0, 5, 5)],
    }
    measure = detect_measure(images, answers, CATEGORIES)
    assert whole(measure, 3) == pytest.approx(
        {
            name: value
            for name, value in score_detect(images, answers, CATEGORIES, False)[0].metrics.items()
            if name in whole(measure, 3)
        }
    )
    # Without the picture that has nothing: both first ones right, of three objects.
    assert measure.scores(np.array([[1.0, 1.0, 0.0]]))["bbox_AP50"][0] == pytest.approx(67 / 101)
    # A draw without any object has no AP.
    assert np.isnan(measure.scores(np.array([[0.0, 0.0, 3.0]]))["bbox_AP"][0])
    assert image_f1(images, answers, CATEGORIES) == pytest.approx({"a": 1.0, "b": 2 / 5, "c": 0.0})
    assert whole(detect_measure(images, {}, CATEGORIES), 3)["bbox_AP"] == 0.0
    assert detect_measure([], {}, CATEGORIES).scores(np.ones((1, 0))) == {}


def rectangle(box):
    x0, y0, x1, y1 = box
    return dict(mask_tools.frPyObjects([[x0, y0, x1, y0, x1, y1, x0, y1]], 60, 60)[0])


def sentences(rng, count=40):
    """Sentences of images of four, of all kinds, with graded answers."""
    grades, places = [], []
    for number in range(count):
        boxes = [tuple(map(float, (x, y, x + 20, y + 20))) for x, y in rng.integers(0, 30, (rng.integers(0, 3), 2))]
        masks = tuple(rectangle(box) for box in boxes) if number % 5 else None
        target = ReferTarget(str(number), "i", "s", tuple(boxes), masks)
        objects = [
            FoundObject("s", float(rng.random()), box, rectangle(box))
            for box in (tuple(np.asarray(box) + rng.integers(-6, 6)) for box in boxes[: rng.integers(0, 3)])
        ]
        if number % 7 == 0:
            objects.append(FoundObject("s", 0.5, (0.0, 0.0, 9.0, 9.0), rectangle((0, 0, 9, 9))))
        grades.append(grade_sentence(target, objects))
        places.append(number // 4)
    return grades, places


def test_rec_and_res_of_all_images_and_of_a_draw_are_the_scorers():
    grades, places = sentences(np.random.default_rng(2))
    measure = refer_measure(grades, places, 10)
    assert whole(measure, 10) == pytest.approx(summarise_grades(grades).metrics)
    for weights in image_draws(10, 5):
        drawn = [grade for grade, place in zip(grades, places, strict=True) for _ in range(weights[place])]
        expected = summarise_grades(drawn).metrics
        own = {name: float(values[0]) for name, values in measure.scores(weights[None].astype(float)).items()}
        assert {name: value for name, value in own.items() if np.isfinite(value)} == pytest.approx(expected)
    assert any(grade.hits == () for grade in grades) and len({sentence_value(grade) for grade in grades}) > 4
    assert all(sentence_right(grade) == (sentence_value(grade) >= 0.5) for grade in grades if len(grade.hits))


def test_captions_of_all_images_and_of_a_draw_are_the_scorers():
    words = ["red", "dog", "sits", "beside", "two", "small", "white", "cats", "on", "the", "old", "wooden", "table"]
    rng = np.random.default_rng(4)

    def sentence():
        return " ".join(rng.choice(words, rng.integers(4, 12)))

    targets, answers = [], {}
    for number in range(12):
        references = tuple(sentence() for _ in range(3)) if number else ()
        box = (0.0, 0.0, 10.0, 10.0)
        targets.append(CaptionTarget(str(number), (box, (20.0, 0.0, 30.0, 10.0)), frozenset({0, 1}), references))
        if number % 5:
            text = f"{sentence()} (<|VRT_1|>)." if number % 2 else sentence()
            objects = (FoundObject("dog", 0.9, box),) if number % 3 else ()
            answers[str(number)] = CaptionAnswer(text, objects, len(text))
    measure, values = caption_measure(targets, answers, list(range(12)), 12)
    expected = {k: v for k, v in score_captions(targets, answers).metrics.items() if k != "caption_METEOR"}
    assert whole(measure, 12) == pytest.approx(expected)
    assert values["0"] == 0.0 and len(values) == 12
    (weights,) = image_draws(12, 1, seed=1)
    copies = [
        replace(target, id=f"{target.id}/{copy}")
        for target, weight in zip(targets, weights, strict=True)
        for copy in range(weight)
    ]
    drawn = {one.id: answers[own] for one in copies if (own := one.id.split("/")[0]) in answers}
    score = score_captions(copies, drawn).metrics
    own = measure.scores(weights[None].astype(float))
    # How rare words are is learnt from all images, not from a draw.
    for name in expected:
        if name != "caption_CIDEr_D":
            assert float(own[name][0]) == pytest.approx(score[name]), name
