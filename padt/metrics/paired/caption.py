"""Captions of resampled images: grounding and wording from numbers of each caption.

How rare words are, which CIDEr-D weighs by, is learnt from all images once. METEOR, a program of its own, has no
interval.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from padt.metrics.caption import CaptionAnswer, CaptionTarget, grounding_of, is_grounded, plain_caption
from padt.metrics.caption_text import ORDERS, bleu_parts, bleu_value, caption_words, cider_d_each, rouge_l
from padt.metrics.paired.resampling import Array, Measure, ratio, summed

_EMPTY = CaptionAnswer("", (), 0)


def caption_measure(
    targets: Sequence[CaptionTarget], answers: Mapping[str, CaptionAnswer], places: Sequence[int], images: int
) -> tuple[Measure, dict[str, float]]:
    """The metrics of ``padt.metrics.caption.score_captions`` but METEOR.

    Args:
        targets: of all images with captions.
        answers: captions by sample id.
        places: the image of each target.
        images: how many there are.

    Returns:
        The measure, and how good each caption is: its CIDEr-D; without reference captions, F1 of its groups.
    """
    rows = [_grounding(target, answers.get(target.id, _EMPTY)) for target in targets]
    told = [target for target in targets if target.references]
    pairs = [
        (
            caption_words(plain_caption(answers.get(target.id, _EMPTY).text)),
            [caption_words(plain_caption(text)) for text in target.references],
        )
        for target in told
    ]
    cider = dict(zip((target.id for target in told), cider_d_each(pairs), strict=True))
    for row, target in zip(rows, targets, strict=True):
        row |= {"told": target.id in cider, "cider": cider.get(target.id, 0.0), "rouge": 0.0}
        row |= dict.fromkeys(_bleu_names(), 0.0)
    by_id = dict(zip((target.id for target in targets), rows, strict=True))
    for target, (answer, references) in zip(told, pairs, strict=True):
        by_id[target.id]["rouge"] = rouge_l(answer, references)
        by_id[target.id] |= dict(zip(_bleu_names(), bleu_parts(answer, references), strict=True))
    values = {one: cider.get(one, _f1(row)) for one, row in by_id.items()}
    sums = summed(rows, places, images)

    def scores(weights: Array) -> dict[str, Array]:
        total = {name: weights @ own for name, own in sums.items()}
        number = total["captions"]
        groups = total["groups"]
        found = {
            "caption_grounded": ratio(total["grounded"], number),
            # A model that grounds nothing is given no credit for making no mistake.
            "caption_GP": np.where(groups > 0, ratio(total["paired"], groups), 0.0),
            "caption_GR": ratio(total["recalled"], total["mentioned"]),
            "caption_tokens": ratio(total["tokens"], number),
            "caption_objects": ratio(groups, number),
            "caption_ROUGE_L": ratio(total["rouge"], total["told"]),
            "caption_CIDEr_D": ratio(total["cider"], total["told"]),
        }
        parts = np.stack([total[name] for name in _bleu_names()], axis=-1)
        found["caption_BLEU_4"] = np.array(
            [bleu_value(row) if one else math.nan for row, one in zip(parts.tolist(), total["told"], strict=True)]
        )
        return found

    return Measure(scores), values


def _grounding(target: CaptionTarget, answer: CaptionAnswer) -> dict[str, float]:
    found = grounding_of(target, answer)
    return {
        "captions": 1,
        "grounded": is_grounded(answer),
        "tokens": answer.tokens,
        "groups": len(answer.objects),
        "paired": len(answer.objects) - len(found.hallucinated),
        "mentioned": len(target.mentioned),
        "recalled": len(target.mentioned) - len(found.missed),
    }


def _f1(row: Mapping[str, float]) -> float:
    below = row["groups"] + row["mentioned"]
    return 2 * row["recalled"] / below if below else 1.0


def _bleu_names() -> list[str]:
    return [f"bleu_{place}" for place in range(2 * ORDERS + 2)]
