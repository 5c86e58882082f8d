"""What each kind of mistake costs: all of the loss where there is no other, TIDE's figures where there are many."""

import random

import numpy as np
import pytest

from padt.metrics.analysis.detect import DETECT_MISTAKES, analyse_detect
from padt.metrics.detect import TrueImage, TrueObject, score_detect
from padt.metrics.records import FoundObject

mask_tools = pytest.importorskip("pycocotools.mask")

NAMES = [(1, "cat"), (2, "dog"), (3, "cow")]
A, B, C = (0, 0, 20, 20), (40, 40, 60, 60), (70, 10, 90, 30)
SIDE = 100


def rectangle(box) -> dict:
    x0, y0, x1, y1 = box
    return mask_tools.frPyObjects([[x0, y0, x1, y0, x1, y1, x0, y1]], SIDE, SIDE)[0]


def true(number: int, box, crowd: bool = False, mask: bool = True) -> TrueObject:
    return TrueObject(number, box, 400, crowd, rectangle(box) if mask else None)


def found(label: str, box, score: float = 0.9, mask=None) -> FoundObject:
    return FoundObject(label, score, box, rectangle(box if mask is None else mask))


def picture(*objects: TrueObject, number: int = 1) -> TrueImage:
    return TrueImage(str(number), number, SIDE, SIDE, objects)


TRUTH = picture(true(1, A), true(2, B))
GOOD = [found("cat", A), found("dog", B)]


def analysed(answer, truth=TRUTH, masks=False, malformed=()):
    return analyse_detect([truth], {"1": answer} if answer is not None else {}, NAMES, malformed, masks)


# An answer, and the one kind of mistake in it.
ONE_KIND = {
    "missed": GOOD[:1],
    "wrong_label": [found("cat", A), found("cow", B)],
    "poor_box": [found("cat", A), found("dog", (40, 40, 60, 48))],
    # Worth something only where it comes before what is right.
    "duplicate": [GOOD[0], found("cat", (1, 0, 20, 20), 0.5), *GOOD[1:]],
    "wrong_label_and_box": [*GOOD, found("cow", (40, 40, 60, 48), 0.99), found("dog", (0, 0, 20, 8), 0.99)],
    "nothing_there": [*GOOD, found("cat", C, 0.99)],
}


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("kind", ONE_KIND)
def test_the_whole_loss_goes_to_the_only_kind_of_mistake(kind, masks):
    result = analysed(ONE_KIND[kind], masks=masks)
    others = {other: cost for other, cost in result.costs.items() if other != kind}
    assert result.ap is not None and result.costs[kind] == pytest.approx(1 - result.ap, abs=1e-12)
    assert others == {other: 0 for other in DETECT_MISTAKES if other != kind and (masks or other != "poor_mask")}
    if kind != "duplicate":
        assert result.costs[kind] > 0.2
    assert {one: number for one, number in result.counts.items() if number} == {
        kind: 2 if kind == "wrong_label_and_box" else 1
    }


def test_a_duplicate_before_what_is_right_costs():
    """Two cats in two pictures; the second look at the first one comes before the other."""
    images = [picture(true(1, A), number=number) for number in (1, 2)]
    answers = {"1": [found("cat", A, 0.9), found("cat", A, 0.8)], "2": [found("cat", A, 0.7)]}
    result = analyse_detect(images, answers, NAMES)
    # Precision 1 up to half of the recall (51 of 101 points), then 2 of 3.
    assert result.ap == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result.costs["duplicate"] == pytest.approx(1 - result.ap) and result.counts["duplicate"] == 1


def test_a_poor_mask_costs_mask_ap_alone():
    answer = [found("cat", A), found("dog", B, mask=(40, 40, 60, 48))]
    boxes, masks = analysed(answer), analysed(answer, masks=True)
    assert boxes.ap == 1 and not any(boxes.costs.values()) and "poor_mask" not in boxes.costs
    assert masks.ap == pytest.approx(0.5) and masks.costs["poor_mask"] == pytest.approx(0.5)
    assert sum(masks.counts.values()) == masks.counts["poor_mask"] == 1
    # Even where mask and object do not meet at all.
    assert analysed([GOOD[0], found("dog", B, mask=C)], masks=True).counts["poor_mask"] == 1
    # With a poor box it is the box that is to blame.
    assert analysed([GOOD[0], found("dog", (40, 40, 60, 48))], masks=True).counts["poor_box"] == 1


@pytest.mark.parametrize("answer", [GOOD[:1], None])
def test_what_an_answer_of_bad_form_lacks_is_no_plain_miss(answer):
    result = analysed(answer, malformed=["1"])
    assert result.costs["malformed"] == pytest.approx(1 - result.ap) and result.costs["missed"] == 0
    assert result.counts["malformed"] == (1 if answer else 2) and result.counts["missed"] == 0
    assert analysed(None).counts["malformed"] == 2


def test_a_label_that_no_class_bears_is_a_wrong_label():
    result = analysed([GOOD[0], found("hound", B)])
    assert result.counts["wrong_label"] == 1 and result.costs["wrong_label"] == pytest.approx(0.5)
    assert result.detections[-1].category_id is None and not result.missed
    # On nothing it is counted, and costs nothing, for no AP takes it.
    result = analysed([*GOOD, found("unicorn", C, 0.99)])
    assert result.counts["nothing_there"] == 1 and not any(result.costs.values())


def test_only_the_best_of_several_mistakes_about_one_object_is_mended():
    answer = [GOOD[0], found("dog", (40, 40, 60, 48), 0.6), found("dog", (40, 40, 48, 60), 0.7)]
    result = analysed(answer)
    assert result.counts["poor_box"] == 2 and result.costs["poor_box"] == pytest.approx(0.5)
    # Where the object is found otherwise, a mended box would be a second one of it: it goes.
    result = analysed([*GOOD, found("dog", (40, 40, 60, 48), 0.95)])
    assert result.costs["poor_box"] == pytest.approx(1 - result.ap) and result.ap < 1
    assert [one.target for one in result.detections if one.mistake] == [None]


def test_crowd_regions_are_neither_right_nor_wrong():
    truth = picture(true(1, A), true(1, (40, 0, 100, 100), crowd=True))
    result = analysed([found("cat", A), found("cat", B, 0.95), found("cat", C, 0.99)], truth)
    assert (
        result.ap == 1
        and not any(result.counts.values())
        and [one.ignored for one in result.detections] == [*(True, True, False)]
    )
    assert result.found == {("1", 0)}
    # Missing a crowd is no miss.
    assert analysed([found("cat", A)], truth).missed == ()


def test_nothing_to_find_has_no_ap_and_mended_classes_count_by_what_is_left():
    empty = analysed([found("cat", A)], picture())
    assert empty.ap is None and empty.costs == {} and empty.counts["nothing_there"] == 1
    # The only dog is missed, and another is seen where none is: mending either alone leaves the class at 0.
    result = analysed([GOOD[0], found("dog", C)])
    assert (result.ap, result.costs["missed"], result.costs["nothing_there"]) == (0.5, 0, 0)


def test_images_without_masks_stay_out_of_the_masks_analysis():
    bare = picture(true(1, A, mask=False), number=2)
    both = analyse_detect([TRUTH, bare], {"1": GOOD, "2": []}, NAMES, masks=True)
    assert both.ap == 1 and both.missed == ()
    assert analyse_detect([TRUTH, bare], {"1": GOOD, "2": []}, NAMES).counts["missed"] == 1


def drawn(seed: int, pictures: int = 12) -> tuple[list[TrueImage], dict[str, list[FoundObject]]]:
    """Scenes and answers with every kind of mistake; Python's generator gives the same ones for ever."""
    draw, images, answers = random.Random(seed), [], {}
    for number in range(pictures):
        truth, objects = [], []
        for _ in range(draw.randint(1, 5)):
            x, y = draw.uniform(0, 60), draw.uniform(0, 60)
            width, height = draw.uniform(10, 35), draw.uniform(10, 35)
            truth.append((draw.randint(1, 3), tuple(round(v, 2) for v in (x, y, x + width, y + height))))
        for kind, box in truth:
            for _ in range(draw.choice([0, 1, 1, 1, 2])):
                spread, width, height = draw.choice([0.02, 0.1, 0.3]), box[2] - box[0], box[3] - box[1]
                edges = [
                    edge + draw.gauss(0, spread) * side for edge, side in zip(box, (width, height) * 2, strict=True)
                ]
                edges = [
                    *map(min, edges[:2], edges[2:]),
                    *(1 + max(pair) for pair in zip(edges[:2], edges[2:], strict=True)),
                ]
                label = kind if draw.random() < 0.75 else draw.randint(1, 3)
                score = round(draw.random(), 4)
                objects.append(FoundObject(dict(NAMES)[label], score, tuple(round(edge, 2) for edge in edges)))
        if draw.random() < 0.4:
            label = draw.randint(1, 3)
            objects.append(FoundObject(dict(NAMES)[label], round(draw.random(), 4), (80.0, 80.0, 95.0, 95.0)))
        images.append(picture(*(true(kind, box, mask=False) for kind, box in truth), number=number + 1))
        answers[str(number + 1)] = objects
    return images, answers


# Per cent, by tidecv 1.0.1 with its COCO defaults on the same scenes.
TIDE = {
    3: (38.521, {"wrong_label": 9.897, "poor_box": 18.228, "wrong_label_and_box": 0.210, "duplicate": 1.120}),
    4: (59.424, {"wrong_label": 4.430, "poor_box": 9.642, "wrong_label_and_box": 0.0, "duplicate": 0.189}),
    6: (38.727, {"wrong_label": 3.071, "poor_box": 27.688, "wrong_label_and_box": 0.0, "duplicate": 1.801}),
}
TIDE[3][1].update(nothing_there=2.490, missed=12.176)
TIDE[4][1].update(nothing_there=1.788, missed=18.162)
TIDE[6][1].update(nothing_there=0.598, missed=13.429)


@pytest.mark.parametrize("seed", TIDE)
def test_costs_are_those_of_tide(seed):
    result = analyse_detect(*drawn(seed), NAMES)
    ap, costs = TIDE[seed]
    assert 100 * result.ap == pytest.approx(ap, abs=1e-3)
    assert {kind: 100 * result.costs[kind] for kind in costs} == pytest.approx(costs, abs=2e-3)


@pytest.mark.parametrize("seed", range(6))
def test_ap_is_that_of_coco(seed):
    pytest.importorskip("faster_coco_eval")
    images, answers = drawn(seed, pictures=20)
    rng = np.random.default_rng(seed)
    # Few different scores, so that ties must be broken alike; crowds; a picture without answer; more than a hundred.
    answers = {
        key: [FoundObject(one.label, round(one.score, 1), one.box, rectangle(one.box)) for one in answer]
        for key, answer in answers.items()
    }
    images = [
        TrueImage(
            image.id,
            image.image_id,
            SIDE,
            SIDE,
            tuple(true(one.category_id, one.box, crowd=rng.random() < 0.15) for one in image.objects),
        )
        for image in images
    ]
    answers["1"] = [
        *answers["1"],
        *(found("cat", C, 0.01) for _ in range(120)),
        found("cat", images[0].objects[0].box, 0.0),
    ]
    del answers["2"]
    expected = score_detect(images, answers, NAMES)[0].metrics
    boxes, masks = (analyse_detect(images, answers, NAMES, masks=masks) for masks in (False, True))
    assert boxes.ap == pytest.approx(expected["bbox_AP50"], abs=1e-6)
    assert masks.ap == pytest.approx(expected["segm_AP50"], abs=1e-6)
