"""REC and RES: a wrong rule here would silently change every published score."""

import numpy as np
import pytest

from padt.metrics.overlap import box_iou, mask_overlap, match_greedily
from padt.metrics.records import FoundObject
from padt.metrics.refer import REFCOCO_SPLITS, ReferTarget, mean_of_splits, score_refer, score_refer_released

mask_tools = pytest.importorskip("pycocotools.mask")


def rectangle(x0: int, y0: int, x1: int, y1: int, height: int = 20, width: int = 30) -> dict:
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    code = mask_tools.encode(np.asfortranarray(mask))
    return {"size": [height, width], "counts": code["counts"].decode()}


def found(box, score=0.5, label="it", mask=True) -> FoundObject:
    return FoundObject(label, score, tuple(map(float, box)), rectangle(*map(int, box)) if mask else None)


def target(name: str, *boxes, image="image", sentence="it") -> ReferTarget:
    return ReferTarget(name, image, sentence, boxes, tuple(rectangle(*box) for box in boxes))


def test_box_iou_by_hand():
    # 10x10 against the same box moved by 5: 50 shared of 150.
    assert box_iou([[0, 0, 10, 10]], [[5, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30]]).tolist() == [
        [pytest.approx(1 / 3), 1.0, 0.0]
    ]
    assert box_iou([[5, 5, 5, 5]], [[5, 5, 5, 5]]).tolist() == [[0.0]]
    assert box_iou([], [[0, 0, 1, 1]]).shape == (0, 1)


def test_greedy_matching_takes_the_best_pair_first_and_each_side_once():
    iou = np.array([[0.9, 0.8], [0.95, 0.1]])
    assert match_greedily(iou, 0.5) == [(1, 0), (0, 1)]
    assert match_greedily(iou, 0.85) == [(1, 0)]
    assert match_greedily(np.zeros((0, 3)), 0.5) == []


def test_mask_overlap_takes_every_form_of_counts():
    first, second = rectangle(0, 0, 10, 10), rectangle(5, 0, 15, 10)
    as_bytes = {**first, "counts": first["counts"].encode()}
    as_runs = {"size": [20, 30], "counts": [0, *([10, 10] * 9), 10, 410]}
    for mask in (first, as_bytes, as_runs):
        assert mask_overlap([mask], [second]) == (50, 150)
    assert mask_overlap([], [second]) == (0, 100)
    assert mask_overlap([], []) == (0, 0)
    with pytest.raises(ValueError, match="different sizes"):
        mask_overlap([first], [rectangle(0, 0, 5, 5, height=10)])


def test_scores_by_hand():
    targets = [
        target("a", (0, 0, 10, 10)),
        target("b", (0, 0, 10, 10)),
        target("c", (0, 0, 4, 4)),
    ]
    answers = {
        "a": [found((0, 0, 10, 10))],  # IoU 1
        "b": [found((0, 0, 10, 5))],  # IoU exactly .5: counts
        # c is not answered: IoU 0, never left out
    }
    scores = score_refer(targets, answers)
    assert scores.metrics["precision_at_0.5"] == pytest.approx(2 / 3)
    assert scores.metrics["precision_at_0.75"] == pytest.approx(1 / 3)
    assert scores.metrics["box_mIoU"] == pytest.approx(0.5)
    assert scores.metrics["gIoU"] == pytest.approx(0.5)
    assert scores.metrics["cIoU"] == pytest.approx((100 + 50) / (100 + 100 + 16))
    assert scores.metrics["mask_precision_at_0.5"] == pytest.approx(2 / 3)
    assert "N_acc" not in scores.metrics
    assert scores.counts == {
        "sentences": 3,
        "sentences_without_target": 0,
        "sentences_with_masks": 3,
        "sentences_unanswered": 1,
    }


def test_several_objects_box_of_the_best_score_and_union_of_masks():
    answers = {"a": [found((0, 0, 10, 10), score=0.2), found((15, 0, 25, 10), score=0.9)]}
    scores = score_refer([target("a", (0, 0, 10, 10))], answers)
    assert scores.metrics["precision_at_0.5"] == 0.0
    assert scores.metrics["gIoU"] == pytest.approx(100 / 200)


def test_sentences_without_or_with_several_targets_follow_grefcoco():
    two = ((0, 0, 5, 5), (10, 0, 15, 5))
    targets = [target("none-right"), target("none-wrong"), target("both", *two), target("half", *two)]
    answers = {
        "none-wrong": [found((0, 0, 4, 5))],
        "both": [found(two[1]), found(two[0])],
        "half": [found(two[0])],
    }
    metrics = score_refer(targets, answers).metrics
    assert metrics["N_acc"] == 0.5
    assert metrics["T_acc"] == 1.0
    assert metrics["precision_at_0.5"] == 0.5
    assert metrics["gIoU"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert metrics["cIoU"] == pytest.approx((50 + 25) / (20 + 50 + 50))
    assert "box_mIoU" not in metrics


def test_box_only_sources_and_predictions_without_masks_have_no_mask_scores():
    bare = ReferTarget("a", "image", "it", ((0, 0, 10, 10),), None)
    answers = {"a": [found((0, 0, 10, 10), mask=False)]}
    for scores in (score_refer([bare], answers), score_refer([target("a", (0, 0, 10, 10))], answers, masks=False)):
        assert scores.metrics["precision_at_0.5"] == 1.0
        assert "gIoU" not in scores.metrics


def test_each_sentence_is_counted_exactly_once():
    with pytest.raises(ValueError, match="more than once: a"):
        score_refer([target("a"), target("a")], {})
    with pytest.raises(ValueError, match="unknown samples: b"):
        score_refer([target("a")], {"b": []})
    assert score_refer([], {}).metrics == {}


def test_released_protocol_rounds_and_takes_the_best_object_of_the_same_label():
    targets = [target("a", (0, 0, 10, 10), sentence="red"), target("b", (2, 2, 4, 4), sentence="blue")]
    answers = {
        # 9.6 rounds to 10, so the box is exact; the higher score would have been wrong.
        "a": [found((0, 0, 9.6, 10), 0.1, "red"), found((20, 10, 25, 15), 0.9, "red")],
        # The label must repeat the sentence to the letter.
        "b": [found((2, 2, 4, 4), 0.9, "Blue")],
    }
    scores = score_refer_released(targets, answers)
    assert scores.metrics["released_precision_at_0.5"] == 0.5
    assert scores.metrics["released_mask_mIoU"] == pytest.approx(0.9 / 2)
    # The same sentence twice in one image: one pair, the last target wins.
    doubled = [target("a", (0, 0, 10, 10), sentence="red"), target("b", (20, 10, 25, 15), sentence="red")]
    assert score_refer_released(doubled, {}).counts == {"released_pairs": 1}


def published_vlm_r1(box, truth) -> float:
    """IoU as VLM-R1's evaluation of references counts it, in the terms of inclusive pixels."""
    left, top, right, bottom = max(box[0], truth[0]), max(box[1], truth[1]), *np.minimum(box[2:], truth[2:]) - 1
    inner = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0
    return inner / (area(box) + area(truth) - inner)


def area(box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def test_vlm_r1_takes_the_first_object_above_a_half():
    good, poor = found((0, 0, 10, 10), score=0.1), found((15, 0, 25, 10), score=0.9)
    for objects, right in (([good, poor], 1.0), ([poor, good], 0.0), ([found((0, 0, 10, 5))], 0.0), ([], 0.0)):
        metrics = score_refer([target("a", (0, 0, 10, 10))], {"a": objects}).metrics
        assert metrics["vlm_r1_accuracy"] == right
    assert score_refer([target("a", (0, 0, 10, 10))], {"a": [found((0, 0, 10, 5))]}).metrics["precision_at_0.5"] == 1.0
    assert "vlm_r1_accuracy" not in score_refer([target("a", (0, 0, 5, 5), (6, 0, 9, 5))], {}).metrics


def test_vlm_r1_on_random_boxes():
    rng = np.random.default_rng(0)
    right = 0
    for _ in range(500):
        truth = np.array([0.0, 0.0, *rng.uniform(0.5, 12, 2)])
        box = truth + rng.normal(0, 0.8, 4)
        one = ReferTarget("a", "image", "it", (tuple(truth),), None)
        own = score_refer([one], {"a": [found(tuple(box), mask=False)]})
        assert own.metrics["vlm_r1_accuracy"] == (published_vlm_r1(box, truth) > 0.5)
        right += own.metrics["vlm_r1_accuracy"]
    assert 100 < right < 400


def test_presence_is_a_matthews_correlation():
    targets = [target(name, (0, 0, 5, 5)) for name in "abcd"] + [target(name) for name in "wxyz"]
    box = [found((0, 0, 5, 5))]
    # 3 of 4 with a target answered, 1 of 4 without.
    metrics = score_refer(targets, dict.fromkeys("abcw", box)).metrics
    assert metrics["presence_MCC"] == pytest.approx((3 * 3 - 1 * 1) / (4 * 4 * 4 * 4) ** 0.5)
    assert score_refer(targets, dict.fromkeys("abcd", box)).metrics["presence_MCC"] == 1.0
    assert score_refer(targets, dict.fromkeys("wxyz", box)).metrics["presence_MCC"] == -1.0
    assert score_refer(targets, {}).metrics["presence_MCC"] == 0.0
    assert "presence_MCC" not in score_refer(targets[:4], {}).metrics


def test_the_mean_of_the_eight_splits_needs_all_eight():
    assert len(REFCOCO_SPLITS) == 8
    splits = {split: {"gIoU": number / 10, "cIoU": 0.5} for number, split in enumerate(REFCOCO_SPLITS)}
    splits["refcocog/test"].pop("cIoU")
    assert mean_of_splits({**splits, "other/val": {"gIoU": 9.0}}) == {"gIoU": pytest.approx(0.35)}
    splits.pop("refcoco+/testB")
    assert mean_of_splits(splits) == {}
