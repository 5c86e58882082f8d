"""Grounded captions: do they parse, is what they point at there, and is what they should mention found.

A caption is grounded when it was not cut off, holds at least one complete group of VRTs, and every group stands in
parentheses that close: ``a cat (<|VRT_7|><|VRT_8|>) beside two dogs (<|VRT_1|>, <|VRT_30|>)``.

``GP`` and ``GR`` follow VLM-R1, whose terms the paper uses without a definition: predicted and true boxes are paired
greedily, one to one, at IoU 0.5, and counts are pooled over the set. GP = paired groups / all groups, against every
object of the image; GR = paired objects / all objects, among those that at least one reference caption mentions.
Wording is not compared (CIDEr and its kin need the reference tokeniser and are not part of this module).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from padt.metrics.overlap import Box, box_iou, match_greedily
from padt.metrics.records import ObjectLike, Scores, check_ids

MATCH_IOU = 0.5
_VRT = r"<\|VRT_\d+\|>"
_GROUP = rf"(?:{_VRT})+"
_GROUNDED = re.compile(rf"\(\s*{_GROUP}(?:\s*,\s*{_GROUP})*\s*\)")


@dataclass(frozen=True)
class CaptionTarget:
    """One image with reference captions.

    Attributes:
        id: unique name of the sample.
        boxes: boxes of all objects of the image, ``xyxy`` in absolute pixels (crowd regions left out).
        mentioned: indices into ``boxes`` of the objects that at least one reference caption mentions.
    """

    id: str
    boxes: tuple[Box, ...]
    mentioned: frozenset[int]


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


def is_grounded(answer: CaptionAnswer) -> bool:
    """Whether a caption parses and is grounded (the rule is in the module's text)."""
    if answer.truncated or not answer.objects:
        return False
    if not all(getattr(found, "complete", True) for found in answer.objects):
        return False
    outside, groups = _GROUNDED.subn(" ", answer.text)
    # A half-written tag counts against the caption as well as a whole one outside parentheses.
    return groups > 0 and "<|VRT" not in outside


def score_captions(targets: Sequence[CaptionTarget], answers: Mapping[str, CaptionAnswer]) -> Scores:
    """Grounding of a set of captions; an image without an answer counts as an empty caption.

    Returns:
        ``caption_grounded`` (share of images), ``caption_GP``, ``caption_GR``, ``caption_tokens`` (mean number of
        generated tokens), ``caption_objects`` (mean number of groups).

    Raises:
        ValueError: sample ids are not unique, or an answer belongs to no image.
    """
    check_ids([target.id for target in targets], answers)
    if not targets:
        return Scores({}, {"captions": 0})
    empty = CaptionAnswer("", (), 0)
    grounded = groups = paired = mentioned = recalled = tokens = 0
    for target in targets:
        answer = answers.get(target.id, empty)
        grounded += is_grounded(answer)
        tokens += answer.tokens
        groups += len(answer.objects)
        mentioned += len(target.mentioned)
        pairs = match_greedily(box_iou([found.box for found in answer.objects], target.boxes), MATCH_IOU)
        paired += len(pairs)
        recalled += sum(column in target.mentioned for _, column in pairs)
    metrics = {
        "caption_grounded": grounded / len(targets),
        "caption_tokens": tokens / len(targets),
        "caption_objects": groups / len(targets),
        # A model that grounds nothing is given no credit for making no mistake.
        "caption_GP": paired / groups if groups else 0.0,
    }
    if mentioned:
        metrics["caption_GR"] = recalled / mentioned
    counts = {"captions": len(targets), "caption_groups": groups, "caption_objects_mentioned": mentioned}
    return Scores(metrics, counts)
