"""Reading an answer: which tokens form groups of VRTs, what each group is called, and what is wrong with it.

Parsing works on token ids, so that no label is torn at a token's border and no text can pass for a VRT. It goes token
by token: an answer that is still being written is read the same way as a whole one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unicodedata import category

from padt.inference.noun_phrase import noun_phrase

# The wording of an answer to a sentence: whatever stands inside is the sentence.
_REFERS = re.compile(r'The "(.*)" refers to\s*', re.DOTALL)
# The last counted class, as in ``1 "cat" and 1 "dog" (``.
_COUNTED = re.compile(r'.*\b\d+ "(.*)"', re.DOTALL)
_OPENING = frozenset(" \t\n([")
_CLOSING = frozenset(" \t\n()[],.;:!?")
_BREAK = re.compile(r"[.,;:()]")


@dataclass(frozen=True)
class AnswerGroup:
    """Consecutive VRTs of an answer: one object.

    Attributes:
        label: words in double quotes before the group, else the noun phrase right before it (``noun_phrase``); kept
            for the groups that follow without new words (``(V V, V V)``).
        vrts: patch indices of the sample, in order of writing.
        span: token span ``(start, end)`` in the answer, end exclusive.
        image: image of the sample that the patches belong to.
        complete: False where the answer was cut off inside the group, the group crossed into another image, or a VRT
            of it was dropped.
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


class AnswerParser:
    """Reads an answer as it is written.

    Attributes:
        ids: the answer so far, without its end token.
        ended: the end token has come; what follows it is padding and is ignored.
        vrt_offset: id of the VRT of patch 0.
    """

    def __init__(
        self,
        vrt_offset: int,
        patch_counts: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        end_token_ids: Sequence[int],
    ) -> None:
        """Start reading.

        Args:
            vrt_offset: id of the VRT of patch 0.
            patch_counts: patches of each image of the sample; VRT ids run on over the images.
            decode: text of a run of text ids (without special tokens).
            end_token_ids: ids that end an answer.
        """
        self.ids: list[int] = []
        self.ended = False
        self.vrt_offset = vrt_offset
        self._patch_counts = tuple(patch_counts)
        self._decode = decode
        self._ends = frozenset(end_token_ids)
        self._run_start = 0
        self._label = ""
        self._groups: list[AnswerGroup] = []
        self._warnings: list[str] = []

    @property
    def in_group(self) -> bool:
        """Whether the last token is a VRT, so that the group may go on."""
        return bool(self.ids) and self.ids[-1] >= self.vrt_offset

    def feed(self, token: int) -> list[AnswerGroup]:
        """Read one more token; returns the groups that it closes."""
        if self.ended:
            return []
        if token in self._ends:
            self.ended = True
            return self._close_group(cut=False)
        closed: list[AnswerGroup] = []
        if not self.ids or (token >= self.vrt_offset) != self.in_group:
            if self.in_group:
                closed = self._close_group(cut=False)
            elif self.ids:
                self._label = label_of(self._decode(self.ids[self._run_start :]), self._label)
            self._run_start = len(self.ids)
        self.ids.append(token)
        return closed

    def finish(self) -> list[AnswerGroup]:
        """No more tokens come: returns the group that was cut off, if there is one."""
        return [] if self.ended else self._close_group(cut=True)

    def result(self) -> ParsedAnswer:
        """All groups so far, and what was wrong."""
        return ParsedAnswer(tuple(self._groups), not self.ended, tuple(self._warnings))

    def _close_group(self, cut: bool) -> list[AnswerGroup]:
        if not self.in_group:
            return []
        if cut:
            self._warnings.append(f"the answer was cut off inside the group at token {self._run_start}")
        vrts = [token - self.vrt_offset for token in self.ids[self._run_start :]]
        groups = self._split_by_image(vrts, self._run_start, cut)
        self._groups += groups
        return groups

    def _split_by_image(self, vrts: list[int], start: int, cut: bool) -> list[AnswerGroup]:
        """Runs of VRTs of one image each, at token ``start`` and after; VRTs of no image are left out."""
        parts: list[tuple[int, list[int], int]] = []
        for place, vrt in enumerate(vrts, start):
            image = _image_of(vrt, self._patch_counts)
            if image is None:
                patches = sum(self._patch_counts)
                self._warnings.append(f"VRT {vrt} at token {place} is beyond the sample's {patches} patches")
            elif parts and parts[-1][0] == image and parts[-1][2] + len(parts[-1][1]) == place:
                parts[-1][1].append(vrt)
            else:
                parts.append((image, [vrt], place))
        if len({image for image, _, _ in parts}) > 1:
            self._warnings.append(f"the group at token {start} crosses from one image into another and was split")
        return [
            AnswerGroup(
                self._label, tuple(run), (first, first + len(run)), image, complete=not cut and len(run) == len(vrts)
            )
            for image, run, first in parts
        ]


def parse_answer(
    token_ids: Sequence[int],
    vrt_offset: int,
    patch_counts: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    end_token_ids: Sequence[int],
) -> ParsedAnswer:
    """Find the groups of VRTs in a whole answer; see :class:`AnswerParser` for the arguments."""
    parser = AnswerParser(vrt_offset, patch_counts, decode, end_token_ids)
    for token in token_ids:
        parser.feed(int(token))
    parser.finish()
    return parser.result()


def label_of(text: str, previous: str) -> str:
    """The label that a stretch of text gives to the group after it.

    Quoted words win: the last that are quoted, with whatever quotes stand inside of them; then the noun phrase at the
    end of what came since the last mark; a stretch without a noun leaves the previous label in force.
    """
    quoted = _last_quoted(text)
    if quoted is not None:
        return quoted
    phrase = noun_phrase(_BREAK.split(text.rstrip(" (["))[-1])
    # Pictures are words too; torn characters show as one.
    return phrase if any(letter.isalnum() or category(letter) == "So" for letter in phrase) else previous


def _last_quoted(text: str) -> str | None:
    """What stands between the last quote and the one that opens it; None without two quotes."""
    sentence = _REFERS.fullmatch(text.lstrip())
    if sentence:
        return sentence[1]
    places = [place for place, letter in enumerate(text) if letter == '"']
    if len(places) < 2:
        return None
    end, depth = places[-1], 1
    for place in reversed(places[:-1]):
        before, after = text[place - 1 : place] or " ", text[place + 1]
        if before in _OPENING and after not in _OPENING:
            depth -= 1
        elif before not in _OPENING and after in _CLOSING:
            # Another pair inside, or a sign as in 12" ruler.
            depth += 1
        if depth == 0:
            return text[place + 1 : end]
    counted = _COUNTED.match(text)
    return counted[1] if counted else text[places[0] + 1 : end]


def _image_of(vrt: int, patch_counts: Sequence[int]) -> int | None:
    first = 0
    for image, count in enumerate(patch_counts):
        if first <= vrt < first + count:
            return image
        first += count
    return None
