"""Reading an answer: which tokens form groups of VRTs, what each group is called, and what is wrong with it.

Parsing works on token ids, so that no label is torn at a token's border and no text can pass for a VRT.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_QUOTED = re.compile(r'"(.*)"', re.DOTALL)
_BREAK = re.compile(r"[.,;:()]")


@dataclass(frozen=True)
class AnswerGroup:
    """Consecutive VRTs of an answer: one object.

    Attributes:
        label: words in double quotes before the group, else the phrase right before it; kept for the groups that
            follow without new words (``(V V, V V)``).
        vrts: patch indices of the sample, in order of writing.
        span: token span ``(start, end)`` in the answer, end exclusive.
        image: image of the sample that the patches belong to.
        complete: False where the answer was cut off inside the group, or the group crossed into another image.
    """

    label: str
    vrts: tuple[int, ...]
    span: tuple[int, int]
    image: int
    complete: bool


@dataclass(frozen=True)
class ParsedAnswer:
    """Groups of an answer, and what was wrong in it.

    Attributes:
        groups: in order of writing.
        truncated: the answer has no end token.
        warnings: what was dropped or split, in words.
    """

    groups: tuple[AnswerGroup, ...]
    truncated: bool
    warnings: tuple[str, ...]


def parse_answer(
    token_ids: Sequence[int],
    vrt_offset: int,
    patch_counts: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    end_token_ids: Sequence[int],
) -> ParsedAnswer:
    """Find the groups of VRTs in a generated answer.

    Args:
        token_ids: the answer's ids; what follows the first end token is padding and is ignored.
        vrt_offset: id of the VRT of patch 0.
        patch_counts: patches of each image of the sample; VRT ids run on over the images.
        decode: text of a run of text ids (without special tokens).
        end_token_ids: ids that end an answer.
    """
    ids = [int(token) for token in token_ids]
    end = next((index for index, token in enumerate(ids) if token in set(end_token_ids)), None)
    truncated = end is None
    ids = ids if end is None else ids[:end]
    groups: list[AnswerGroup] = []
    warnings: list[str] = []
    label = ""
    position = 0
    while position < len(ids):
        start = position
        is_vrt = ids[start] >= vrt_offset
        while position < len(ids) and (ids[position] >= vrt_offset) == is_vrt:
            position += 1
        if not is_vrt:
            label = label_of(decode(ids[start:position]), label)
            continue
        cut = truncated and position == len(ids)
        if cut:
            warnings.append(f"the answer was cut off inside the group at token {start}")
        vrts = [token - vrt_offset for token in ids[start:position]]
        groups.extend(_split_by_image(label, vrts, start, patch_counts, cut, warnings))
    return ParsedAnswer(tuple(groups), truncated, tuple(warnings))


def label_of(text: str, previous: str) -> str:
    """The label that a stretch of text gives to the group after it.

    Quoted words win, from the first to the last quote, so that a label may itself hold quotes; then the phrase since
    the last mark; a stretch without words leaves the previous label in force.
    """
    quoted = _QUOTED.search(text)
    if quoted:
        return quoted.group(1)
    phrase = _BREAK.split(text.rstrip(" (["))[-1].strip()
    return phrase if any(letter.isalnum() for letter in phrase) else previous


def _split_by_image(label, vrts, start, patch_counts, cut, warnings) -> list[AnswerGroup]:
    parts: list[tuple[int, list[int], int]] = []
    for index, vrt in enumerate(vrts):
        image = _image_of(vrt, patch_counts)
        if image is None:
            warnings.append(f"VRT {vrt} at token {start + index} is beyond the sample's {sum(patch_counts)} patches")
        elif parts and parts[-1][0] == image and parts[-1][2] + len(parts[-1][1]) == start + index:
            parts[-1][1].append(vrt)
        else:
            parts.append((image, [vrt], start + index))
    if len({image for image, _, _ in parts}) > 1:
        warnings.append(f"the group at token {start} crosses from one image into another and was split")
    return [
        AnswerGroup(label, tuple(run), (first, first + len(run)), image, complete=not cut and len(parts) == 1)
        for image, run, first in parts
    ]


def _image_of(vrt: int, patch_counts: Sequence[int]) -> int | None:
    first = 0
    for image, count in enumerate(patch_counts):
        if first <= vrt < first + count:
            return image
        first += count
    return None
