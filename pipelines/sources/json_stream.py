"""Large JSON files read piece by piece: memory stays at a few megabytes however large the file is."""

import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from padt.errors import UserError
from pipelines.io.reading import open_input
from pipelines.io.transport import transport_errors
from pipelines.sources.layouts import list_hint

_CHUNK = 1 << 22
# A broken value whose error lies further than this from the end of what was read is wrong, not cut by the buffer.
_SLACK = 16
# A single value (one image, one annotation, one line) of more characters is no annotation; held whole, it would fill
# the memory.
_MOST = 1 << 28
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


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file of JSON lines, counted from 1."""

    number: int
    value: Any


def stream_lines(url: str, what: str) -> Iterator[Line]:
    """Values of a file of JSON lines, in order; empty lines are passed over.

    Args:
        url: path or fsspec URL; compressed files are unpacked on the way.
        what: what the file is, for messages.

    Raises:
        UserError: the file is missing, is not UTF-8, or a line is not JSON (the last one of a file that is cut off).
    """
    name = f"{what} {url}"
    with open_input(url, what) as handle, io.TextIOWrapper(handle, encoding="utf-8-sig") as text:
        number = 0
        while line := _read(lambda: text.readline(_MOST), name):
            number += 1
            if len(line) == _MOST:
                raise UserError(f"{name} has more than {_MOST:,} characters in line {number}: check the file.")
            if line.isspace():
                continue
            try:
                yield Line(number, json.loads(line))
            except (RecursionError, ValueError) as error:
                raise UserError(
                    f"{name} is not JSON in line {number} ({error}): each line must be a JSON value of its own; where "
                    "it is the last line, the file is cut off."
                ) from error


def stream_records(url: str, what: str) -> Iterator[Line]:
    """Elements of a JSON array, or values of a file of JSON lines, in order; numbers are their places, from 1.

    Args:
        url: path or fsspec URL; compressed files are unpacked on the way.
        what: what the file is, for messages.

    Raises:
        UserError: the file is missing, is not UTF-8, or is neither; see also ``stream_lines``.
    """
    with open_input(url, what) as handle, io.TextIOWrapper(handle, encoding="utf-8-sig") as text:
        reader = _Reader(text, f"{what} {url}")
        if reader.is_array():
            yield from (Line(number, value) for number, value in enumerate(reader.array(), start=1))
            return
    yield from stream_lines(url, what)


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
        if not self._fill() and not self._text:
            raise UserError(f"{self._name} is empty: copy or download it again.")
        if self._next() != "{":
            raise UserError(f"{self._name} is not a JSON object with sections such as 'images'.{self._other_kind()}")
        self._position += 1
        if self._next() == "}":
            self._position += 1
            self._end()
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
                self._end()
                return

    def _other_kind(self) -> str:
        """What a file is that is no JSON object."""
        if self._text.startswith(("(l", "(d")):
            return _PICKLE_HINT
        if self._next() == "<":
            return " It looks like XML, as CVAT and Pascal VOC write it: export the project in COCO's format."
        if self._next() != "[":
            return " Check the file."
        try:
            first = next(self._array("")).value
        except UserError:
            first = None
        return list_hint(first) or " Check the file."

    def is_array(self) -> bool:
        """Whether the file holds a JSON array."""
        if not self._fill() and not self._text:
            raise UserError(f"{self._name} is empty: copy or download it again.")
        return self._next() == "["

    def array(self) -> Iterator[Any]:
        """Elements of the array that the file is."""
        yield from (element.value for element in self._array("") if element.index is not None)
        self._end()

    def _end(self) -> None:
        """Make sure that nothing but space follows."""
        while not self._text[self._position :].strip(_SPACE):
            self._position = len(self._text)
            if not self._fill():
                return
        raise UserError(
            f"{self._name} goes on after its JSON object, at character {self._dropped + self._position:,}: give one "
            "object. JSON lines are read by `padt prepare released` and `padt prepare messages`."
        )

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
                if cut and len(self._text) - self._position > _MOST:
                    raise self._wrong(f"a single value has more than {_MOST:,} characters", place) from error
                if cut and self._fill():
                    continue
                if cut and self._ends_within(error):
                    raise self._cut_off() from error
                raise self._wrong(error.msg, place) from error
            except (RecursionError, ValueError) as error:
                # Such as: lists in lists without end, and numbers of thousands of digits.
                raise self._wrong(str(error), self._dropped + self._position) from error
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
        # Growing with what is held keeps a single huge value from being scanned again and again.
        more = _read(lambda: self._stream.read(max(_CHUNK, rest)), self._name)
        self._dropped += self._position
        self._text = self._text[self._position :] + more
        self._position = 0
        return bool(more)

    def _cut_off(self) -> UserError:
        place = self._dropped + len(self._text)
        return UserError(f"{self._name} is cut off after {place:,} characters: copy or download it again.")

    def _wrong(self, reason: str, place: int) -> UserError:
        return UserError(f"{self._name} is not valid JSON at character {place:,} ({reason}): mend or export it again.")


_PICKLE_HINT = " It looks like a pickle, as RefCOCO's references are: give it as --references."
_MAGIC = {
    b"\x80": _PICKLE_HINT,
    b"PK": " It looks like a zip: name it so (.zip), or unpack it.",
    b"\x1f\x8b": " It looks like gzip: name it so (.gz), or unpack it.",
    b"PAR1": " It looks like Parquet: export it as JSON.",
}
_DAMAGED: tuple[type[Exception], ...] = (EOFError, zlib.error, zipfile.BadZipFile, lzma.LZMAError)


def _read(read: Callable[[], str], name: str) -> str:
    """What ``read`` gives, with its errors in a sentence."""
    try:
        return read()
    except UnicodeDecodeError as error:
        hint = next((hint for start, hint in _MAGIC.items() if error.object.startswith(start)), " Save it as UTF-8.")
        raise UserError(f"{name} is not UTF-8 text ({error.reason}).{hint}") from error
    except transport_errors() + _DAMAGED as error:
        raise UserError(f"{name} cannot be read ({error}): the file is damaged or cut off.") from error
