"""Each sentence has one outcome, and it says what the model pointed at."""

import pytest

from padt.metrics.analysis.refer import REFER_OUTCOMES, outcome_of
from padt.metrics.records import FoundObject
from padt.metrics.refer import ReferTarget, score_refer

mask_tools = pytest.importorskip("pycocotools.mask")

A, B, C = (0, 0, 20, 20), (40, 40, 60, 60), (70, 10, 90, 30)


def rectangle(box) -> dict:
    x0, y0, x1, y1 = box
    return mask_tools.frPyObjects([[x0, y0, x1, y0, x1, y1, x0, y1]], 100, 100)[0]


def target(*boxes, masks: bool = True) -> ReferTarget:
    return ReferTarget("1", "picture", "the cat", boxes, tuple(map(rectangle, boxes)) if masks else None)


def found(box, score: float = 0.9, mask=None) -> FoundObject:
    return FoundObject("the cat", score, box, rectangle(mask or box))


CASES = [
    ("right", target(A), [found(A)]),
    ("right", target(A), [found(A), found(B, 0.5)]),
    ("right", target(A, B), [found(B), found(A)]),
    ("right", target(), []),
    ("poor_mask", target(A), [found(A, mask=C)]),
    ("outscored", target(A), [found(A, 0.4), found(C, 0.5)]),
    ("poor_box", target(A), [found((0, 0, 20, 8))]),
    ("wrong_object", target(A), [found(B)]),
    ("wrong_object", target(A), [found((40, 40, 60, 46))]),
    ("nothing_there", target(A), [found(C)]),
    ("incomplete", target(A, B), [found(A)]),
    ("incomplete", target(A, B), [found(A), found(C)]),
    ("too_many", target(A, B), [found(A), found(B), found(C)]),
    ("not_refused", target(), [found(A)]),
    ("nothing_found", target(A), []),
    ("nothing_found", target(A, B), []),
]


@pytest.mark.parametrize(("kind", "sentence", "answer"), CASES)
def test_an_outcome_says_what_became_of_a_sentence(kind, sentence, answer):
    outcome = outcome_of(sentence, answer, others=[B], masks=True)
    assert outcome.kind == kind and kind in REFER_OUTCOMES
    assert outcome.mistaken_for == (0 if kind == "wrong_object" else None)
    # What counts as a hit is what REC counts.
    metrics = score_refer([sentence], {"1": answer}, True).metrics
    assert outcome.hit == (metrics.get("precision_at_0.5", metrics.get("N_acc")) == 1)


def test_an_answer_of_bad_form_is_malformed_only_where_it_names_nothing():
    for sentence in (target(A), target(A, B), target()):
        assert outcome_of(sentence, [], malformed=True).kind == "malformed"
    assert outcome_of(target(A), [found(A)], malformed=True).kind == "right"


def test_masks_are_judged_only_where_they_are_asked_for_and_known():
    poor = [found(A, mask=C)]
    assert outcome_of(target(A), poor).kind == "right"
    assert outcome_of(target(A, masks=False), poor, masks=True).kind == "right"


def test_the_object_with_the_highest_score_stands_for_the_answer():
    outcome = outcome_of(target(A), [found(C, 0.3), found(A, 0.8), found(A, 0.8)])
    assert (outcome.kind, outcome.place, outcome.score, outcome.iou) == ("right", 1, 0.8, 1.0)
    assert outcome_of(target(A), []).score is None and outcome_of(target(A), []).iou == 0.0
