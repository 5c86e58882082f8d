"""Index of a prepared data set: which rows and items there are, from the small columns of the shards.

Images are not read: pyarrow takes the footers and the projected columns only.
"""

import posixpath
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from padt.errors import UserError
from padt.image import ResizePolicy
from pipelines.manifest import Manifest, open_set

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
        """Rows and item numbers of all samples of a task: two int32 arrays of equal length, rows ascending."""
        rows = np.arange(len(self), dtype=np.int32)
        if task in ("detect", "chat"):
            rows = rows[(self.turns > 0) == (task == "chat")]
            return rows, np.zeros(len(rows), dtype=np.int32)
        counts = self.references if task == "refer" else self.captions
        item_rows = np.repeat(rows, counts)
        items = _positions(counts)
        if task == "refer":
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
    with ThreadPoolExecutor(8) as pool:  # many small reads, mostly waiting where the set lies in an object store
        tables = list(pool.map(lambda shard: _read_shard(url, shard.path), manifest.shards))
    lengths = np.array([len(table) for table in tables], dtype=np.int64)
    for table, shard in zip(tables, manifest.shards, strict=True):
        if len(table) != shard.rows:
            raise UserError(
                f"Shard {shard.path} of {url} has {len(table)} rows, its manifest says {shard.rows}: "
                "prepare the set again with --overwrite."
            )
    if not tables or lengths.sum() == 0:
        raise UserError(f"The data set {url} has no rows: look into its rejected/ folder, then prepare it again.")
    return _index(url, manifest, pa.concat_tables(tables), lengths)


def _read_shard(url: str, path: str) -> pa.Table:
    import fsspec

    location = posixpath.join(url, path)
    try:
        with fsspec.open(location, "rb") as handle:
            return _without_words(pq.ParquetFile(handle).read(columns=_COLUMNS))
    except FileNotFoundError as error:
        raise UserError(f"Shard {location} is missing: prepare the data set again.") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"Shard {location} cannot be read: {error}. Prepare the data set again.") from error


def _without_words(table: pa.Table) -> pa.Table:
    """The table with counts in place of conversations; shards from before there were any lack their columns."""
    turns, characters, patches = (np.zeros(len(table), np.int64) for _ in range(3))
    if "messages" in table.column_names and len(table):
        messages, grids = _flat(table["messages"]), _flat(table["more_grids"])
        turns = _counts(messages)
        characters = _sums(turns, pc.fill_null(pc.binary_length(messages.flatten().field("content")), 0))
        sizes = grids.flatten()
        patches = _sums(_counts(grids), pc.multiply(sizes.field("grid_h"), sizes.field("grid_w")))
    kept = table.drop_columns([name for name in ("messages", "more_grids") if name in table.column_names])
    for name, values in (("turns", turns), ("characters", characters), ("more_patches", patches)):
        kept = kept.append_column(name, pa.array(values.astype(np.int64)))
    return kept


def _sums(counts: np.ndarray, values: pa.Array) -> np.ndarray:
    """Sum of the values of each group, for groups of the given sizes."""
    owners = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(owners, weights=np.asarray(values), minlength=len(counts)).astype(np.int64)


def _index(url: str, manifest: Manifest, table: pa.Table, lengths: np.ndarray) -> SetIndex:
    objects = _flat(table["objects"])
    references = _flat(table["references"])
    captions = _flat(table["captions"])
    object_counts = _counts(objects)
    visible = _has_bits(objects.flatten().field("patches"))
    rows = np.arange(len(table))
    object_rows = np.repeat(rows, object_counts)
    starts = np.concatenate([[0], np.cumsum(object_counts)[:-1]])
    reference_counts = _counts(references)
    return SetIndex(
        name=manifest.name,
        url=url,
        fingerprint=manifest.fingerprint,
        policy=manifest.policy,
        class_names=tuple(manifest.class_names),
        shards=tuple(shard.path for shard in manifest.shards),
        keys=_flat(table["key"]),
        shard=np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
        row=_positions(lengths),
        grid_h=table["grid_h"].to_numpy().astype(np.int32),
        grid_w=table["grid_w"].to_numpy().astype(np.int32),
        objects=object_counts.astype(np.int32),
        objects_with_patches=np.bincount(object_rows[visible], minlength=len(table)).astype(np.int32),
        references=reference_counts.astype(np.int32),
        captions=_counts(captions).astype(np.int32),
        turns=table["turns"].to_numpy().astype(np.int32),
        characters=table["characters"].to_numpy(),
        more_patches=table["more_patches"].to_numpy().astype(np.int32),
        reference_ok=_usable(references, np.repeat(starts, reference_counts), visible),
    )


def _flat(column: pa.ChunkedArray) -> Any:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _counts(lists: pa.ListArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0))


def _positions(counts: np.ndarray) -> np.ndarray:
    """Position of each entry inside its group, for groups of the given sizes: ``[2, 3] -> [0, 1, 0, 1, 2]``."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return (np.arange(total) - np.repeat(ends - counts, counts)).astype(np.int32)


def _has_bits(patches: pa.BinaryArray) -> np.ndarray:
    """For each bit field whether any bit is set, without a loop over Python bytes: ``(n,)`` bool."""
    patches = pc.cast(pc.fill_null(patches, b""), pa.large_binary())
    if len(patches) == 0:
        return np.zeros(0, dtype=bool)
    _, offset_buffer, data_buffer = patches.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[patches.offset : patches.offset + len(patches) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer is not None else np.zeros(0, dtype=np.uint8)
    before = np.concatenate([[0], np.cumsum(data != 0)])
    return np.asarray(before[offsets[1:]] > before[offsets[:-1]])


def _usable(references: pa.ListArray, object_start: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """For each reference whether it has no target or one with a patch; ``object_start``: its row's first object."""
    targets = references.flatten().field("objects")
    counts = _counts(targets)
    flat = np.asarray(targets.flatten()).astype(np.int64)
    seen = visible[np.repeat(object_start, counts) + flat] if len(flat) else np.zeros(0, dtype=bool)
    owners = np.repeat(np.arange(len(counts)), counts)
    return (counts == 0) | (np.bincount(owners[seen], minlength=len(counts)) > 0)
