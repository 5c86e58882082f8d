"""Conversations as tokens, under a chat template that never sees a word of them.

The template is rendered around numbered slots, which are filled afterwards. So no text can end a turn, start one, or
stand for a picture.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from padt.data.conversation import Group, ImagePlace, Said, Turn, check_turns
from padt.errors import UserError

IMAGE_PAD = "<|image_pad|>"
_SLOT = "\ue000{}\ue001"
_SLOT_PATTERN = re.compile("\ue000(\\d+)\ue001")


class Vocabulary(Protocol):
    """What of a processor a layout needs."""

    @property
    def image_token_id(self) -> int:
        """Id of the image placeholder."""

    @property
    def end_token_id(self) -> int:
        """Id of the token that ends a turn."""

    vrt_offset: int

    def tokenize(self, text: str) -> list[int]:
        """Ids of plain words."""

    def template_ids(self, text: str) -> list[int]:
        """Ids of the template's own text."""

    def render_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        """Text that the chat template makes of messages."""


@dataclass
class TokenLayout:
    """A conversation in tokens.

    Attributes:
        ids: token ids; the VRT of patch ``k`` of the sample is ``V + k``, patches counted on over its images.
        supervised: for each, whether it is the assistant's.
        groups: objects, each with the position of its first VRT.
    """

    ids: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    groups: list[tuple[Group, int]] = field(default_factory=list)

    def add(self, ids: Sequence[int], supervised: bool) -> None:
        """Append tokens of one kind."""
        self.ids += ids
        self.supervised += [supervised] * len(ids)


def lay_out(vocabulary: Vocabulary, turns: Sequence[Turn], patch_counts: Sequence[int], answered: bool) -> TokenLayout:
    """Lay a conversation out in tokens.

    Args:
        vocabulary: tokenizer and template.
        turns: the conversation.
        patch_counts: patches of each image, in the order of their places.
        answered: the conversation ends with the assistant's turn. All of the assistant's turns are supervised, each up
            to the token that ends it; nothing follows the last of them. Else the conversation is a prompt, and ends
            where the answer is to start.

    Raises:
        UserError: the turns are out of order, places and images do not match, or the template loses something.
    """
    check_turns(turns, len(patch_counts), answered)
    pieces = [(n, piece) for n, turn in enumerate(turns) for piece in turn.content if not isinstance(piece, ImagePlace)]
    first, *rest = _SLOT_PATTERN.split(vocabulary.render_template(_slotted(turns), not answered))
    if [int(number) for number in rest[::2]] != list(range(len(pieces))):
        raise UserError("The chat template drops or reorders turns: use the template of Qwen2.5-VL.")
    layout, places = TokenLayout(), iter(patch_counts)
    offsets = [0, *itertools.accumulate(patch_counts)]
    _add_template(layout, vocabulary, first, places)
    for number, ((turn, piece), text) in enumerate(zip(pieces, rest[1::2], strict=True), start=1):
        spoken = turns[turn].role == "assistant"
        if isinstance(piece, str):
            layout.add(vocabulary.tokenize(piece), spoken)
        elif isinstance(piece, Said) and spoken:
            layout.add([token for token in piece.token_ids if token != vocabulary.end_token_id], spoken)
        elif not isinstance(piece, Said) and spoken:
            layout.groups.append((piece, len(layout.ids)))
            layout.add([vocabulary.vrt_offset + offsets[piece.image] + vrt for vrt in piece.vrts], spoken)
        else:
            raise UserError(f"A turn of the {turns[turn].role} holds an object or an answer: only the assistant's may.")
        start, last = len(layout.ids), number == len(pieces)
        _add_template(layout, vocabulary, text, places)
        if spoken and (last or pieces[number][0] != turn):
            end = _end_of_answer(layout, vocabulary, start)
            layout.supervised[start:end] = [True] * (end - start)
            if last and answered:
                del layout.ids[end:], layout.supervised[end:]
    if (missing := len(list(places))) > 0:
        raise UserError(f"The chat template has no place for {missing} of {len(patch_counts)} images.")
    return layout


def _add_template(layout: TokenLayout, vocabulary: Vocabulary, text: str, places: Iterator[int]) -> None:
    for number, piece in enumerate(text.split(IMAGE_PAD)):
        if number:
            count = next(places, None)
            if count is None:
                raise UserError("The chat template made more image places than there are images.")
            layout.add([vocabulary.image_token_id] * count, False)
        layout.add(vocabulary.template_ids(piece), False)


def _end_of_answer(layout: TokenLayout, vocabulary: Vocabulary, start: int) -> int:
    try:
        return layout.ids.index(vocabulary.end_token_id, start) + 1
    except ValueError as error:
        raise UserError("The chat template does not end turns with <|im_end|>: use Qwen2.5-VL's.") from error


def _slotted(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Messages for a chat template, with a numbered slot for each piece of text or group."""
    numbers = itertools.count()
    messages: list[dict[str, Any]] = []
    for turn in turns:
        parts = [None if isinstance(piece, ImagePlace) else _SLOT.format(next(numbers)) for piece in turn.content]
        content: Any = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        # Plain text where there is no picture: templates need not know parts in system turns.
        messages.append({"role": turn.role, "content": content if None in parts else "".join(map(str, parts))})
    return messages
