"""Missing labels are what the truth lacks altogether, and nothing that it has in another way."""

import pytest

from padt.metrics.analysis.missing import missing_labels
from padt.metrics.detect import TrueImage, TrueObject
from padt.metrics.records import FoundObject

NAMES = [(1, "cat"), (2, "dog")]
A, B, C = (0, 0, 20, 20), (40, 40, 60, 60), (70, 10, 90, 30)
TRUTH = TrueImage("1", 1, 100, 100, (TrueObject(1, A, 400), TrueObject(2, (60, 0, 100, 40), 1600, True)))


def listed(*objects: FoundObject, score: float = 0.5):
    return [(one.place, one.category_id) for one in missing_labels([TRUTH], {"1": objects}, NAMES, score)]


def found(label: str, box, score: float = 0.9) -> FoundObject:
    return FoundObject(label, score, box)


def test_only_what_no_class_of_the_truth_covers_is_listed():
    assert listed(found("dog", B)) == [(0, 2)]
    # Labelled, if otherwise: that is a wrong label of one side, and no missing one.
    assert listed(found("dog", A), found("cat", (0, 0, 20, 9))) == []
    # In a crowd region, of whatever class.
    assert listed(found("cat", C)) == []
    # An overlap of .3 is still little, more is not.
    assert listed(found("dog", (0, 0, 20, 6))) == [(0, 2)] and listed(found("dog", (0, 0, 20, 6.1))) == []


def test_unsure_and_strange_detections_and_second_boxes_are_left_out():
    assert listed(found("dog", B, 0.49), found("unicorn", B)) == []
    assert listed(found("dog", B, 0.4), score=0.4) == [(0, 2)]
    assert listed(found("dog", B, 0.6), found("Dog ", (41, 40, 60, 60), 0.8), found("cat", B, 0.7)) == [(1, 2), (2, 1)]


def test_best_scores_come_first_and_equal_ones_in_the_order_of_images():
    images = [TrueImage(str(number), number, 100, 100, ()) for number in (3, 1, 2)]
    answers = {
        "1": [found("cat", A, 0.6)],
        "2": [found("cat", A, 0.9)],
        "3": [found("cat", A, 0.6), found("cat", B, 0.7)],
    }
    order = [(one.image, one.score, one.overlap) for one in missing_labels(images, answers, NAMES)]
    assert order == [("2", 0.9, 0.0), ("3", 0.7, 0.0), ("1", 0.6, 0.0), ("3", 0.6, 0.0)]
    with pytest.raises(ValueError, match="unknown samples"):
        missing_labels(images, {"4": []}, NAMES)
