"""How long the samples of a set will be, from its small columns: no image is decoded and hardly any text tokenised.

Lengths are upper estimates: class lists count in full, and the tokens of a text are foretold from its bytes by a line
that lies above all texts of a sample of the set.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from padt.data.tasks import NO_OBJECTS, TASKS, Task, TaskOptions, detect_answer, detect_prompt
from pipelines.dataset.index import SetIndex, bit_counts, counts, flat, map_shards, sums

_COLUMNS = [
    "objects.list.element.patches",
    "objects.list.element.label",
    "references.list.element.text",
    "references.list.element.objects",
    "captions.list.element.text",
    "captions.list.element.objects",
    "messages.list.element.content",
]
_TEXTS_PER_SHARD = 200
_TEXTS = 2000
# At least so many around a class of an answer (`, 12 "..." (` and `)`) and around the answer; around a turn of a
# conversation: role and end.
_CLASS_FRAME = 10
_TURN_FRAME = 8


class Measure(Protocol):
    """What is asked of a processor."""

    def tokenize(self, text: str) -> list[int]:
        """Ids of plain words."""

    def prompt_ids(self, prompt: str, patch_counts: Sequence[int] = ()) -> list[int]:
        """Ids of one question."""


@dataclass(frozen=True)
class TextLine:
    """Most tokens of a text by its bytes: ``slope * bytes + offset``."""

    slope: float
    offset: float

    @classmethod
    def above(cls, texts: Sequence[str], measure: Measure) -> "TextLine":
        """The line of the texts' mean slope that lies above all of them; without texts, a token for each byte."""
        texts = [text for text in texts if text]
        if not texts:
            return cls(1.0, 0.0)
        size = np.array([len(text.encode()) for text in texts])
        tokens = np.array([len(measure.tokenize(text)) for text in texts])
        slope = float(tokens.sum() / size.sum())
        return cls(slope, float(max(0.0, (tokens - slope * size).max())))

    def tokens(self, size: np.ndarray, texts: np.ndarray | int = 1) -> np.ndarray:
        """Tokens of ``(n,)`` bytes in ``(n,)`` texts, int64 ``(n,)``."""
        return np.ceil(self.slope * size + self.offset * texts).astype(np.int64)


@dataclass(frozen=True)
class SetLengths:
    """Upper estimates for all samples of a set.

    Attributes:
        patches: patches of all images of each row, ``(rows,)``.
        by_task: tokens without image placeholders: for ``detect`` and ``chat`` of each row, for ``refer`` and
            ``caption`` of each reference and caption of the set in order.
        first: for ``refer`` and ``caption``, number of each row's first item, ``(rows,)``.
    """

    patches: np.ndarray
    by_task: dict[str, np.ndarray]
    first: dict[str, np.ndarray]

    def digest(self) -> str:
        """Hash of all lengths: another tokenizer or other draws make other batches."""
        digest = hashlib.blake2b(self.patches.tobytes(), digest_size=8)
        for task in sorted(self.by_task):
            digest.update(self.by_task[task].tobytes())
        return digest.hexdigest()

    def tokens(self, task: str, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Tokens without image placeholders of samples ``(row, item)``, equal shapes."""
        numbers = self.first[task][rows] + items if task in self.first else rows
        return self.by_task[task][numbers]


def set_lengths(
    index: SetIndex, options: TaskOptions, measure: Measure, extra_bytes: int = 0, growth: float | None = None
) -> SetLengths:
    """Estimate the lengths of all samples of a set.

    Args:
        index: the set.
        options: draws of prompts and answers.
        measure: the model's processor.
        extra_bytes: by how much sentences may be longer than they stand in the set.
        growth: by what factor objects may grow in area, where other views of the images are drawn.

    Raises:
        UserError: a shard is missing or unreadable.
    """
    parts = map_shards(index.url, index.shards, _COLUMNS, lambda table: _facts(table, options, growth))
    fact = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    lines = {
        name: TextLine.above(_spread([text for part in parts for text in part[1][name]], _TEXTS), measure)
        for name in ("references", "captions", "messages")
    }

    def length(text: str) -> int:
        return len(measure.tokenize(text))

    # The template around one question and its answer, with the token that ends it and its line break.
    frame = len(measure.prompt_ids("x", (1,))) - 1 - length("x") + 2
    names = sorted((length(f'"{name}", ') for name in index.class_names), reverse=True)[: options.max_names]
    labels = TextLine.above(index.class_names, measure)
    nothing = length(NO_OBJECTS)
    one, two, three = (length("".join(detect_answer([("x", [""])] * count))) for count in (1, 2, 3))
    # A number of two digits instead of one.
    each = max(_CLASS_FRAME, three - two + 1 - length("x"))
    around = max(_CLASS_FRAME, one - each - length("x"), two - 2 * (each + length("x")))
    listed = labels.tokens(fact["label_bytes"], fact["labels"]) + each * fact["labels"] + fact["object_vrts"]

    def item_length(task: Task, column: str) -> np.ndarray:
        text = lines[column].tokens(fact[f"{column}_bytes"] + (extra_bytes if column == "references" else 0))
        points = text + fact[f"{column}_vrts"]
        question = frame + length(task.prompt("x")) + (text if task.words else 0)
        if task.answer is None:
            return question + points
        return question + np.maximum(length("".join(task.answer("x", [""]))) + points, nothing)

    items = {name: (task, task.column) for name, task in TASKS.items() if task.column is not None}
    turns = lines["messages"].tokens(index.characters, index.turns)
    return SetLengths(
        patches=index.grid_h.astype(np.int64) * index.grid_w + index.more_patches,
        by_task={
            "detect": frame + length(detect_prompt(["x"])) + sum(names) + np.maximum(listed + around, nothing),
            "chat": frame + _TURN_FRAME * index.turns.astype(np.int64) + turns,
            **{name: item_length(task, column) for name, (task, column) in items.items()},
        },
        first={
            name: np.cumsum(count, dtype=np.int64) - count
            for name, (_, column) in items.items()
            for count in [getattr(index, column)]
        },
    )


def _facts(
    table: pa.Table, options: TaskOptions, growth: float | None
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Bytes of texts and VRTs (with a separator each) of one shard, and some of its texts."""
    objects = flat(table["objects"])
    per_row = counts(objects)
    bits = bit_counts(objects.flatten().field("patches"))
    if growth is not None:
        # In another view an object lies otherwise on the grid: it may reach one more patch on every side.
        bits = np.ceil((np.sqrt(bits) + 1) ** 2 * growth).astype(np.int64)
    vrts = _vrts(bits, options)
    owners = np.repeat(np.arange(len(table)), per_row)
    labels = pc.dictionary_encode(pc.fill_null(objects.flatten().field("label"), ""))
    codes = np.asarray(labels.indices).astype(np.int64)
    kinds = max(1, len(labels.dictionary))
    # Each class of a row once.
    pairs = np.unique(owners * kinds + codes)
    sizes = np.asarray(pc.binary_length(labels.dictionary)) if len(labels.dictionary) else np.zeros(1, np.int64)
    facts = {
        "object_vrts": sums(per_row, vrts),
        "labels": np.bincount(pairs // kinds, minlength=len(table)),
        "label_bytes": np.bincount(pairs // kinds, weights=sizes[pairs % kinds], minlength=len(table)),
    }
    texts: dict[str, list[str]] = {"messages": []}
    starts = np.cumsum(per_row) - per_row
    for name in ("references", "captions"):
        lists = flat(table[name])
        items = lists.flatten()
        targets = items.field("objects")
        numbers = np.repeat(np.repeat(starts, counts(lists)), counts(targets)) + np.asarray(targets.flatten())
        facts[f"{name}_bytes"] = np.asarray(pc.fill_null(pc.binary_length(items.field("text")), 0))
        facts[f"{name}_vrts"] = sums(counts(targets), vrts[numbers.astype(np.int64)])
        texts[name] = _some(items.field("text"))
    if "messages" in table.column_names:
        texts["messages"] = _some(flat(table["messages"]).flatten().field("content"))
    return facts, texts


def _vrts(bits: np.ndarray, options: TaskOptions) -> np.ndarray:
    """VRTs of objects with so many foreground patches, and the comma after them; 0 for objects without any."""
    if options.vrt_rule == "all":
        drawn = bits
    elif options.vrt_rule == "distinct":
        drawn = np.minimum(bits, options.num_vrts)
    else:
        drawn = np.full_like(bits, max(5, options.num_vrts) if options.vrt_rule == "extreme" else options.num_vrts)
    return np.where(bits > 0, drawn + 1, 0)


def _some(texts: Any) -> list[str]:
    return [text.as_py() or "" for text in _spread(texts, _TEXTS_PER_SHARD)]


def _spread(values: Any, most: int) -> list[Any]:
    """Up to so many values, evenly spread."""
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)]
