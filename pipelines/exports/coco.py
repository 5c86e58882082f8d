"""COCO's JSON, with captions of COCO or of RIC, and RefCOCO's references."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

import padt
from pipelines.dataset.caption_tags import tagged
from pipelines.dataset.read import read_columns
from pipelines.exports.base import Exported, ExportedSet, id_of, write_json, write_pickle
from pipelines.io.storage import Folder

_BOX_DECIMALS = 3


def write_coco(source: ExportedSet, folder: Folder, exported: Exported) -> None:
    """Write ``refs.p`` and ``captions.json`` where the set has such, and last ``instances.json``."""
    manifest = source.manifest
    exported.renumbered = not _distinct_ids(source)
    if exported.renumbered:
        exported.lost.append(
            "annotation ids come more than once, so they are numbered from 1 in the order of the set's rows"
        )
    grounded = _has_grounded_captions(source)
    if manifest.counts.references:
        exported.files["refs.p"] = write_pickle(folder, "refs.p", _references(source, exported.renumbered))
    info = {"description": f"{manifest.name} ({', '.join(manifest.splits)})", "version": f"padt {padt.__version__}"}
    if manifest.counts.captions and not grounded:
        known = _known_caption_ids(source)
        if not known:
            exported.lost.append("caption ids are missing or come more than once, so they are numbered from 1")
        sections = {"images": _images(source), "annotations": _captions(source, known)}
        exported.files["captions.json"] = write_json(folder, "captions.json", {"info": info}, sections)["annotations"]
    head = {
        "info": info,
        "licenses": [],
        "categories": [{"id": category.id, "name": category.name} for category in manifest.categories],
    }
    sections = {
        "images": _images(source, exported.renumbered if grounded else None),
        "annotations": _annotations(source, exported.renumbered),
    }
    # Last: with it the export is whole.
    exported.files["instances.json"] = write_json(folder, "instances.json", head, sections)["annotations"]


def _distinct_ids(source: ExportedSet) -> bool:
    """Whether no annotation id comes twice: in some sets each image numbers its own."""
    seen = [np.zeros(0, np.int64)]
    for number in range(len(source.manifest.shards)):
        table = read_columns(source.url, source.manifest, number, ["objects.list.element.ann_id"])
        for chunk in table["objects"].chunks:
            ids = chunk.flatten().field("ann_id").to_numpy(zero_copy_only=False).astype(np.int64)
            if len(np.unique(ids)) < len(ids):
                return False
            seen.append(ids)
    together = np.concatenate(seen)
    return len(np.unique(together)) == len(together)


def _has_grounded_captions(source: ExportedSet) -> bool:
    for number in range(len(source.manifest.shards)):
        table = read_columns(source.url, source.manifest, number, ["captions.list.element.objects"])
        if any(len(chunk.flatten().field("objects").flatten()) for chunk in table["captions"].chunks):
            return True
    return False


def _images(source: ExportedSet, tag_captions: bool | None = None) -> Iterator[dict[str, Any]]:
    """Entries of ``images``; with RIC's captions unless ``tag_captions`` is None (else: whether ids are new)."""
    if tag_captions is None:
        for row in source.rows():
            yield _image(source, row)
        return
    for row, ids in _numbered(source.rows("captions", "objects.list.element.ann_id"), tag_captions):
        named = [[ids[place] for place in caption["objects"]] for caption in row["captions"]]
        captions = []
        for caption, each in zip(row["captions"], named, strict=True):
            written = None if tag_captions else caption.get("written")
            captions.append(written or tagged(caption["text"], each))
        yield {**_image(source, row), "captions": captions}


def _image(source: ExportedSet, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": id_of(row["image_id"]),
        "file_name": source.file_name(row),
        "width": row["width"],
        "height": row["height"],
    }


def _annotations(source: ExportedSet, renumber: bool) -> Iterator[dict[str, Any]]:
    for row, ids in _numbered(source.rows("objects"), renumber):
        for item, ann_id in zip(row["objects"], ids, strict=True):
            x0, y0, x1, y1 = (
                part * side for part, side in zip(item["box"], (row["width"], row["height"]) * 2, strict=True)
            )
            annotation = {
                "id": ann_id,
                "image_id": id_of(row["image_id"]),
                "category_id": item["category_id"],
                "bbox": [round(value, _BOX_DECIMALS) for value in (x0, y0, x1 - x0, y1 - y0)],
                "area": item["area"],
                "iscrowd": int(item["iscrowd"]),
            }
            if item["rle"] is not None:
                annotation["segmentation"] = item["rle"]
            yield annotation


def _captions(source: ExportedSet, known: bool) -> Iterator[dict[str, Any]]:
    number = 0
    for row in source.rows("captions"):
        for caption in row["captions"]:
            number += 1
            yield {
                "id": caption["id"] if known else number,
                "image_id": id_of(row["image_id"]),
                "caption": caption.get("written") or caption["text"],
            }


def _known_caption_ids(source: ExportedSet) -> bool:
    """Whether every caption has an id of its own."""
    seen: set[int] = set()
    for row in source.rows("captions"):
        for caption in row["captions"]:
            number = caption.get("id")
            if number is None or number in seen:
                return False
            seen.add(number)
    return True


def _references(source: ExportedSet, renumber: bool) -> Iterator[dict[str, Any]]:
    """References as RefCOCO's pickles have them: the sentences of one ``ref_id`` together."""
    columns = ("references", "objects.list.element.ann_id", "objects.list.element.category_id")
    for row, ids in _numbered(source.rows(*columns), renumber):
        together: dict[int, list[dict[str, Any]]] = {}
        for reference in row["references"]:
            together.setdefault(reference["ref_id"], []).append(reference)
        for ref_id, references in together.items():
            places = references[0]["objects"]
            named = [ids[place] for place in places]
            yield {
                "ref_id": ref_id,
                "ann_id": named[0] if len(named) == 1 else named or -1,
                "image_id": id_of(row["image_id"]),
                "category_id": row["objects"][places[0]]["category_id"] if places else -1,
                "split": row["split"],
                "file_name": source.file_name(row),
                "sent_ids": [reference["sent_id"] for reference in references],
                "sentences": [_sentence(reference) for reference in references],
            }


def _sentence(reference: Mapping[str, Any]) -> dict[str, Any]:
    text = reference.get("written") or reference["text"]
    return {"tokens": text.split(), "raw": text, "sent": text, "sent_id": reference["sent_id"]}


def _numbered(rows: Iterable[dict[str, Any]], renumber: bool) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Rows with the annotation ids of their objects: the set's, or counted from 1 over the whole set."""
    first = 1
    for row in rows:
        ids = [first + place if renumber else item["ann_id"] for place, item in enumerate(row["objects"])]
        first += len(ids)
        yield row, ids
