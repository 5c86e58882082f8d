"""Micro-batches of similar length under a budget: as many samples as fit, the same number of them in all steps.

A pure function of the lengths, ``(seed, epoch)`` and the budget, like ``pipelines.loader.shuffle``.
"""

from dataclasses import dataclass

import numpy as np

from padt.errors import UserError, check_range
from pipelines.loader.shuffle import LastBatch, batch_part, epoch_batches, epoch_order, stream


@dataclass(frozen=True)
class Batching:
    """The budget of a micro-batch; None = no limit.

    Attributes:
        max_tokens: positions of the padded batch: samples times the longest of them, image placeholders included.
        max_patches: patches (28x28 pixels) of all images of the batch, which is what the vision tower works on.
    """

    max_tokens: int | None = None
    max_patches: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_patches"):
            value = getattr(self, name)
            if value is not None:
                check_range(f"data.batching.{name}", value, 1)
        if self.max_tokens is None and self.max_patches is None:
            raise UserError("data.batching has no budget: give max_tokens or max_patches, or leave the section out.")

    def fits(self, tokens: np.ndarray, patches: np.ndarray) -> np.ndarray:
        """Tokens and patches ``(samples,)`` -> which samples fit into a batch at all, bool ``(samples,)``."""
        fits = np.ones(len(tokens), dtype=bool)
        if self.max_tokens is not None:
            fits &= tokens <= self.max_tokens
        if self.max_patches is not None:
            fits &= patches <= self.max_patches
        return fits


@dataclass(frozen=True)
class EpochBatches:
    """Global batches of an epoch, each in several parts: its micro-batches.

    Attributes:
        order: samples, batch after batch.
        edges: where each part begins in ``order``, ``(batches * parts + 1,)``.
        turn: number of the global batch that comes at each place of the epoch, ``(batches,)``.
        parts: of a global batch.
    """

    order: np.ndarray
    edges: np.ndarray
    turn: np.ndarray
    parts: int

    def __len__(self) -> int:
        return len(self.turn)

    def part(self, place: int, part: int) -> np.ndarray:
        """Samples of one part of the global batch at a place of the epoch, ``(samples of the part,)``."""
        number = int(self.turn[place]) * self.parts + part
        return self.order[self.edges[number] : self.edges[number + 1]]

    def sizes(self, place: int) -> np.ndarray:
        """Samples of each part of the global batch at a place of the epoch, ``(parts,)``."""
        first = int(self.turn[place]) * self.parts
        return np.diff(self.edges[first : first + self.parts + 1])


def budget_batches(
    tokens: np.ndarray,
    patches: np.ndarray,
    batching: Batching,
    *,
    max_samples: int,
    parts: int,
    seed: int,
    epoch: int,
    window: int = 32,
    last: LastBatch = "fill",
) -> EpochBatches:
    """Cut an epoch into batches under a budget; every sample that is given comes once.

    The epoch's permutation is cut into windows of ``window * max_samples * parts`` samples; inside a window they
    are sorted by length and cut greedily, so a part has little padding, and those of a global batch are neighbours in
    length. Then the global batches are shuffled. Where the number of parts is not a multiple of a global batch's, the
    largest are halved. Only where all hold a single sample are some repeated (``fill``) or left out
    (``drop``).

    Args:
        tokens: positions of each sample, image placeholders included, ``(count,)``.
        patches: patches of each sample, ``(count,)``.
        batching: the budget of one part; all samples must fit.
        max_samples: most samples of one part.
        parts: micro-batches of a global batch.
        seed: the run's seed.
        epoch: number of the epoch, from 0.
        window: how far samples are sorted; 1 = the samples of one global batch.
        last: what becomes of single samples that do not go round.
    """
    order = epoch_order(len(tokens), seed, epoch)
    span = window * max_samples * parts
    for number, start in enumerate(range(0, len(order), span)):
        part = order[start : start + span]
        # Windows go up and down in turn, so that batches across their border are of similar length too.
        by_length = part[np.lexsort((patches[part], tokens[part]))]
        order[start : start + span] = by_length if number % 2 == 0 else by_length[::-1]
    cut = _cut(tokens[order].tolist(), patches[order].tolist(), batching, max_samples)
    sizes = _halved(np.array(cut, dtype=np.int64), parts)
    missing = -len(sizes) % parts
    if missing and last == "fill":
        order = np.concatenate([order, np.resize(order, missing)])
        sizes = np.concatenate([sizes, np.ones(missing, dtype=np.int64)])
    elif missing:
        sizes = sizes[: len(sizes) // parts * parts]
        order = order[: sizes.sum()]
    count = len(sizes) // parts
    edges = np.concatenate([[0], np.cumsum(sizes)])
    return EpochBatches(order, edges, stream("batches", seed, epoch).permutation(count), parts)


def _cut(tokens: list[int], patches: list[int], batching: Batching, max_samples: int) -> list[int]:
    """Sizes of batches that take the samples one after another for as long as the budget allows."""
    most_tokens = batching.max_tokens if batching.max_tokens is not None else float("inf")
    most_patches = batching.max_patches if batching.max_patches is not None else float("inf")
    sizes: list[int] = []
    count = longest = total = 0
    for length, area in zip(tokens, patches, strict=True):
        longest = max(longest, length)
        total += area
        if count and (count == max_samples or (count + 1) * longest > most_tokens or total > most_patches):
            sizes.append(count)
            count, longest, total = 0, length, area
        count += 1
    return [*sizes, count] if count else sizes


def _halved(sizes: np.ndarray, parts: int) -> np.ndarray:
    """Halve the largest until their number is a multiple of ``parts``, or nothing is left to halve."""
    while len(sizes) % parts and sizes.max(initial=0) > 1:
        largest = int(np.argmax(sizes))
        half = int(sizes[largest]) // 2
        sizes = np.insert(sizes, largest, half)
        sizes[largest + 1] -= half
    return sizes


def fixed_batches(
    sizes: np.ndarray,
    batch_size: int,
    parts: int,
    seed: int,
    epoch: int,
    *,
    window: int = 32,
    last: LastBatch = "fill",
) -> EpochBatches:
    """Global batches of parts of ``batch_size`` samples: ``pipelines.loader.shuffle.epoch_batches``, cut.

    ``sizes`` is ``(samples,)``.
    """
    table = epoch_batches(sizes, batch_size * parts, seed, epoch, window=window, last=last)
    cut = [batch_part(batch, part, parts) for batch in table for part in range(parts)]
    order = np.concatenate(cut) if cut else np.zeros(0, np.int64)
    return EpochBatches(order, np.arange(len(cut) + 1) * batch_size, np.arange(len(table)), parts)
