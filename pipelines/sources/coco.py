"""COCO's formats: instances JSON, captions JSON, and what is joined to them (RefCOCO's references, RIC's captions)."""

import json
from collections.abc import Iterator
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
    annotation_id,
    identifier,
    is_file_name,
    number_of,
    plain_text,
    whole_number,
)
from pipelines.sources.json_stream import Element, stream_json
from pipelines.sources.layouts import PANOPTIC, object_hint
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
        references: URL of RefCOCO's pickle or gRefCOCO's JSON.
        reference_split: take only this split's references (their ``split``); None takes all.
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
    sections: dict[str, Any] = {}
    named: dict[str, str] = {}
    parents: set[str] = set()
    roots: set[int] = set()
    used: set[int | None] = set()
    for element in stream_json(url, _INSTANCES):
        sections.setdefault(element.section, element.value)
        if element.section in ("images", "annotations") and element.index is None and element.value:
            raise UserError(_not_a_list(element, url))
        if element.section == "images" and element.index is not None:
            _add_image(_image_entry(element.value), header, named)
        elif element.section == "categories":
            for value in _categories(element):
                header.categories.append(_category(value, header, url))
                parents.add(plain_text(str(value.get("supercategory"))))
                if value.get("supercategory") == "none":
                    roots.add(header.categories[-1].id)
        elif element.section == "annotations" and isinstance(element.value, dict):
            used.add(annotation_id(element.value.get("category_id")))
    _check_sections(sections, url)
    if not header.images:
        first = next((f" (the first entry: {each.detail})" for each in header.rejects), "")
        raise UserError(f"{_INSTANCES} {url} lists no usable image: check its section 'images'{first}.")
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


def _check_sections(sections: dict[str, Any], url: str) -> None:
    """Args: sections: first entry of each section of the file."""
    first = sections.get("annotations")
    if isinstance(first, dict) and "segments_info" in first:
        raise UserError(f"{_INSTANCES} {url} has no boxes and masks of its own. {PANOPTIC}")
    if not first and isinstance(image := sections.get("images"), dict):
        inner = next((key for key in ("annotations", "objects", "regions") if isinstance(image.get(key), list)), None)
        if inner is not None:
            raise UserError(
                f"{_INSTANCES} {url} has '{inner}' inside of its images, where COCO has one section 'annotations' "
                "whose entries name their 'image_id': write it so, or export the project in COCO's format."
            )
    for section in ("images", "annotations", "categories"):
        if section not in sections:
            hint = object_hint(sections, first or next(iter(sections.values()), None))
            raise UserError(
                f"{_INSTANCES} {url} has no section '{section}': give an instances JSON in COCO's format "
                f"(images, annotations, categories).{hint}"
            )


def _not_a_list(element: Element, url: str) -> str:
    what = "an object" if isinstance(element.value, dict) else type(element.value).__name__
    fix = f": write its values as a list, d['{element.section}'] = list(d['{element.section}'].values()) in Python"
    return (
        f"{_INSTANCES} {url} has {what} as its section '{element.section}', where COCO has a list"
        f"{fix if isinstance(element.value, dict) else ''}."
    )


def _add_image(entry: ImageEntry | Reject, header: Header, named: dict[str, str]) -> None:
    """Args: named: file name by id of the images so far."""
    if isinstance(entry, Reject):
        header.rejects.append(entry)
        return
    first = named.get(entry.image_id)
    if first is None:
        named[entry.image_id] = entry.file_name
        header.images.append(entry)
        return
    if first != entry.file_name:
        header.ambiguous.setdefault(entry.image_id, f"{first} and {entry.file_name} have the id {entry.image_id}")
    detail = f"{entry.file_name} has the id of {first}"
    header.rejects.append(Reject(entry.image_id, "image", "duplicate_image_id", detail))


def _image_entry(value: Any) -> ImageEntry | Reject:
    image_id = identifier(value.get("id")) if isinstance(value, dict) else None
    if image_id is None:
        return Reject("", "image", "image_malformed", f"no usable id: {str(value)[:200]}")
    file_name = value.get("file_name", value.get("filename"))
    if file_name is None and isinstance(url := value.get("coco_url"), str):
        # LVIS names its images of COCO by their address alone: http://images.cocodataset.org/train2017/NUMBER.jpg.
        file_name = "/".join(url.rstrip("/").split("/")[-2:])
    if not is_file_name(file_name):
        return Reject(image_id, "image", "image_malformed", f"no usable file_name: {str(value)[:200]}")
    width, height = number_of(value.get("width")), number_of(value.get("height"))
    if width is None or height is None or width < 1 or height < 1:
        width = height = None
    return ImageEntry(image_id, file_name, width, height)


def _categories(element: Element) -> list[Any]:
    """Entries of the section of categories, which some write as ``{id: name}`` or ``{name: id}``."""
    if element.index is not None:
        return [element.value]
    if not isinstance(element.value, dict):
        return []
    entries: list[Any] = []
    for key, value in element.value.items():
        if isinstance(value, dict):
            entries.append({"id": key, **value})
        elif number_of(key) is None and number_of(value) is not None:
            entries.append({"id": value, "name": key})
        else:
            entries.append({"id": key, "name": value})
    return entries


def _category(value: Any, header: Header, url: str) -> Category:
    written = value.get("id") if isinstance(value, dict) else None
    number = annotation_id(written)
    name = value.get("name") if isinstance(value, dict) else None
    if isinstance(name, int | float) and not isinstance(name, bool):
        name = str(name)
    if number is None or not isinstance(name, str) or not name.strip():
        raise UserError(
            f"{_INSTANCES} {url} has a category without a usable 'id' or without a 'name' "
            f'({str(value)[:100]}): mend its section \'categories\', a list of {{"id": 1, "name": "cat"}}.'
        )
    header.repairs["category_id_numbered"] += number_of(written) is None
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
