"""Batches of similar length under a budget: as many samples as fit, the same number of batches for all ranks.

A pure function of the lengths, ``(seed, epoch)`` and the budget, like ``pipelines.loader.shuffle``.
"""

from dataclasses import dataclass

import numpy as np

from padt.errors import UserError, check_range
from pipelines.loader.shuffle import LastBatch, epoch_batches, epoch_order, rank_part, stream


@dataclass(frozen=True)
class Batching:
    """The budget of one rank's batch; None = no limit.

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
    """Batches of an epoch for all ranks.

    Attributes:
        order: samples, batch after batch.
        edges: where each rank's batch begins in ``order``, ``(batches * world_size + 1,)``.
        turn: number of the global batch that comes at each place of the epoch, ``(batches,)``.
        world_size: number of ranks.
    """

    order: np.ndarray
    edges: np.ndarray
    turn: np.ndarray
    world_size: int

    def __len__(self) -> int:
        return len(self.turn)

    def part(self, place: int, rank: int) -> np.ndarray:
        """Samples of one rank in the global batch at a place of the epoch, ``(samples of the rank,)``."""
        number = int(self.turn[place]) * self.world_size + rank
        return self.order[self.edges[number] : self.edges[number + 1]]

    def sizes(self, place: int) -> np.ndarray:
        """Samples of each rank in the global batch at a place of the epoch, ``(world_size,)``."""
        first = int(self.turn[place]) * self.world_size
        return np.diff(self.edges[first : first + self.world_size + 1])


def budget_batches(
    tokens: np.ndarray,
    patches: np.ndarray,
    batching: Batching,
    *,
    max_samples: int,
    world_size: int,
    seed: int,
    epoch: int,
    window: int = 32,
    last: LastBatch = "fill",
) -> EpochBatches:
    """Cut an epoch into batches under a budget; every sample that is given comes once.

    The epoch's permutation is cut into windows of ``window * max_samples * world_size`` samples; inside a window they
    are sorted by length and cut greedily, so a batch has little padding, and the ranks of a global batch have
    neighbours in length. Then the global batches are shuffled. Where the number of batches is not a multiple of the
    ranks, the largest are halved. Only where all hold a single sample are some repeated (``fill``) or left out
    (``drop``).

    Args:
        tokens: positions of each sample, image placeholders included, ``(count,)``.
        patches: patches of each sample, ``(count,)``.
        batching: the budget of one rank; all samples must fit.
        max_samples: most samples of one rank in a batch.
        world_size: number of ranks.
        seed: the run's seed.
        epoch: number of the epoch, from 0.
        window: how far samples are sorted; 1 = the samples of one global batch.
        last: what becomes of single samples that do not go round.
    """
    order = epoch_order(len(tokens), seed, epoch)
    span = window * max_samples * world_size
    for number, start in enumerate(range(0, len(order), span)):
        part = order[start : start + span]
        # Windows go up and down in turn, so that batches across their border are of similar length too.
        by_length = part[np.lexsort((patches[part], tokens[part]))]
        order[start : start + span] = by_length if number % 2 == 0 else by_length[::-1]
    cut = _cut(tokens[order].tolist(), patches[order].tolist(), batching, max_samples)
    sizes = _halved(np.array(cut, dtype=np.int64), world_size)
    missing = -len(sizes) % world_size
    if missing and last == "fill":
        order = np.concatenate([order, np.resize(order, missing)])
        sizes = np.concatenate([sizes, np.ones(missing, dtype=np.int64)])
    elif missing:
        sizes = sizes[: len(sizes) // world_size * world_size]
        order = order[: sizes.sum()]
    count = len(sizes) // world_size
    edges = np.concatenate([[0], np.cumsum(sizes)])
    return EpochBatches(order, edges, stream("batches", seed, epoch).permutation(count), world_size)


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


def _halved(sizes: np.ndarray, world_size: int) -> np.ndarray:
    """Halve the largest batches until their number is a multiple of the ranks, or nothing is left to halve."""
    while len(sizes) % world_size and sizes.max(initial=0) > 1:
        largest = int(np.argmax(sizes))
        half = int(sizes[largest]) // 2
        sizes = np.insert(sizes, largest, half)
        sizes[largest + 1] -= half
    return sizes


def fixed_batches(
    sizes: np.ndarray,
    batch_size: int,
    world_size: int,
    seed: int,
    epoch: int,
    *,
    window: int = 32,
    last: LastBatch = "fill",
) -> EpochBatches:
    """Batches of ``batch_size`` samples for each rank: ``pipelines.loader.shuffle.epoch_batches``, cut into parts.

    ``sizes`` is ``(samples,)``.
    """
    table = epoch_batches(sizes, batch_size * world_size, seed, epoch, window=window, last=last)
    parts = [rank_part(batch, rank, world_size) for batch in table for rank in range(world_size)]
    order = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return EpochBatches(order, np.arange(len(parts) + 1) * batch_size, np.arange(len(table)), world_size)
