"""RIC's captions: text in which ``<box_id: N/>`` tags point at annotations, here turned into placeholders.

Stored captions have ``<|Obj_k|>`` placeholders, always inside parentheses: ``two dogs (<|Obj_0|>, <|Obj_1|>)``.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

PLACEHOLDER = "<|Obj_{}|>"
_TAG = r"<\s*box_id\s*:?\s*(?:[A-Za-z_]+\s*/\s*)?(\d{1,18})\s*/?\s*>"
_LIST = rf"{_TAG}(?:\s*(?:,|;|and|,\s*and)?\s*{_TAG})*"
# A list of tags with its own parentheses, or without any.
_GROUP = re.compile(rf"\(\s*{_LIST}\s*\)|{_LIST}")
_ONE = re.compile(_TAG)
_PROPER = re.compile(r"<box_id: \d+/>")
_LEFT_OVER = re.compile(r"\(?\s*<\s*/?\s*box_id[^<>()]*>?\s*\)?")
# Some captions name the id in plain parentheses, without the tag.
_BARE = re.compile(r"\(\s*(\d{1,18}(?:\s*,\s*\d{1,18})*)\s*\)")
_PLACED = re.compile(r"<\|Obj_(\d+)\|>")
_ENDS = (".", '"', "!", "?", "\u201d")


@dataclass(frozen=True)
class GroundedCaption:
    """A caption with placeholders.

    Attributes:
        text: ``<|Obj_k|>`` stands for entry k of ``ann_ids``.
        ann_ids: annotation of each placeholder; one that is named twice has two placeholders.
        repaired: tags that were malformed and could be read.
        dropped: tags that name no usable annotation of the image.
    """

    text: str
    ann_ids: tuple[int, ...]
    repaired: int
    dropped: int


def is_finished(text: str) -> bool:
    """Whether a caption ends as a sentence does. The annotator's cut-off captions do not."""
    return text.rstrip().endswith(_ENDS)


def ground(text: str, known: Collection[int]) -> GroundedCaption:
    """Turn the tags of a caption into placeholders.

    Tags that name no known annotation are taken out, as are tags that cannot be read.

    Args:
        text: caption with ``<box_id: N/>`` tags, alone or in groups such as ``(<box_id: 4/>, <box_id: 5/>)``; the
            published malformed variants (``<box_id: ann/4/>``, ``(4)``) are understood.
        known: ids of the annotations that the image has.
    """
    ann_ids: list[int] = []
    repaired = dropped = 0

    def placeholders(numbers: list[str]) -> str:
        nonlocal dropped
        kept = [int(number) for number in numbers if int(number) in known]
        dropped += len(numbers) - len(kept)
        ann_ids.extend(kept)
        first = len(ann_ids) - len(kept)
        return ", ".join(PLACEHOLDER.format(first + place) for place in range(len(kept)))

    def replace_group(match: re.Match[str]) -> str:
        nonlocal repaired
        found = match.group(0)
        repaired += len(_ONE.findall(found)) - len(_PROPER.findall(found))
        inside = placeholders(_ONE.findall(found))
        return f"({inside})" if inside else ""

    def replace_bare(match: re.Match[str]) -> str:
        nonlocal repaired
        numbers = re.findall(r"\d+", match.group(1))
        # A number in parentheses may be a number: it is an id only where the image has every one of them.
        if not all(int(number) in known for number in numbers):
            return match.group(0)
        repaired += len(numbers)
        return "(" + ", ".join(f"<box_id: {number}/>" for number in numbers) + ")"

    text = _GROUP.sub(replace_group, _BARE.sub(replace_bare, text))
    text, unreadable = _LEFT_OVER.subn("", text)
    return GroundedCaption(_tidy(text), tuple(ann_ids), repaired, dropped + unreadable)


def tagged(text: str, ann_ids: Sequence[int]) -> str:
    """A stored caption with ``<box_id: N/>`` tags where its placeholders are: the way back from ``ground``."""
    return _PLACED.sub(lambda match: f"<box_id: {ann_ids[int(match[1])]}/>", text)


def _tidy(text: str) -> str:
    """Mend the spaces that a dropped tag leaves behind."""
    keep = re.sub(r"\(\s*\)", "", text)
    keep = re.sub(r"\s+([,.;:!?])", r"\1", keep)
    return re.sub(r"\s{2,}", " ", keep).strip()
