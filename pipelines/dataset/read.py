"""Shards of a prepared data set, opened for reading, and single rows read without more than their row group."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from padt.errors import UserError
from pipelines.dataset.manifest import Manifest
from pipelines.io.reading import is_local, transport_errors
from pipelines.io.storage import Folder


def open_shard(url: str, path: str, pre_buffer: bool = True) -> pq.ParquetFile:
    """A Parquet file of a set, open for reading; its ``close(force=True)`` gives the file back.

    Args:
        url: folder of the set.
        path: of the file below it.
        pre_buffer: over a network, read together all that a call asks for: one read of a row group costs less than one
            for each of its columns. False where a file is walked through, since all of it would be held.

    Raises:
        OSError, pyarrow.ArrowException: it is missing or damaged.
    """
    folder = Folder(url)
    return pq.ParquetFile(folder.fs.open(folder.path(path), "rb"), pre_buffer=pre_buffer and not is_local(folder.fs))


@contextmanager
def reading_shard(url: str, path: str, pre_buffer: bool = True) -> Iterator[pq.ParquetFile]:
    """A Parquet file of a set, for the length of a block.

    Raises:
        UserError: the file is missing or damaged; names it.
    """
    try:
        file = open_shard(url, path, pre_buffer)
        try:
            yield file
        finally:
            file.close(force=True)
    except FileNotFoundError as error:
        raise UserError(f"Shard {path} of {url} is missing: prepare the set again.") from error
    except (pa.ArrowException, *transport_errors()) as error:
        raise UserError(
            f"Shard {path} of {url} is damaged or cannot be read ({error}): check the network, or prepare the "
            "set again."
        ) from error


def read_row(url: str, manifest: Manifest, shard: int, row: int) -> dict[str, Any]:
    """Row ``row`` of shard ``shard`` as a dictionary.

    Raises:
        UserError: the shard is missing or damaged.
    """
    with reading_shard(url, manifest.shards[shard].path) as file:
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                return file.read_row_group(group).slice(row, 1).to_pylist()[0]
            row -= rows
    raise IndexError(f"shard {shard} has no such row")


def read_columns(url: str, manifest: Manifest, shard: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of a shard; those that it was written without are left out.

    Args:
        url: folder of the set.
        manifest: its manifest.
        shard: number of the shard.
        columns: names, dotted for parts of a column (``image.path``).

    Raises:
        UserError: the shard is missing or damaged.
    """
    with reading_shard(url, manifest.shards[shard].path) as file:
        names = set(file.schema_arrow.names)
        return file.read(columns=[column for column in columns if column.partition(".")[0] in names])


def iterate_rows(url: str, manifest: Manifest, columns: Sequence[str], at_once: int = 16) -> Iterator[dict[str, Any]]:
    """All rows of a set in order, with some columns only; a few rows are held at a time.

    Args:
        url: folder of the set.
        manifest: its manifest.
        columns: names, dotted for parts of a column; those that a shard was written without are left out.
        at_once: rows that are read together.

    Raises:
        UserError: a shard is missing or damaged.
    """
    for number in range(len(manifest.shards)):
        with reading_shard(url, manifest.shards[number].path, pre_buffer=False) as file:
            names = set(file.schema_arrow.names)
            kept = [column for column in columns if column.partition(".")[0] in names]
            for batch in file.iter_batches(at_once, columns=kept):
                yield from batch.to_pylist()


def spread_rows(url: str, manifest: Manifest, count: int) -> list[dict[str, Any]]:
    """Up to ``count`` rows, spread evenly over the set, in order."""
    total = sum(shard.rows for shard in manifest.shards)
    count = min(count, total)
    wanted = [total * (2 * place + 1) // (2 * count) for place in range(count)]
    rows, first = [], 0
    for number, shard in enumerate(manifest.shards):
        rows += [
            read_row(url, manifest, number, place - first) for place in wanted if first <= place < first + shard.rows
        ]
        first += shard.rows
    return rows


def find_row(url: str, manifest: Manifest, key: str) -> dict[str, Any] | None:
    """The row with a key (``source/split/image_id``, or the image id alone); None where there is none.

    Raises:
        UserError: a shard is missing or damaged.
    """
    for number in range(len(manifest.shards)):
        with reading_shard(url, manifest.shards[number].path) as file:
            table = file.read(columns=["key", "image_id"])
        found = pc.indices_nonzero(pc.or_(pc.equal(table["key"], key), pc.equal(table["image_id"], key)))
        if len(found):
            return read_row(url, manifest, number, found[0].as_py())
    return None
