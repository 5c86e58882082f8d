"""What an evaluation asks: the samples of a prepared set, and what is true of them.

A sample is one sentence (``refer``) or one image (``detect``, ``caption``). Ids are ``KEY:refer:ITEM``, ``KEY:detect``
and ``KEY:caption``; they are unique, and every metric counts by them. Truth is read from the shards without images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from padt.data.image import ResizePolicy
from padt.data.tasks import GROUNDED_TASKS
from padt.errors import UserError, look_up
from padt.metrics.caption import CaptionTarget
from padt.metrics.detect import TrueImage, TrueObject
from padt.metrics.refer import ReferTarget
from pipelines.dataset.index import SetIndex, load_index
from pipelines.dataset.manifest import Manifest, open_set
from pipelines.dataset.read import reading_shard
from pipelines.dataset.schema import IMAGE_COLUMNS, OPTIONAL_COLUMNS, SHARD_SCHEMA


@dataclass(frozen=True)
class EvalSample:
    """One question.

    Attributes:
        id: unique name.
        row: number of the row in the set's index.
        key: key of the row.
        task: ``refer``, ``detect`` or ``caption``.
        item: which reference of the row; None for questions about the whole image.
        sentence: the referring expression, or None.
        patches: patches of the image, by which batches of like size are made.
    """

    id: str
    row: int
    key: str
    task: str
    item: int | None
    sentence: str | None
    patches: int


@dataclass(frozen=True)
class EvalSet:
    """A prepared set as an evaluation sees it.

    Attributes:
        manifest: of the set.
        index: places of the rows.
        truth: rows by number, without their images, in the order of their keys.
        samples: every question, in the order of rows and tasks.
    """

    manifest: Manifest
    index: SetIndex
    truth: Mapping[int, Mapping[str, Any]]
    samples: tuple[EvalSample, ...] = field(repr=False)

    @cached_property
    def has_masks(self) -> bool:
        """Whether any object of the rows has a mask."""
        return any(entry["rle"] is not None for row in self.truth.values() for entry in row["objects"])

    @property
    def fingerprint(self) -> str:
        """The set's fingerprint; a part of it is other data than the whole."""
        part = "" if len(self.truth) == len(self.index) else f"[:{len(self.truth)}]"
        return self.manifest.fingerprint + part

    @cached_property
    def image_numbers(self) -> dict[int, int]:
        """COCO image number by row: the source's own where all are whole numbers and differ, else counted from 1."""
        texts = [row["image_id"] for row in self.truth.values()]
        if all(text.isdecimal() for text in texts) and len({int(text) for text in texts}) == len(texts):
            return {number: int(row["image_id"]) for number, row in self.truth.items()}
        return {number: position for position, number in enumerate(self.truth, start=1)}

    def of_task(self, task: str) -> list[EvalSample]:
        """The samples of one task."""
        return [sample for sample in self.samples if sample.task == task]

    def refer_targets(self) -> list[ReferTarget]:
        """Truth of the ``refer`` samples."""
        targets = []
        for sample in self.of_task("refer"):
            row = self.truth[sample.row]
            chosen = [row["objects"][index] for index in row["references"][sample.item]["objects"]]
            boxes = tuple(pixel_box(entry["box"], row) for entry in chosen)
            masked = all(entry["rle"] is not None for entry in chosen) and (bool(chosen) or self.has_masks)
            masks = tuple(dict(entry["rle"]) for entry in chosen) if masked else None
            targets.append(ReferTarget(sample.id, sample.key, sample.sentence or "", boxes, masks))
        return targets

    def detect_targets(self) -> list[TrueImage]:
        """Truth of the ``detect`` samples: every annotation of the row."""
        images = []
        for sample in self.of_task("detect"):
            row = self.truth[sample.row]
            objects = tuple(
                TrueObject(
                    category_id=entry["category_id"],
                    box=pixel_box(entry["box"], row),
                    area=entry["area"],
                    iscrowd=entry["iscrowd"],
                    mask=entry["rle"],
                    has_patch=any(entry["patches"]),
                )
                for entry in row["objects"]
            )
            images.append(TrueImage(sample.id, self.image_numbers[sample.row], row["height"], row["width"], objects))
        return images

    def caption_targets(self) -> list[CaptionTarget]:
        """Truth of the ``caption`` samples; crowd regions are no objects to be named one by one."""
        targets = []
        for sample in self.of_task("caption"):
            row = self.truth[sample.row]
            single = [index for index, entry in enumerate(row["objects"]) if not entry["iscrowd"]]
            place = {index: position for position, index in enumerate(single)}
            mentioned = {index for caption in row["captions"] for index in caption["objects"]}
            boxes = tuple(pixel_box(row["objects"][index]["box"], row) for index in single)
            named = frozenset(place[index] for index in mentioned if index in place)
            written = tuple(caption["text"] for caption in row["captions"])
            targets.append(CaptionTarget(sample.id, boxes, named, written))
        return targets


def open_eval_set(url: str, tasks: Sequence[str] | None = None, limit: int | None = None) -> EvalSet:
    """Open a prepared set for evaluation.

    Args:
        url: folder of the set, any fsspec URL.
        tasks: what to ask; None = everything that the set has truth for.
        limit: only the first so many rows, in the order of their keys.

    Raises:
        UserError: the folder is not a prepared set, a task is unknown, or the set has no truth for it.
    """
    for task in tasks or ():
        look_up("Task", task, dict.fromkeys(GROUNDED_TASKS))
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} leaves nothing to evaluate: give 1 or more, or leave it out.")
    manifest = open_set(url)
    index = load_index(url)
    order = np.argsort(np.asarray(index.keys.to_pylist()), kind="stable")[:limit]
    truth = _read_truth(index, order)
    offered = {
        "refer": any(row["references"] for row in truth.values()),
        "detect": bool(manifest.categories),
        "caption": any(caption["objects"] for row in truth.values() for caption in row["captions"]),
    }
    if tasks is None:
        tasks = [task for task in GROUNDED_TASKS if offered[task]]
    for task in tasks:
        if not offered[task]:
            raise UserError(
                f"{url} has nothing to measure {task!r} with ({_lacking(task)}): leave that task out{_those(offered)}."
            )
    samples = tuple(
        sample
        for number, row in truth.items()
        for task in GROUNDED_TASKS
        if task in tasks
        for sample in _samples(number, row, task)
    )
    if not samples:
        raise UserError(f"{url} has no sentences, categories or grounded captions: there is nothing to evaluate.")
    return EvalSet(manifest, index, truth, samples)


def pixel_box(box: Sequence[float], row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """A row's normalised ``xyxy`` box in absolute pixels of its upright image."""
    width, height = row["width"], row["height"]
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def policy_mismatch(own: ResizePolicy, manifest: Manifest) -> str | None:
    """A sentence where the model resizes images otherwise than the set was prepared for, else None.

    A trainer refuses such a set, for its patches would be wrong. An evaluation compares boxes and masks in pixels of
    the original image, so it only says so.
    """
    if own == manifest.policy:
        return None
    return (
        f"The model resizes images by {own.to_dict()}, the set {manifest.name} was prepared with "
        f"{manifest.policy.to_dict()}: scores hold (they are taken in original pixels), but patches drawn from the set "
        "are not the model's."
    )


def _samples(number: int, row: Mapping[str, Any], task: str) -> Iterator[EvalSample]:
    key, patches = row["key"], row["grid_h"] * row["grid_w"]
    if task == "refer":
        for item, reference in enumerate(row["references"]):
            yield EvalSample(f"{key}:refer:{item}", number, key, task, item, reference["text"], patches)
    elif task == "detect" or row["captions"]:
        yield EvalSample(f"{key}:{task}", number, key, task, None, None, patches)


def _read_truth(index: SetIndex, order: np.ndarray) -> dict[int, dict[str, Any]]:
    columns = [name for name in SHARD_SCHEMA.names if name not in (*IMAGE_COLUMNS, *OPTIONAL_COLUMNS)]
    rows: dict[int, dict[str, Any]] = {}
    for shard in np.unique(index.shard[order]).tolist():
        wanted = order[index.shard[order] == shard]
        with reading_shard(index.url, index.shards[shard]) as file:
            table = file.read(columns=columns)
        found = table.take(pa.array(index.row[wanted])).to_pylist()
        rows.update(zip(wanted.tolist(), found, strict=True))
    return {int(number): rows[int(number)] for number in order}


def _lacking(task: str) -> str:
    return {
        "refer": "no row has sentences",
        "detect": "its manifest has no categories",
        "caption": "no caption points at an object",
    }[task]


def _those(offered: Mapping[str, bool]) -> str:
    there = [task for task, has in offered.items() if has]
    return f"; it has truth for {', '.join(there)}" if there else ""
