"""Answers without VRTs must give their boxes where they say they are, and answers with VRTs must not be touched."""

from dataclasses import replace

import pytest

from padt.data.text_boxes import read_text_boxes, text_box
from padt.inference.results import Frame, PredictedObject, Prediction
from padt.inference.text_boxes import with_text_boxes

# 200 x 168 pixels, which the model sees as 6 x 8 patches: 224 x 168.
FRAME = Frame(200, 168, (6, 8))


def prediction(text: str) -> Prediction:
    return Prediction(text, (), (FRAME,))


def test_boxes_are_scaled_to_the_picture_and_called_by_the_words_before_them():
    answer = 'In this image, there are 2 "red shape" ([0, 10, 112, 84], [56,10,112,84]), 1 "cat" ([28, 0, 900, 168]).'
    found = with_text_boxes(prediction(answer)).objects
    assert [each.label for each in found] == ["red shape", "red shape", "cat"]
    assert found[0].box == pytest.approx((0, 10, 100, 84))
    # What lies beyond the picture is cut off.
    assert found[2].box == pytest.approx((25, 0, 200, 168))
    assert {(each.score, each.mask, each.patches) for each in found} == {(1.0, None, ())}


def test_a_sentence_is_the_label_of_its_box():
    found = with_text_boxes(prediction('The "the [1, 2, 3, 4] sign" refers to [4, 5, 60, 70] in this image.')).objects
    assert found[-1].box[1:] == pytest.approx((5, 60 * 200 / 224, 70))


@pytest.mark.parametrize("text", ["", "No objects.", "[1, 2, 3]", "[9, 9, 9, 12]", "[12, 9, 9, 12]", "[1, 2, 3, x]"])
def test_what_is_no_box_is_none(text):
    assert with_text_boxes(prediction(text)).objects == ()


def test_objects_of_vrts_stay_and_pictures_are_needed():
    own = PredictedObject("cat", 0.5, (0, 0, 1, 1), None, (1,), (0, 1), 0.5, complete=True)
    answered = replace(prediction("[1, 2, 30, 40]"), objects=(own,))
    assert with_text_boxes(answered) is answered
    assert with_text_boxes(Prediction("[1, 2, 30, 40]", (), ())).objects == ()


def test_what_is_written_is_read_back():
    assert [box for _, box in read_text_boxes(text_box((0.4, 9.6, 111.5, 83)))] == [(0, 10, 112, 83)]
