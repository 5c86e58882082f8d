"""Grounded captions: do they parse, is what they point at there, and is what they should mention found.

A caption is grounded when it was not cut off, holds at least one complete group of VRTs, and every group stands in
parentheses that close: ``a cat (<|VRT_7|><|VRT_8|>) beside two dogs (<|VRT_1|>, <|VRT_30|>)``.

``GP`` and ``GR`` follow VLM-R1, whose terms the paper uses without a definition: predicted and true boxes are paired
greedily, one to one, at IoU 0.5, and counts are pooled over the set. GP = paired groups / all groups, against every
object of the image; GR = paired objects / all objects, among those that at least one reference caption mentions.
Wording is compared without the groups, by ``padt.metrics.caption_text``, on images with reference captions.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from padt.metrics.caption_text import meteor_lacks, score_meteor, score_wording
from padt.metrics.overlap import Box, box_iou, match_greedily
from padt.metrics.records import ObjectLike, Scores, check_ids

logger = logging.getLogger(__name__)

MATCH_IOU = 0.5
_VRT = r"<\|(?:VRT|Obj)_\d+\|>"
_GROUP = rf"(?:{_VRT})+"
_GROUNDED = re.compile(rf"\(\s*{_GROUP}(?:\s*,\s*{_GROUP})*\s*\)")
# What a caption that is not well grounded may hold besides: groups without parentheses, and a tag that was cut off.
_LEFT_OVER = re.compile(rf"{_VRT}|<\|(?:VRT|Obj)[^>]*$")


@dataclass(frozen=True)
class CaptionTarget:
    """One image with reference captions.

    Attributes:
        id: unique name of the sample.
        boxes: boxes of all objects of the image, ``xyxy`` in absolute pixels (crowd regions left out).
        mentioned: indices into ``boxes`` of the objects that at least one reference caption mentions.
        references: reference captions, with or without groups or the placeholders ``<|Obj_k|>`` of prepared sets.
    """

    id: str
    boxes: tuple[Box, ...]
    mentioned: frozenset[int]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionAnswer:
    """One generated caption.

    Attributes:
        text: the answer, VRTs written ``<|VRT_k|>``.
        objects: its groups as decoded objects.
        tokens: generated tokens.
        truncated: generation ended at its limit, not at the end of the answer.
    """

    text: str
    objects: tuple[ObjectLike, ...]
    tokens: int
    truncated: bool = False


@dataclass(frozen=True)
class CaptionGrounding:
    """Which groups of a caption fit which objects.

    Attributes:
        pairs: place of a group in the answer, place of its object among the target's boxes.
        hallucinated: places of groups that fit no object.
        missed: places of objects that the references mention and no group fits.
    """

    pairs: tuple[tuple[int, int], ...]
    hallucinated: tuple[int, ...]
    missed: tuple[int, ...]


def plain_caption(text: str) -> str:
    """A caption's words, without its groups of VRTs or placeholders."""
    return " ".join(_LEFT_OVER.sub(" ", _GROUNDED.sub(" ", text)).split())


def is_grounded(answer: CaptionAnswer) -> bool:
    """Whether a caption parses and is grounded (the rule is in the module's text)."""
    if answer.truncated or not answer.objects:
        return False
    if not all(getattr(found, "complete", True) for found in answer.objects):
        return False
    outside, groups = _GROUNDED.subn(" ", answer.text)
    # A half-written tag counts against the caption as well as a whole one outside parentheses.
    return groups > 0 and "<|VRT" not in outside


def grounding_of(target: CaptionTarget, answer: CaptionAnswer) -> CaptionGrounding:
    """Pair the groups of a caption with objects, greedily and one to one, at IoU ``MATCH_IOU``."""
    pairs = match_greedily(box_iou([found.box for found in answer.objects], target.boxes), MATCH_IOU)
    groups, objects = {row for row, _ in pairs}, {column for _, column in pairs}
    return CaptionGrounding(
        tuple(pairs),
        tuple(place for place in range(len(answer.objects)) if place not in groups),
        tuple(sorted(target.mentioned - objects)),
    )


def score_captions(targets: Sequence[CaptionTarget], answers: Mapping[str, CaptionAnswer]) -> Scores:
    """Grounding of a set of captions; an image without an answer counts as an empty caption.

    Returns:
        Metrics: ``caption_grounded`` (share of images), ``caption_GP``, ``caption_GR``, ``caption_tokens`` and
        ``caption_objects`` (mean numbers of generated tokens and of groups), and those of ``score_wording`` over images
        with reference captions. Counts: among others ``caption_hallucinated``, groups that fit no object, and
        ``caption_missed``, objects of the references that no group fits.

    Raises:
        ValueError: sample ids are not unique, or an answer belongs to no image.
    """
    check_ids([target.id for target in targets], answers)
    if not targets:
        return Scores({}, {"captions": 0})
    empty = CaptionAnswer("", (), 0)
    grounded = groups = hallucinated = mentioned = missed = tokens = 0
    for target in targets:
        answer = answers.get(target.id, empty)
        grounded += is_grounded(answer)
        tokens += answer.tokens
        groups += len(answer.objects)
        mentioned += len(target.mentioned)
        found = grounding_of(target, answer)
        hallucinated += len(found.hallucinated)
        missed += len(found.missed)
    metrics = {
        "caption_grounded": grounded / len(targets),
        "caption_tokens": tokens / len(targets),
        "caption_objects": groups / len(targets),
        # A model that grounds nothing is given no credit for making no mistake.
        "caption_GP": (groups - hallucinated) / groups if groups else 0.0,
    }
    if mentioned:
        metrics["caption_GR"] = (mentioned - missed) / mentioned
    counts = {
        "captions": len(targets),
        "caption_groups": groups,
        "caption_hallucinated": hallucinated,
        "caption_objects_mentioned": mentioned,
        "caption_missed": missed,
    }
    metrics |= _wording(targets, answers)
    return Scores(metrics, counts)


def _wording(targets: Sequence[CaptionTarget], answers: Mapping[str, CaptionAnswer]) -> dict[str, float]:
    references = {one.id: [plain_caption(text) for text in one.references] for one in targets if one.references}
    written = {one: plain_caption(answers[one].text) for one in references if one in answers}
    metrics = score_wording(written, references)
    if not references:
        return metrics
    lacking = meteor_lacks()
    if lacking is None:
        metrics["caption_METEOR"] = score_meteor(written, references)
    else:
        logger.debug("%s", lacking)
    return metrics
