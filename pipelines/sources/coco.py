"""COCO's formats: instances JSON, captions JSON, and what is joined to them (RefCOCO's references, RIC's captions)."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from padt.errors import UserError
from pipelines.dataset.manifest import Category
from pipelines.sources.base import (
    Header,
    ImageEntry,
    Piece,
    Reject,
    identifier,
    is_file_name,
    number_of,
    plain_text,
    whole_number,
)
from pipelines.sources.json_stream import stream_json
from pipelines.sources.refcoco import load_refs, reference_pieces

_INSTANCES = "Annotation file"
_CAPTIONS = "Caption file"


@dataclass(frozen=True)
class CocoSource:
    """Images of a COCO instances JSON, with captions and references joined by image id and annotation id.

    Attributes:
        annotations: URL of the instances JSON.
        captions: URL of a captions JSON: COCO's (annotations with ``caption``) or RIC's (images with ``captions``,
            which may be the very file of ``annotations``).
        references: URL of a RefCOCO pickle.
        reference_split: take only this split's references (``split`` in the pickle); None takes all.
        only_referred: leave out images that no reference speaks of, as RefCOCO's own splits do.
    """

    annotations: str
    captions: str | None = None
    references: str | None = None
    reference_split: str | None = None
    only_referred: bool = False

    def files(self) -> list[tuple[str, str]]:
        """See ``Source``."""
        named = [("annotations", self.annotations), ("references", self.references), ("captions", self.captions)]
        return [(role, url) for role, url in named if url is not None]

    def header(self) -> Header:
        """See ``Source``."""
        header = _read_header(self.annotations)
        if self.only_referred:
            wanted = self._referred_images
            header.images = [entry for entry in header.images if entry.image_id in wanted]
            header.rejects = [reject for reject in header.rejects if reject.image_id in wanted]
            if not header.images:
                raise UserError(
                    f"No image of {self.annotations} has a reference of split {self.reference_split!r} in "
                    f"{self.references}: check the two files, and --split."
                )
        return header

    def pieces(self) -> Iterator[Piece | Reject]:
        """See ``Source``."""
        wanted = self._referred_images if self.only_referred else None
        for piece in self._all_pieces():
            if wanted is None or piece.image_id in wanted:
                yield piece

    def _all_pieces(self) -> Iterator[Piece | Reject]:
        yield from _object_pieces(self.annotations)
        if self.references is not None:
            yield from reference_pieces(self._refs, self.reference_split)
        if self.captions is not None:
            yield from _caption_pieces(self.captions)

    @cached_property
    def _refs(self) -> list[Any]:
        assert self.references is not None
        return load_refs(self.references)

    @cached_property
    def _referred_images(self) -> frozenset[str]:
        return frozenset(piece.image_id for piece in reference_pieces(self._refs, self.reference_split))


def _read_header(url: str) -> Header:
    header = Header()
    sections: set[str] = set()
    seen: set[str] = set()
    parents: set[str] = set()
    roots: set[int] = set()
    used: set[int | None] = set()
    for element in stream_json(url, _INSTANCES):
        sections.add(element.section)
        if element.section == "images" and element.index is not None:
            entry = _image_entry(element.value)
            if isinstance(entry, ImageEntry) and entry.image_id in seen:
                entry = Reject(entry.image_id, "image", "duplicate_image_id", entry.file_name)
            if isinstance(entry, ImageEntry):
                seen.add(entry.image_id)
                header.images.append(entry)
            else:
                header.rejects.append(entry)
        elif element.section == "categories" and element.index is not None:
            header.categories.append(_category(element.value, url))
            parents.add(plain_text(str(element.value.get("supercategory"))))
            if element.value.get("supercategory") == "none":
                roots.add(header.categories[-1].id)
        elif element.section == "annotations" and isinstance(element.value, dict):
            used.add(number_of(element.value.get("category_id")))
    for section in ("images", "annotations", "categories"):
        if section not in sections:
            raise UserError(
                f"{_INSTANCES} {url} has no section '{section}': give an instances JSON in COCO's format "
                f"(images, annotations, categories).{_kind_hint(sections)}"
            )
    if not header.images:
        raise UserError(f"{_INSTANCES} {url} lists no usable image: check its section 'images'.")
    ids = [category.id for category in header.categories]
    if len(set(ids)) < len(ids):
        twice = next(number for number in ids if ids.count(number) > 1)
        raise UserError(f"{_INSTANCES} {url} has two categories with id {twice}: give each category its own id.")
    # Roboflow lists the project itself as a category above the others: nothing is ever one.
    headings = [c for c in header.categories if c.id in roots - used and c.name in parents]
    if headings:
        header.categories = [category for category in header.categories if category not in headings]
        header.repairs["category_heading_left_out"] += len(headings)
    return header


def _kind_hint(sections: Collection[str]) -> str:
    """What a file with these sections is, where that can be told."""
    if {"images", "annotations"} <= set(sections):
        return " It looks like a captions file: give it as --captions, beside the instances JSON."
    if {"conversations", "answer_template"} & set(sections):
        return " It looks like the JSON lines of PaDT's authors: use `padt prepare released`."
    return ""


def _image_entry(value: Any) -> ImageEntry | Reject:
    image_id = identifier(value.get("id")) if isinstance(value, dict) else None
    if image_id is None:
        return Reject("", "image", "image_malformed", f"no usable id: {str(value)[:200]}")
    file_name = value.get("file_name")
    if not is_file_name(file_name):
        return Reject(image_id, "image", "image_malformed", "no usable file_name")
    width, height = whole_number(value.get("width")), whole_number(value.get("height"))
    if width is None or height is None or width < 1 or height < 1:
        width = height = None
    return ImageEntry(image_id, file_name, width, height)


def _category(value: Any, url: str) -> Category:
    number = number_of(value.get("id")) if isinstance(value, dict) else None
    name = value.get("name") if isinstance(value, dict) else None
    if number is None or not isinstance(name, str) or not name.strip():
        raise UserError(
            f"{_INSTANCES} {url} has a category without a whole number 'id' or without a 'name' "
            f"({str(value)[:100]}): mend its section 'categories'."
        )
    return Category(number, plain_text(name))


def _object_pieces(url: str) -> Iterator[Piece | Reject]:
    for element in stream_json(url, _INSTANCES):
        if element.section != "annotations" or element.index is None:
            continue
        image_id = identifier(element.value.get("image_id")) if isinstance(element.value, dict) else None
        if image_id is None:
            yield Reject("", "object", "annotation_malformed", f"no usable image_id: {element.text[:200]}")
        else:
            yield Piece(image_id, "object", element.text)


def _caption_pieces(url: str) -> Iterator[Piece | Reject]:
    found = False
    for element in stream_json(url, _CAPTIONS):
        value = element.value
        if element.section == "annotations" and isinstance(value, dict) and "caption" in value:
            found = True
            image_id = identifier(value.get("image_id"))
            content = {"id": whole_number(value.get("id")), "text": value["caption"]}
            if image_id is None:
                yield Reject("", "caption", "caption_malformed", f"no usable image_id: {element.text[:200]}")
            else:
                yield Piece(image_id, "caption", json.dumps(content))
        elif element.section == "images" and isinstance(value, dict) and isinstance(value.get("captions"), list):
            found = True
            image_id = identifier(value.get("id"))
            for caption in value["captions"]:
                if image_id is None:
                    yield Reject("", "caption", "caption_malformed", "its image has no usable id")
                else:
                    yield Piece(image_id, "caption", json.dumps({"id": None, "grounded": caption}))
    if not found:
        raise UserError(
            f"{_CAPTIONS} {url} has no captions: give COCO's captions JSON (annotations with 'caption') or RIC's "
            "(images with 'captions')."
        )
