"""Wording of captions: the figures of the COCO scorers, without their Java."""

import json
import random
from pathlib import Path

import pytest

from padt.metrics.caption import CaptionAnswer, CaptionTarget, plain_caption, score_captions
from padt.metrics.caption_text import caption_words, meteor_lacks, score_meteor, score_wording

# Captions of ours, with what pycocoevalcap 1.2 made of them (Java 17; tokeniser, BLEU, ROUGE, CIDEr, METEOR).
RECORDED = json.loads((Path(__file__).parent / "caption_scores.json").read_text("utf-8"))


def test_words_are_those_of_the_original_tokeniser() -> None:
    for one, texts in RECORDED["references"].items():
        assert [" ".join(caption_words(text)) for text in texts] == RECORDED["reference_words"][one]
        assert " ".join(caption_words(RECORDED["answers"][one])) == RECORDED["answer_words"][one]


def test_scores_are_those_of_the_original_scorers() -> None:
    found = score_wording(RECORDED["answers"], RECORDED["references"])
    assert found == pytest.approx({name: RECORDED["scores"][name] for name in found}, abs=1e-9)
    assert set(found) == {"caption_BLEU_4", "caption_ROUGE_L", "caption_CIDEr_D"}


@pytest.mark.skipif(meteor_lacks() is not None, reason="METEOR needs pycocoevalcap and Java")
def test_meteor_is_the_original() -> None:
    found = score_meteor(RECORDED["answers"], RECORDED["references"])
    assert found == pytest.approx(RECORDED["scores"]["caption_METEOR"], abs=1e-6)


def test_the_order_of_images_and_references_does_not_matter() -> None:
    names = list(RECORDED["references"])
    random.Random(0).shuffle(names)
    turned = {one: RECORDED["references"][one][::-1] for one in names}
    first = score_wording(RECORDED["answers"], RECORDED["references"])
    assert score_wording(RECORDED["answers"], turned) == pytest.approx(first)


def test_a_copy_is_perfect_and_nothing_is_worth_nothing() -> None:
    words = ("cup", "pan", "jug")
    references = {word: [f"the {word} stands on a {word} table"] for word in words}
    copied = score_wording({one: texts[0] for one, texts in references.items()}, references)
    assert copied == pytest.approx({"caption_BLEU_4": 1, "caption_ROUGE_L": 1, "caption_CIDEr_D": 10})
    silent = score_wording({}, references)
    assert silent == pytest.approx(dict.fromkeys(silent, 0), abs=1e-9)
    assert score_wording({}, {}) == {}


def test_captions_of_no_image_and_images_without_reference_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown samples: b"):
        score_wording({"b": "x"}, {"a": ["x"]})
    with pytest.raises(ValueError, match="without a reference caption: a"):
        score_wording({}, {"a": []})


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a cat (<|VRT_7|><|VRT_8|>) beside two dogs (<|VRT_1|>, <|VRT_30|>).", "a cat beside two dogs ."),
        ("a cat (<|Obj_0|>) sleeps", "a cat sleeps"),
        ("a cat <|VRT_7|> (black) <|VRT_", "a cat (black)"),
        ("no groups", "no groups"),
    ],
)
def test_groups_are_no_words(text: str, plain: str) -> None:
    assert plain_caption(text) == plain


def test_wording_counts_on_images_with_references_only() -> None:
    targets = [
        CaptionTarget("a", (), frozenset(), ("a red cup (<|Obj_0|>) on a table",)),
        CaptionTarget("b", ((0, 0, 9, 9),), frozenset({0})),
    ]
    answers = {"a": CaptionAnswer("A red cup (<|VRT_3|>) on a table.", (), 9), "b": CaptionAnswer("anything", (), 2)}
    scores = score_captions(targets, answers)
    assert scores.metrics["caption_BLEU_4"] == pytest.approx(1)
    assert (scores.counts["caption_missed"], scores.counts["caption_hallucinated"]) == (1, 0)
    assert "caption_BLEU_4" not in score_captions(targets[1:], {}).metrics
