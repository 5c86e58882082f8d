"""Index of a prepared data set: which rows and items there are, from the small columns of the shards.

Images are not read: pyarrow takes the footers and the projected columns only.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from padt.data.image import ResizePolicy
from padt.data.tasks import TASKS
from padt.errors import UserError
from pipelines.dataset.manifest import open_set
from pipelines.dataset.read import reading_shard

Result = TypeVar("Result")

_COLUMNS = [
    "key",
    "grid_h",
    "grid_w",
    "objects.list.element.patches",
    "references.list.element.objects",
    "captions.list.element.objects",
    "messages.list.element.content",
    "more_grids.list.element.grid_h",
    "more_grids.list.element.grid_w",
]


@dataclass(frozen=True)
class SetIndex:
    """What a prepared data set holds, row by row (rows in the order of the shards).

    Attributes:
        name: name of the set; part of each sample's identity.
        url: folder of the set.
        fingerprint: the manifest's; changes with the content.
        policy: resize policy that the patch grids follow.
        class_names: categories, which detection prompts ask for.
        shards: path of each shard below ``url``.
        keys: key of each row, ``(rows,)`` string array.
        shard, row: shard number and row inside the shard, ``(rows,)`` int32.
        grid_h, grid_w: patch grid, ``(rows,)`` int32.
        objects, objects_with_patches: objects of each row, ``(rows,)`` int32.
        references, captions: sentences and captions of each row, ``(rows,)`` int32.
        turns: turns of each row's conversation, 0 where it is none, ``(rows,)`` int32.
        characters: length in bytes of all that is said in it, ``(rows,)`` int64.
        more_patches: patches of its second and later images, ``(rows,)`` int32.
        reference_ok: for every reference of the set in order, whether training can use it: it has no target at all, or
            one with a foreground patch (a target too small for a patch is neither there nor absent).
    """

    name: str
    url: str
    fingerprint: str
    policy: ResizePolicy
    class_names: tuple[str, ...]
    shards: tuple[str, ...]
    keys: pa.Array
    shard: np.ndarray
    row: np.ndarray
    grid_h: np.ndarray
    grid_w: np.ndarray
    objects: np.ndarray
    objects_with_patches: np.ndarray
    references: np.ndarray
    captions: np.ndarray
    turns: np.ndarray
    characters: np.ndarray
    more_patches: np.ndarray
    reference_ok: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def items(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and item numbers of all samples of a task: int32 ``(samples,)`` both, rows ascending."""
        rows = np.arange(len(self), dtype=np.int32)
        column = TASKS[task].column
        if column is None:
            rows = rows[(self.turns > 0) != TASKS[task].grounded]
            return rows, np.zeros(len(rows), dtype=np.int32)
        each = getattr(self, column)
        item_rows = np.repeat(rows, each)
        items = positions(each)
        if column == "references":
            return item_rows[self.reference_ok], items[self.reference_ok]
        return item_rows, items


def load_index(url: str) -> SetIndex:
    """Read the index of a prepared data set.

    Args:
        url: folder of the set, any fsspec URL.

    Raises:
        UserError: no prepared set there, or a shard is missing or unreadable.
    """
    manifest = open_set(url)
    shards = tuple(shard.path for shard in manifest.shards)
    parts = map_shards(url, shards, _COLUMNS, lambda table: (flat(table["key"]), _facts(table)))
    lengths = np.array([len(keys) for keys, _ in parts], dtype=np.int64)
    for shard, rows in zip(manifest.shards, lengths, strict=True):
        if rows != shard.rows:
            raise UserError(
                f"Shard {shard.path} of {url} has {rows} rows, its manifest says {shard.rows}: "
                "prepare the set again with --overwrite."
            )
    if lengths.sum() == 0:
        raise UserError(f"The data set {url} has no rows: look into its rejected/ folder, then prepare it again.")
    return SetIndex(
        name=manifest.name,
        url=url,
        fingerprint=manifest.fingerprint,
        policy=manifest.policy,
        class_names=tuple(manifest.class_names),
        shards=shards,
        keys=pa.concat_arrays([keys for keys, _ in parts]),
        shard=np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
        row=positions(lengths),
        **{name: np.concatenate([facts[name] for _, facts in parts]) for name in parts[0][1]},
    )


def map_shards(
    url: str, shards: Sequence[str], columns: Sequence[str], function: Callable[[pa.Table], Result]
) -> list[Result]:
    """What a function makes of some columns of each shard; columns that a shard does not have are left out.

    Only the results are kept: bit fields and texts of a large set do not fit into memory at once.

    Args:
        url: folder of the set.
        shards: paths of the shards below it.
        columns: dotted Parquet paths of leaf columns.
        function: is given the table of one shard.

    Raises:
        UserError: a shard is missing or unreadable.
    """
    with ThreadPoolExecutor(8) as pool:  # many small reads, mostly waiting where the set lies in an object store
        return list(pool.map(lambda path: function(_read_shard(url, path, list(columns))), shards))


def _read_shard(url: str, path: str, columns: list[str]) -> pa.Table:
    with reading_shard(url, path) as file:
        return file.read(columns=columns)


def _facts(table: pa.Table) -> dict[str, np.ndarray]:
    """Columns of the index for the rows of one shard, by name."""
    objects, references, captions = (flat(table[name]) for name in ("objects", "references", "captions"))
    object_counts, reference_counts = counts(objects), counts(references)
    visible = bit_counts(objects.flatten().field("patches")) > 0
    owners = np.repeat(np.arange(len(table)), object_counts)
    starts = np.cumsum(object_counts) - object_counts
    facts = {
        "grid_h": table["grid_h"].to_numpy(),
        "grid_w": table["grid_w"].to_numpy(),
        "objects": object_counts,
        "objects_with_patches": np.bincount(owners[visible], minlength=len(table)),
        "references": reference_counts,
        "captions": counts(captions),
        **_conversations(table),
    }
    return {
        **{name: values.astype(np.int64 if name == "characters" else np.int32) for name, values in facts.items()},
        "reference_ok": _usable(references, np.repeat(starts, reference_counts), visible),
    }


def _conversations(table: pa.Table) -> dict[str, np.ndarray]:
    """Turns, bytes said, and patches of further images; shards written before there were any lack the columns."""
    if "messages" not in table.column_names or not len(table):
        return {name: np.zeros(len(table), np.int64) for name in ("turns", "characters", "more_patches")}
    messages, grids = flat(table["messages"]), flat(table["more_grids"])
    sizes = grids.flatten()
    said = pc.fill_null(pc.binary_length(messages.flatten().field("content")), 0)
    return {
        "turns": counts(messages),
        "characters": sums(counts(messages), np.asarray(said)),
        "more_patches": sums(counts(grids), np.asarray(pc.multiply(sizes.field("grid_h"), sizes.field("grid_w")))),
    }


def flat(column: pa.ChunkedArray) -> Any:
    """A column as one array."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def counts(lists: pa.ListArray) -> np.ndarray:
    """Length of each list, 0 for none, ``(lists,)``."""
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0))


def sums(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum of the values of each group, for groups of the given sizes, ``(groups,)`` int64."""
    before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(sizes)
    return before[ends] - before[ends - sizes]


def positions(sizes: np.ndarray) -> np.ndarray:
    """Sizes ``(groups,)`` -> position of each entry inside its group, int32 ``(sum(sizes),)``.

    ``[2, 3] -> [0, 1, 0, 1, 2]``.
    """
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return (np.arange(total) - np.repeat(ends - sizes, sizes)).astype(np.int32)


def bit_counts(patches: pa.BinaryArray) -> np.ndarray:
    """For each bit field how many bits are set, without a loop over Python bytes: ``(n,)`` int64."""
    patches = pc.cast(pc.fill_null(patches, b""), pa.large_binary())
    if len(patches) == 0:
        return np.zeros(0, dtype=np.int64)
    _, offset_buffer, data_buffer = patches.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[patches.offset : patches.offset + len(patches) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer is not None else np.zeros(0, dtype=np.uint8)
    return sums(np.diff(offsets), np.bitwise_count(data[offsets[0] : offsets[-1]]))


def _usable(references: pa.ListArray, object_start: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """For each reference whether it has no target or one with a patch; ``object_start``: its row's first object."""
    targets = references.flatten().field("objects")
    sizes = counts(targets)
    numbers = np.repeat(object_start, sizes) + np.asarray(targets.flatten()).astype(np.int64)
    return (sizes == 0) | (sums(sizes, visible[numbers]) > 0)
