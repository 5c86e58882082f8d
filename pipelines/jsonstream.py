"""Large JSON files read piece by piece: memory stays at a few megabytes however large the file is."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from padt.errors import UserError
from pipelines.storage import open_input

_CHUNK = 1 << 22
# A broken value whose error lies further than this from the end of what was read is wrong, not cut by the buffer.
_SLACK = 16
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Element:
    """A piece of a JSON object: an element of one of its arrays, or a whole value that is not an array or is empty.

    Attributes:
        section: key of the top-level object.
        index: place in the array; None for a whole value.
        value: the decoded piece.
        text: the piece as it stands in the file.
    """

    section: str
    index: int | None
    value: Any
    text: str


def stream_json(url: str, what: str) -> Iterator[Element]:
    """Pieces of the JSON object in a file, in the order of the file.

    Args:
        url: path or fsspec URL; compressed files are unpacked on the way.
        what: what the file is, for messages.

    Raises:
        UserError: the file is missing, is not a JSON object, is cut off, or is not UTF-8.
    """
    with open_input(url, what) as handle, io.TextIOWrapper(handle, encoding="utf-8-sig") as text:
        yield from _Reader(text, f"{what} {url}").pieces()


class _Reader:
    """A window on the text: ``text[position:]`` has been read and not yet been used."""

    def __init__(self, stream: io.TextIOBase, name: str) -> None:
        self._stream = stream
        self._name = name
        self._text = ""
        self._position = 0
        self._dropped = 0
        self._scan = json.JSONDecoder().raw_decode

    def pieces(self) -> Iterator[Element]:
        if self._next() != "{":
            raise UserError(f"{self._name} is not a JSON object with sections such as 'images': check the file.")
        self._position += 1
        if self._next() == "}":
            return
        while True:
            section, _ = self._value()
            if not isinstance(section, str):
                raise self._wrong("a section has no name", self._dropped + self._position)
            self._take(":")
            if self._next() == "[":
                yield from self._array(section)
            else:
                value, text = self._value()
                yield Element(section, None, value, text)
            if self._take(",}") == "}":
                return

    def _array(self, section: str) -> Iterator[Element]:
        self._position += 1
        if self._next() == "]":
            self._position += 1
            yield Element(section, None, [], "[]")
            return
        index = 0
        while True:
            value, text = self._value()
            yield Element(section, index, value, text)
            if self._take(",]") == "]":
                return
            index += 1

    def _value(self) -> tuple[Any, str]:
        self._next()
        while True:
            try:
                value, end = self._scan(self._text, self._position)
            except json.JSONDecodeError as error:
                place = self._dropped + error.pos
                cut = error.pos >= len(self._text) - _SLACK or error.msg.startswith("Unterminated string")
                if cut and self._fill():
                    continue
                if cut and self._ends_within(error):
                    raise self._cut_off() from error
                raise self._wrong(error.msg, place) from error
            except RecursionError as error:
                raise self._wrong("values nested too deeply", self._dropped + self._position) from error
            if isinstance(value, int | float) and self._may_go_on(end) and self._fill():
                continue
            text = self._text[self._position : end]
            self._position = end
            return value, text

    def _may_go_on(self, end: int) -> bool:
        """Whether a number that ends there may have its rest beyond what was read (``1`` of ``1e-5``)."""
        return end >= len(self._text) - _SLACK and not self._text[end:].strip("0123456789+-.eE")

    def _ends_within(self, error: json.JSONDecodeError) -> bool:
        """Whether the file ends in the middle of a value, as against having a wrong character near its end."""
        rest = error.doc[error.pos :]
        words = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
        return (
            not rest.strip()
            or error.msg.startswith(("Unterminated string", "Invalid \\u", "Invalid \\escape"))
            or any(word.startswith(rest) for word in words)
        )

    def _take(self, wanted: str) -> str:
        found = self._next()
        if found not in wanted:
            raise self._wrong(f"{found!r} where one of {' '.join(wanted)} belongs", self._dropped + self._position)
        self._position += 1
        return found

    def _next(self) -> str:
        """The next character that is not space, without using it up."""
        while True:
            while self._position < len(self._text):
                if self._text[self._position] not in _SPACE:
                    return self._text[self._position]
                self._position += 1
            if not self._fill():
                raise self._cut_off()

    def _fill(self) -> bool:
        rest = len(self._text) - self._position
        try:
            # Growing with what is held keeps a single huge value from being scanned again and again.
            more = self._stream.read(max(_CHUNK, rest))
        except UnicodeDecodeError as error:
            raise UserError(f"{self._name} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error
        except (OSError, EOFError) as error:
            raise UserError(f"{self._name} cannot be read ({error}): the file is damaged or cut off.") from error
        self._dropped += self._position
        self._text = self._text[self._position :] + more
        self._position = 0
        return bool(more)

    def _cut_off(self) -> UserError:
        place = self._dropped + len(self._text)
        return UserError(f"{self._name} is cut off after {place:,} characters: copy or download it again.")

    def _wrong(self, reason: str, place: int) -> UserError:
        return UserError(f"{self._name} is not valid JSON at character {place:,} ({reason}): mend or export it again.")
