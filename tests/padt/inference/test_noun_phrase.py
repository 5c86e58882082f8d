"""What a caption calls a thing: its noun phrase, not the clause that it stands in."""

import pytest

from padt.inference.answer_parser import label_of
from padt.inference.noun_phrase import noun_phrase


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("is to the left of a large yellow circle", "large yellow circle"),
        ("A large red circle", "large red circle"),
        ("The image shows 1 dog", "dog"),
        ("and 2 potted plant", "potted plant"),
        ("and the two dogs", "dogs"),
        ("There is a group of people", "group of people"),
        ("to the left of trees", "trees"),
        ("in front of parked cars", "parked cars"),
        ("with a black helmet is riding a brown horse", "brown horse"),
        ("A woman wearing sunglasses", "sunglasses"),
        ("above the man's hat", "man's hat"),
        ("people sitting on wooden benches", "wooden benches"),
        ("and the red one", "red one"),
        ("the small circle is", "small circle"),
        ("The largest square is above and to the right of", "largest square"),
        ("This is the Statue of Liberty", "Statue of Liberty"),
        ("ein roter Kreis", "ein roter Kreis"),
        ("一个红色的圆", "一个红色的圆"),
        ("next to a face", "face"),
        ("on its left, two watches", "watches"),
        ("and a soda can", "soda can"),
        ("5", "5"),
        ("and", ""),
        ("is to the left of", ""),
        ("", ""),
    ],
)
def test_the_noun_phrase_at_the_end_of_a_text(text: str, phrase: str) -> None:
    assert noun_phrase(text) == phrase


@pytest.mark.parametrize(
    ("text", "previous", "label"),
    [
        (" is to the left of a large yellow circle (", "large red circle", "large yellow circle"),
        (". Next to it, a small dog (", "cat", "small dog"),
        (") and (", "cat", "cat"),
        ("a 🐈 (", "dog", "🐈"),
        (' is the "a and the b" (', "cat", "a and the b"),
    ],
)
def test_a_group_of_a_caption_is_called_by_its_noun_phrase(text: str, previous: str, label: str) -> None:
    assert label_of(text, previous) == label
