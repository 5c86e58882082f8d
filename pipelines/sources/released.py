"""The JSON lines that the authors of PaDT published: one question about one image in each line.

A line holds ``id``, ``image`` (file name), ``conversations`` (the question), ``answer_template`` (the answer, with
``<|Obj_k|>`` for entry k of the objects) and ``objects``: ``bbox`` (xyxy, normalised to [0, 1]), ``rle``, ``area``,
``iscrowd``, ``label`` and ``patches``. Lines about the same image become one row: detection gives its objects their
labels, a sentence becomes a reference, a description a caption. Patches are computed anew from the masks.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from padt.data.tasks import asked
from padt.errors import UserError
from pipelines.dataset.manifest import Category
from pipelines.sources.base import (
    Header,
    ImageEntry,
    Piece,
    Reject,
    identifier,
    is_file_name,
    plain_text,
    whole_number,
)
from pipelines.sources.json_stream import Line, stream_lines

_LINES = "File of JSON lines"
UNLABELLED = "object"
"""Category of objects that no detection line names."""

_PLACEHOLDER = re.compile(r"<\|Obj_(\d{1,9})\|>")
_COCO_NAME = re.compile(r"^(?:COCO_\w+_)?(\d{12})$")


@dataclass(frozen=True)
class _Question:
    """What a line asks: ``task`` is ``detect``, ``refer`` or ``caption``."""

    task: str
    sentence: str = ""
    classes: tuple[str, ...] = ()


@dataclass
class _Summary:
    """What the whole file says: image ids by file name, object numbers by content, labels by number."""

    header: Header
    image_ids: dict[str, str]
    numbers: dict[bytes, int]
    labels: dict[int, str]


@dataclass(frozen=True)
class ReleasedSource:
    """Images, objects, sentences and captions of a published file of JSON lines.

    An object has no id there: what has the same box and mask in the same image is one object, numbered from 1 in the
    order of the file. An image's id is its line's ``id`` where that tells images apart, else its file name.

    Attributes:
        annotations: URL of the file.
    """

    annotations: str

    def files(self) -> list[tuple[str, str]]:
        """See ``Source``."""
        return [("annotations", self.annotations)]

    def header(self) -> Header:
        """See ``Source``."""
        return self._summary.header

    def pieces(self) -> Iterator[Piece | Reject]:
        """See ``Source``."""
        summary = self._summary
        category_ids = {category.name: category.id for category in summary.header.categories}
        given: set[int] = set()
        for line in _usable_lines(self.annotations, []):
            image_id = summary.image_ids[line.value["image"]]
            ann_ids = [_number(item, line.value["image"], summary.numbers) for item in line.value["objects"]]
            for item, number in zip(line.value["objects"], ann_ids, strict=True):
                if number not in given:
                    given.add(number)
                    label = summary.labels.get(number, UNLABELLED)
                    yield Piece(image_id, "object", json.dumps(_annotation(item, number, category_ids[label])))
            yield from _asked(line, image_id, ann_ids)

    @cached_property
    def _summary(self) -> _Summary:
        header = Header()
        line_ids: dict[str, str | None] = {}
        numbers: dict[bytes, int] = {}
        labels: dict[int, str] = {}
        names: dict[str, None] = {}
        for line in _usable_lines(self.annotations, header.rejects):
            name, line_id = line.value["image"], identifier(line.value.get("id"))
            line_ids[name] = line_id if line_ids.get(name, line_id) == line_id else None
            question = _question(line.value)
            names.update(dict.fromkeys(question.classes if question else ()))
            for item in line.value["objects"]:
                number = _number(item, name, numbers)
                label = plain_text(str(item.get("label") or ""))
                if question is not None and question.task == "detect" and label:
                    labels.setdefault(number, label)
                    names[label] = None
                elif number not in labels:
                    names[UNLABELLED] = None
        if not line_ids:
            raise UserError(
                f"{_LINES} {self.annotations} has no line with 'image', 'objects' and 'answer_template': give a file "
                "of the released PaDT data."
            )
        image_ids = _image_ids(line_ids)
        header.images = [ImageEntry(image_ids[name], name, None, None) for name in line_ids]
        header.categories = [Category(number, name) for number, name in enumerate(names, start=1)]
        return _Summary(header, image_ids, numbers, labels)


def _usable_lines(url: str, rejects: list[Reject]) -> Iterator[Line]:
    """The lines with all that is needed; the others are added to the rejects."""
    for line in stream_lines(url, _LINES):
        value = line.value
        objects = value.get("objects") if isinstance(value, dict) else None
        if (
            isinstance(objects, list)
            and all(isinstance(item, dict) for item in objects)
            and isinstance(value.get("answer_template"), str)
            and is_file_name(value.get("image"))
        ):
            yield line
        else:
            detail = f"line {line.number} lacks 'image', 'objects' or 'answer_template'"
            rejects.append(Reject("", "image", "image_malformed", detail))


def _question(value: Mapping[str, Any]) -> _Question | None:
    turns = value.get("conversations")
    first = turns[0] if isinstance(turns, list) and turns else None
    text = first.get("value") if isinstance(first, dict) else None
    if not isinstance(text, str):
        return None
    found = asked(text)
    if found is None:
        return None
    task, words = found
    if task == "detect":
        return _Question(task, classes=tuple(plain_text(name) for name in words))
    return _Question(task, sentence=words or "")


def _asked(line: Line, image_id: str, ann_ids: list[int]) -> Iterator[Piece | Reject]:
    """The reference or caption of a line; a detection line has none, its objects say it all."""
    question, answer = _question(line.value), line.value["answer_template"]
    if question is None:
        yield Reject(image_id, "conversation", "question_unknown", f"line {line.number}: {answer[:100]}")
    elif question.task == "refer":
        named = [int(number) for number in _PLACEHOLDER.findall(answer)]
        if any(number >= len(ann_ids) for number in named):
            yield Reject(image_id, "reference", "object_missing", f"line {line.number}", item_id=line.number)
            return
        content: dict[str, Any] = {"text": question.sentence, "ann_ids": [ann_ids[number] for number in named]}
        for name in ("ref_id", "sent_id"):
            own = whole_number(line.value.get(name))
            content[name] = line.number if own is None else own
        yield Piece(image_id, "reference", json.dumps(content))
    elif question.task == "caption" and _PLACEHOLDER.search(answer):
        # As RIC writes them: what is known of captions and their tags is known in one place.
        tagged = _PLACEHOLDER.sub(lambda found: f"<box_id: {_at(ann_ids, int(found.group(1)))}/>", answer)
        yield Piece(image_id, "caption", json.dumps({"id": line.number, "grounded": tagged}))
    elif question.task == "caption":
        yield Piece(image_id, "caption", json.dumps({"id": line.number, "text": answer}))


def _at(ann_ids: list[int], place: int) -> int:
    return ann_ids[place] if place < len(ann_ids) else 0


def _annotation(item: Mapping[str, Any], number: int, category: int) -> dict[str, Any]:
    return {
        "id": number,
        "category_id": category,
        "box": item.get("bbox"),
        "segmentation": item.get("rle"),
        "area": item.get("area"),
        "iscrowd": item.get("iscrowd"),
    }


def _number(item: Mapping[str, Any], image: str, numbers: dict[bytes, int]) -> int:
    """Number of an object, counted from 1; the file's own where it has one."""
    own = whole_number(item.get("ann_id"))
    if own is not None:
        return own
    rle = item.get("rle")
    content = [image, item.get("bbox"), rle.get("counts") if isinstance(rle, dict) else None, item.get("iscrowd")]
    key = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).digest()
    return numbers.setdefault(key, len(numbers) + 1)


def _image_ids(line_ids: Mapping[str, str | None]) -> dict[str, str]:
    """Image id by file name."""
    known = [line_id for line_id in line_ids.values() if line_id is not None]
    if len(set(known)) == len(line_ids):
        return {name: line_id for name, line_id in line_ids.items() if line_id is not None}
    stems = {name: plain_text(posixpath.splitext(name)[0]) for name in line_ids}
    for name, stem in stems.items():
        if found := _COCO_NAME.match(stem.rpartition("/")[2]):
            stems[name] = str(int(found.group(1)))
    return stems if len(set(stems.values())) == len(stems) else {name: plain_text(name) for name in line_ids}
