"""Sentences by kind: a kind that fails must be seen, and no sentence may be counted twice or lost."""

import pytest

from padt.errors import UserError
from padt.metrics.sentence_kinds import compile_kinds, score_by_kind
from tests.padt.metrics.test_refer import found, target

KINDS = {"place": "left|right|topmost", "colour": "red|green"}


def test_every_sentence_is_of_the_first_kind_that_fits():
    box = (0, 0, 10, 10)
    sentences = {
        "a": "the Left red cup",
        "b": "the red cup",
        "c": "RED",
        # "left" is a word of its own before a hyphen; "bored" and "covered" hold no "red".
        "d": "the bored man left-overs are not",
        "e": "a cup",
        "f": "covered cup",
    }
    targets = [target(name, box, sentence=sentence) for name, sentence in sentences.items()]
    answers = {name: [found(box)] for name in ("a", "b", "f")}
    scores = score_by_kind(targets, answers, compile_kinds(KINDS))
    assert scores == {
        "place": {"sentences": 2, "precision_at_0.5": 0.5, "gIoU": 0.5},
        "colour": {"sentences": 2, "precision_at_0.5": 0.5, "gIoU": 0.5},
        "other": {"sentences": 2, "precision_at_0.5": 0.5, "gIoU": 0.5},
    }
    assert sum(kind["sentences"] for kind in scores.values()) == len(targets)
    assert "gIoU" not in score_by_kind(targets, answers, compile_kinds(KINDS), masks=False)["place"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"place": "(left"}, r"kinds\.yaml\.place: '\(left' is no regular expression"),
        ({"other": "cup"}, "kinds.yaml: 'other' is what sentences of no kind are called"),
    ],
)
def test_what_cannot_be_read_is_named(patterns, message):
    with pytest.raises(UserError, match=message):
        compile_kinds(patterns, "kinds.yaml")
