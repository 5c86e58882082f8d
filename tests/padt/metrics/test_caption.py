"""Captions: the demo promises that 95 % parse and are grounded, so the rule must be strict and hand-checked."""

import pytest

from padt.metrics.caption import CaptionAnswer, CaptionTarget, is_grounded, score_captions
from padt.metrics.records import FoundObject


def found(*box: float, complete: bool = True) -> FoundObject:
    return FoundObject("", 0.5, box, None, complete)


ONE = (found(0, 0, 10, 10),)


@pytest.mark.parametrize(
    ("text", "grounded"),
    [
        ("A cat (<|VRT_7|><|VRT_8|>) sleeps.", True),
        ("Two cats (<|VRT_7|><|VRT_8|>, <|VRT_1|>) and a dog ( <|VRT_3|> ).", True),
        ("A large (old) cat (<|VRT_7|>).", True),
        ("A cat sleeps.", False),
        ("A cat <|VRT_7|><|VRT_8|> sleeps.", False),
        ("A cat (<|VRT_7|> sleeps.", False),
        ("A cat (<|VRT_7|> and <|VRT_8|>).", False),
        ("A cat (<|VRT_7|>) and a dog (<|VRT_", False),
        ("", False),
    ],
)
def test_grounded_means_every_group_stands_in_closed_parentheses(text, grounded):
    assert is_grounded(CaptionAnswer(text, ONE, 9)) is grounded


def test_truncated_or_incomplete_or_objectless_captions_are_not_grounded():
    text = "A cat (<|VRT_7|>)."
    assert not is_grounded(CaptionAnswer(text, ONE, 9, truncated=True))
    assert not is_grounded(CaptionAnswer(text, (found(0, 0, 1, 1, complete=False),), 9))
    assert not is_grounded(CaptionAnswer(text, (), 9))


def test_grounding_precision_and_recall_by_hand():
    boxes = ((0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0))
    targets = [CaptionTarget("a", boxes, frozenset({0, 1})), CaptionTarget("b", boxes[:1], frozenset({0}))]
    # Right on the first (mentioned) and the third (there, but never mentioned); a second box on the first is too many.
    objects = (found(0, 0, 10, 9), found(0, 0, 10, 8), found(40, 0, 50, 10))
    answer = CaptionAnswer("A (<|VRT_1|>, <|VRT_2|>) B (<|VRT_3|>).", objects, 30)
    scores = score_captions(targets, {"a": answer})
    assert scores.metrics == {
        "caption_grounded": 0.5,
        "caption_tokens": 15.0,
        "caption_objects": 1.5,
        "caption_GP": pytest.approx(2 / 3),
        "caption_GR": pytest.approx(1 / 3),
    }
    assert scores.counts["captions"] == 2


def test_nothing_grounded_earns_nothing_and_ids_are_checked():
    targets = [CaptionTarget("a", (), frozenset())]
    scores = score_captions(targets, {"a": CaptionAnswer("Nothing.", (), 3)})
    assert scores.metrics["caption_GP"] == 0.0
    assert "caption_GR" not in scores.metrics
    with pytest.raises(ValueError, match="unknown samples: z"):
        score_captions(targets, {"z": CaptionAnswer("", (), 0)})
    assert score_captions([], {}).metrics == {}
