"""The JSON lines of the released PaDT data: one question about one image in each line."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from padt.data.patches import unpack_patches
from padt.data.tasks import CAPTION_PROMPT, detect_answer, detect_prompt, refer_answer, refer_prompt
from pipelines.exports.base import Exported, ExportedSet, id_of, write_lines
from pipelines.io.storage import Folder


def write_released(source: ExportedSet, folder: Folder, exported: Exported) -> None:
    """Write a file of lines for each task that the set has something for."""
    counts = source.manifest.counts
    if counts.objects:
        exported.files["ovd.jsonl"] = write_lines(folder, "ovd.jsonl", _detections(source))
    if counts.references:
        exported.files["rec.jsonl"] = write_lines(folder, "rec.jsonl", _sentences(source))
    if counts.captions:
        exported.files["ric.jsonl"] = write_lines(folder, "ric.jsonl", _descriptions(source))
    if counts.conversations:
        exported.files["chat.jsonl"] = write_lines(folder, "chat.jsonl", _conversations(source))
    bare = counts.objects - counts.objects_with_patches
    if bare:
        exported.lost.append(
            f"{bare:,} of {counts.objects:,} objects have no foreground patch, by which this format names them: they "
            "are not in ovd.jsonl, and nothing points to them in answers to sentences and in captions"
        )
    if not counts.objects and (unsaid := _rows_without_text(source)):
        exported.lost.append(f"{unsaid:,} of {counts.rows:,} images have no question, so no line names them")
    if counts.captions:
        exported.lost.append(f"{counts.captions:,} captions lose their ids")
    if counts.objects:
        exported.lost.append(f"{len(source.manifest.categories):,} categories lose their ids; their names stay")


def _rows_without_text(source: ExportedSet) -> int:
    """Images with neither sentence nor caption nor conversation."""
    columns = ("references.list.element.ref_id", "captions.list.element.id", "messages.list.element.role")
    return sum(not (row["references"] or row["captions"] or row.get("messages")) for row in source.rows(*columns))


def _detections(source: ExportedSet) -> Iterator[dict[str, Any]]:
    """Lines that ask for all classes of the set; classes and objects in the set's order."""
    names = source.manifest.class_names
    for row in source.rows("grid_h", "grid_w", "objects"):
        by_name: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for item in row["objects"]:
            released = _object(row, item, item["label"])
            if released["patches"]:
                by_name[item["label"]].append(released)
        objects = [each for name in names for each in by_name[name]]
        places = iter(_places(len(objects)))
        present = [(name, [next(places) for _ in by_name[name]]) for name in names if by_name[name]]
        yield _line(source, row, "ovd", detect_prompt(names), "".join(detect_answer(present)), objects)


def _places(count: int) -> list[str]:
    """What stands for the objects of an answer."""
    return [f"<|Obj_{number}|>" for number in range(count)]


def _sentences(source: ExportedSet) -> Iterator[dict[str, Any]]:
    for row in source.rows("grid_h", "grid_w", "objects", "references"):
        for reference in row["references"]:
            text = reference["text"]
            objects = [_object(row, row["objects"][place], text) for place in reference["objects"]]
            answer = "".join(refer_answer(text, _places(len(objects))))
            ids = {"ref_id": reference["ref_id"], "sent_id": reference["sent_id"]}
            yield _line(source, row, "rec", refer_prompt(text), answer, objects) | ids


def _descriptions(source: ExportedSet) -> Iterator[dict[str, Any]]:
    for row in source.rows("grid_h", "grid_w", "objects", "captions"):
        for caption in row["captions"]:
            objects = [_object(row, row["objects"][place], "") for place in caption["objects"]]
            yield _line(source, row, "ric", CAPTION_PROMPT, caption["text"], objects)


def _conversations(source: ExportedSet) -> Iterator[dict[str, Any]]:
    roles = {"user": "human", "assistant": "gpt"}
    for row in source.rows("messages", "more_images.list.element.path"):
        if row["messages"]:
            names = source.file_names(row)
            said = [
                {"from": roles.get(each["role"], each["role"]), "value": each["content"]} for each in row["messages"]
            ]
            pictures = {"image": names[0] if len(names) == 1 else names} if names else {}
            yield {"id": id_of(row["image_id"]), **pictures, "conversations": said}


def _object(row: Mapping[str, Any], item: Mapping[str, Any], label: str) -> dict[str, Any]:
    """An object as the released files have it, with its annotation id besides."""
    patches = np.flatnonzero(unpack_patches(item["patches"], row["grid_h"] * row["grid_w"]))
    released = {
        "patches": patches.tolist(),
        "bbox": item["box"],
        "iscrowd": int(item["iscrowd"]),
        "area": item["area"],
        "label": label,
        "ann_id": item["ann_id"],
    }
    return released if item["rle"] is None else released | {"rle": item["rle"]}


def _line(
    source: ExportedSet, row, task: str, question: str, answer: str, objects: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "id": id_of(row["image_id"]),
        "image": source.file_name(row),
        "conversations": [{"from": "human", "value": question}],
        "answer_template": answer,
        "objects": objects,
        "task": task,
    }
