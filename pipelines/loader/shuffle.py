"""Order of samples and batches: pure functions of ``(seed, epoch)``.

There is no generator state to save or to keep equal on all ranks: whoever knows the seed, the epoch and the number of a
batch knows the samples in it.
"""

import hashlib
from typing import Literal

import numpy as np

LastBatch = Literal["fill", "drop"]


def stream(*parts: object) -> np.random.Generator:
    """Random numbers that depend on the given parts alone, equal on every machine and Python version."""
    digest = hashlib.blake2b("|".join(str(part) for part in parts).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def uniform(seed: int, epoch: int, *columns: np.ndarray) -> np.ndarray:
    """One draw in [0, 1) for each row of integer columns ``(count,)``, from ``(seed, epoch, row)`` alone."""
    state = np.full(len(columns[0]), stream("uniform", seed, epoch).integers(2**63), np.uint64)
    for column in columns:
        # A round of SplitMix64 for each column.
        state = (state ^ column.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)) * 2.0**-53


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of ``count`` samples, ``(count,)`` int64."""
    return stream("order", seed, epoch).permutation(count)


def batch_count(count: int, global_batch: int, last: LastBatch) -> int:
    """Number of global batches in an epoch of ``count`` samples."""
    return count // global_batch if last == "drop" else -(-count // global_batch)


def epoch_batches(
    sizes: np.ndarray, global_batch: int, seed: int, epoch: int, *, window: int = 32, last: LastBatch = "fill"
) -> np.ndarray:
    """Samples of every global batch of an epoch.

    The epoch's permutation is cut into windows of ``window`` batches; inside a window samples are sorted by size, cut
    into batches, and then the batches of the whole epoch are shuffled. So images of one batch have similar patch grids
    (little padding), while the batch is still a random draw of its size.

    Args:
        sizes: sort key of each sample of the epoch (patch grid), ``(count,)``.
        global_batch: samples of one step.
        seed: the run's seed.
        epoch: number of the epoch, from 0.
        window: batches sorted together; 1 = no sorting.
        last: ``fill`` completes the last batch from the start of the same order, ``drop`` leaves it out.

    Returns:
        ``(batches, global_batch)`` int64 positions in ``sizes``.
    """
    count = len(sizes)
    batches = batch_count(count, global_batch, last)
    order = epoch_order(count, seed, epoch)
    # np.resize repeats the order from its start where it is too short, and cuts it where it is too long.
    order = np.resize(order, batches * global_batch)
    if window > 1:
        span = window * global_batch
        for start in range(0, len(order), span):
            part = order[start : start + span]
            order[start : start + span] = part[np.argsort(sizes[part], kind="stable")]
    table = order.reshape(batches, global_batch)
    return table[stream("batches", seed, epoch).permutation(batches)]


def batch_part(batch: np.ndarray, part: int, parts: int) -> np.ndarray:
    """One of ``parts`` parts of a global batch ``(n,)``: every ``parts``-th, so that all have images of like size."""
    return batch[part::parts]
