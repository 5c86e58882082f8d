"""Questions about what is not there: sentences of other images, and class lists without any class of the image.

Nothing is asked for that might be there after all. A sentence is taken only if it names the class of what it was
written about, and no object of this image has that class; images must therefore be annotated for all classes of their
set, as those of COCO are.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.dataset.index import SetIndex, counts, flat, map_shards

_COLUMNS = ["objects.list.element.label", "references.list.element.text", "references.list.element.objects"]
_TRIES = 32
EXTRA_BYTES = 16
"""By how much a sentence may be longer than the one whose place it takes."""

# What people call a person; COCO's only class that sentences hardly ever name.
_OTHER_NAMES = {
    "person": (
        *(
            "man",
            "men",
            "woman",
            "women",
            "guy",
            "guys",
            "boy",
            "boys",
            "girl",
            "girls",
            "lady",
            "ladies",
            "kid",
            "kids",
        ),
        *("child", "children", "baby", "people", "dude", "player", "batter", "catcher", "umpire", "skier", "surfer"),
    )
}


@dataclass(frozen=True)
class SentencePool:
    """Sentences of a set that name the class of their target.

    Attributes:
        texts: ``(n,)`` strings.
        labels: class of each one's targets, as a position in ``names``, ``(n,)`` int32.
        names: class names.
    """

    texts: pa.Array
    labels: np.ndarray
    names: tuple[str, ...]

    def draw(self, present: Collection[str], rng: np.random.Generator, longest: int) -> str | None:
        """A sentence about something that is not in an image, or None where none is found.

        Args:
            present: labels of all objects of the image.
            rng: source of the draw.
            longest: most bytes of the sentence.
        """
        patterns = [_pattern((label.casefold(), *_OTHER_NAMES.get(label.casefold(), ()))) for label in present if label]
        for number in rng.integers(0, len(self.texts), _TRIES).tolist() if len(self.texts) else ():
            if self.names[self.labels[number]] in present:
                continue
            text = self.texts[number].as_py()
            if len(text.encode()) <= longest and not any(pattern.search(text) for pattern in patterns):
                return text
        return None


def sentence_pool(index: SetIndex, most: int = 50_000) -> SentencePool:
    """Collect sentences of a set, at most ``most`` of them, evenly spread.

    Raises:
        UserError: a shard is missing or unreadable.
    """
    share = -(-most // len(index.shards))
    found = [pair for part in map_shards(index.url, index.shards, _COLUMNS, _told) for pair in _spread(part, share)]
    names = tuple(sorted({label for _, label in found}))
    number = {name: place for place, name in enumerate(names)}
    patterns = _patterns(names)
    kept = [(text, number[label]) for text, label in found if patterns[label].search(text)]
    texts = pa.array([text for text, _ in kept], pa.string())
    return SentencePool(texts, np.array([label for _, label in kept], np.int32), names)


def absent_reference(row: Mapping[str, Any], item: int, pool: SentencePool, rng: np.random.Generator) -> dict | None:
    """A reference without target to be asked in place of the row's own, or None where the pool has none."""
    present = {entry["label"] for entry in row["objects"]}
    own = row["references"][item]
    text = pool.draw(present, rng, longest=len(own["text"].encode()) + EXTRA_BYTES) if present else None
    return None if text is None else {**own, "text": text, "objects": []}


def absent_classes(
    row: Mapping[str, Any], names: Sequence[str], most: int, rng: np.random.Generator
) -> tuple[str, ...] | None:
    """Class names of which the image has no object, at least one and at most ``most``; None where it has all."""
    present = {entry["label"] for entry in row["objects"]}
    absent = [name for name in names if name not in present]
    if not absent:
        return None
    # Short lists are as likely as long ones: people ask for one thing at a time.
    count = int(rng.integers(1, min(most, len(absent)) + 1))
    return tuple(absent[i] for i in rng.permutation(len(absent))[:count])


def _told(table: pa.Table) -> list[tuple[str, str]]:
    """Sentences of a shard with the one class of all their targets."""
    objects, references = flat(table["objects"]), flat(table["references"])
    labels = objects.flatten().field("label").to_pylist()
    starts = np.repeat(np.cumsum(counts(objects)) - counts(objects), counts(references)).tolist()
    items = references.flatten()
    told = []
    for text, targets, start in zip(
        items.field("text").to_pylist(), items.field("objects").to_pylist(), starts, strict=True
    ):
        classes = {labels[start + target] for target in targets}
        if len(classes) == 1 and (label := classes.pop()):
            told.append((text, label))
    return told


def _patterns(names: Sequence[str]) -> dict[str, re.Pattern]:
    """For each class what names it: all its words, a word that no other class has, or a common other name."""
    words = Counter(word for name in set(names) for word in set(name.casefold().split()))
    own = {name: [word for word in name.casefold().split() if words[word] == 1] for name in names}
    return {name: _pattern((name.casefold(), *own[name], *_OTHER_NAMES.get(name.casefold(), ()))) for name in names}


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})s?\b", re.IGNORECASE)


def _spread(values: list, most: int) -> list:
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, min(most, len(values))).astype(int)]
