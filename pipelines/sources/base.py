"""The form in which every source hands over what it read.

A source is read twice, piece by piece: once for its header (images and categories), from which the shards are planned,
and once for its pieces, which are sent to the shard of their image without being kept. So no process ever holds a whole
annotation file, and a shard's task sees its own images' pieces only.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pipelines.dataset.losses import Notes
from pipelines.dataset.manifest import Category

Kind = Literal["image", "object", "reference", "caption", "conversation"]


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image that a source lists.

    Attributes:
        image_id: as the source writes it.
        file_name: as the source writes it; empty for a conversation without pictures.
        width, height: in pixels, as the source says; None where it does not.
        more: file names of the second and later pictures of a conversation.
        embedded: bytes of the pictures where they stand in the source itself; the conversation's piece has them then.
    """

    image_id: str
    file_name: str
    width: int | None
    height: int | None
    more: tuple[str, ...] = ()
    embedded: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that belongs to an image.

    Attributes:
        image_id: of the image, as ``ImageEntry`` has it.
        kind: ``object``, ``reference``, ``caption`` or ``conversation``.
        text: the piece in JSON. Objects are COCO annotations, or have ``box`` (xyxy, normalised to [0, 1]) in place of
            ``bbox``; references ``{"ref_id", "sent_id", "text", "ann_ids"}``; captions ``{"id", "text"}`` or,
            with tags to be resolved, ``{"id", "grounded"}``; conversations ``{"messages"}`` as shards store them,
            and ``pictures`` (base64) where they are embedded.
    """

    image_id: str
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that is left out, as ``pipelines.dataset.schema.REJECT_SCHEMA`` stores it.

    Attributes:
        image_id: of the image that it belongs to; empty where that is unknown.
        kind: what it is.
        reason: one of ``pipelines.dataset.schema.REJECT_REASONS``.
        detail: what exactly is wrong, for people.
        ann_id: id of the annotation, where it is one or refers to one.
        item_id: id of the sentence or caption, where it is one.
    """

    image_id: str
    kind: Kind
    reason: str
    detail: str = ""
    ann_id: int | None = None
    item_id: int | None = None


@dataclass
class Header:
    """What a source says before its pieces.

    Attributes:
        images: entries in the order of the file, ids unique.
        categories: classes in the order of the file.
        rejects: images that cannot be used.
        repairs: what was put right on the way, by repair.
        notes: what looks wrong but was kept.
        ambiguous: names of the files, by image id, where several files have one: nobody knows whose the pieces are.
    """

    images: list[ImageEntry] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=Notes)
    ambiguous: dict[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A data set in some format on disk."""

    def files(self) -> list[tuple[str, str]]:
        """Role (``annotations``, ``references``, ``captions``) and URL of every file that is read."""

    def header(self) -> Header:
        """Images and categories.

        Raises:
            UserError: a file is missing, cut off, or not of the format.
        """

    def pieces(self) -> Iterator[Piece | Reject]:
        """Everything that belongs to an image, in the order of the files.

        Raises:
            UserError: as ``header``.
        """


def whole_number(value: Any) -> int | None:
    """The value as an integer where it is one (``7``, ``7.0``; not ``True``, not text), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    number = int(value)
    return number if -(2**63) <= number < 2**63 else None


def number_of(value: Any) -> int | None:
    """As ``whole_number``, but text of digits is a number too: some tools write all ids as text."""
    if isinstance(value, str) and value.isascii() and value.strip().isdigit() and len(value) <= 19:
        value = int(value)
    return whole_number(value)


def annotation_id(value: Any) -> int | None:
    """Number of an annotation: its id where that is one (``number_of``), else one that its id in text always gives."""
    number = number_of(value)
    if number is None and isinstance(value, str) and value.strip():
        digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        # 18 digits: what a 64-bit column and a caption's tag can hold.
        number = int.from_bytes(digest) % 10**18
    return number


def is_file_name(value: Any) -> bool:
    """Whether a value can be the name of a file: text that can be written as UTF-8, without NUL."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def identifier(value: Any) -> str | None:
    """An id as text where it can be one (a whole number, or text in one line, without blanks around it), else None."""
    if isinstance(value, str):
        value = value.strip()
        return value if value and value == plain_text(value) else None
    number = whole_number(value)
    return None if number is None else str(number)


def plain_text(text: str) -> str:
    """Text with single spaces and without halves of surrogate pairs, which cannot be stored as UTF-8."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
