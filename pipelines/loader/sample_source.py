"""The samples of a plan's batches: one row is read, rendered and encoded, the same in every process and in tests.

What cannot be read at once is tried again; a sample that stays bad is told from a shard that does, since the others of
its batch can be trained on.
"""

import logging
import posixpath
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from padt.data.tasks import TaskOptions
from padt.errors import ImageError, UserError
from pipelines.dataset.index import SetIndex
from pipelines.dataset.read import open_shard
from pipelines.io.images import read_image
from pipelines.loader.mixture import SampleRef
from pipelines.loader.plan import Plan
from pipelines.loader.sample import Drawer

logger = logging.getLogger(__name__)

# Seconds between tries to read what does not answer: a mount that comes back, a file that is being put in place.
_PAUSES = (0.5, 1.0, 2.0, 4.0)
Answer = TypeVar("Answer")


class BadSampleError(UserError):
    """A sample that cannot be read or encoded, whatever is tried; others can."""


def check_quarantine(bad: Mapping[str, str], most: int) -> None:
    """Refuse to train on what is left when too much cannot be.

    Args:
        bad: reason by sample.
        most: ``ReaderOptions.quarantine``.

    Raises:
        UserError: names the samples.
    """
    if len(bad) <= most:
        return
    told = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    raise UserError(
        f"{len(bad)} sample(s) cannot be trained on, and reader.quarantine lets {most} of a run be left out ({told}"
        f"{more}): mend these rows, or raise reader.quarantine."
    )


def _with_patience(read: Callable[[], Answer], errors: tuple[type[Exception], ...]) -> Answer:
    """The result of a read that is tried again after some errors, which may pass."""
    for pause in _PAUSES:
        try:
            return read()
        except errors as error:
            logger.warning("reading again in %.1f s: %s", pause, error)
            time.sleep(pause)
    return read()


class RowReader:
    """Random access to the rows of a prepared set; keeps recently read row groups in memory."""

    def __init__(self, index: SetIndex, cache_bytes: int = 256 * 2**20) -> None:
        self._index = index
        self._cache_bytes = cache_bytes
        self._files: dict[int, tuple[pq.ParquetFile, np.ndarray]] = {}
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._held = 0

    def row(self, number: int) -> dict[str, Any]:
        """Row ``number`` of the index as a dictionary of plain values; the bytes of all its images are always filled.

        Raises:
            UserError: the shard cannot be read (names key and file); what may pass was tried again.
            BadSampleError: the linked image cannot be read.
        """
        shard = int(self._index.shard[number])
        key = self._index.keys[number].as_py()
        path = self._index.shards[shard]
        location = posixpath.join(self._index.url, path)
        try:
            position = int(self._index.row[number])
            row = _with_patience(lambda: self._read(shard, position, path), (OSError,))
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"Row {key} cannot be read from shard {location}: {error}. Prepare the data set again."
            ) from error
        if row["key"] != key:
            raise UserError(f"Shard {location} has {row['key']} where {key} was: it changed after training began.")
        for image in (row["image"], *(row.get("more_images") or ())):
            if image is not None and image["bytes"] is None:
                image["bytes"] = self._linked_image(image["path"], key)
        return row

    def _read(self, shard: int, position: int, path: str) -> dict[str, Any]:
        if shard not in self._files:
            self._files[shard] = _open(self._index.url, path)
        file, ends = self._files[shard]
        group = int(np.searchsorted(ends, position, side="right"))
        table = self._groups.pop((shard, group), None)
        if table is None:
            table = file.read_row_group(group)
            self._held += table.nbytes
        self._groups[shard, group] = table
        while self._held > self._cache_bytes and len(self._groups) > 1:
            self._held -= self._groups.popitem(last=False)[1].nbytes
        start = int(ends[group - 1]) if group else 0
        return table.slice(position - start, 1).to_pylist()[0]

    def _linked_image(self, path: str, key: str) -> bytes:
        try:
            return _with_patience(lambda: read_image(path), (ImageError,))
        except ImageError as error:
            raise BadSampleError(
                f"The linked image of row {key} cannot be read: {error}. Put it back, or prepare the set without links."
            ) from error


def _open(url: str, path: str) -> tuple[pq.ParquetFile, np.ndarray]:
    file = open_shard(url, path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    return file, np.cumsum(sizes)


class SampleSource:
    """Reads, renders and encodes the samples of a plan's batches; the same in every process and in tests."""

    def __init__(self, plan: Plan, processor: Any, task: TaskOptions, cache_bytes: int = 256 * 2**20) -> None:
        """Args: processor: has ``encode(Sample)``; task: draws, without class names (each set brings its own)."""
        self._plan = plan
        self._view = plan.reader()
        self._processor = processor
        indices = plan.mixture.indices
        self._rows = [RowReader(index, cache_bytes // len(indices)) for index in indices]
        self._drawers = [
            Drawer(plan, number, replace(task, class_names=index.class_names)) for number, index in enumerate(indices)
        ]

    def batch(self, number: int, part: int) -> list[Any]:
        """Encoded samples of one micro-batch of global batch ``number``.

        Raises:
            UserError: a row cannot be read or encoded; names its key and shard.
        """
        epoch, refs = self._view.batch(number, part)
        return [self.sample(ref, epoch) for ref in refs]

    def readable(self, number: int, part: int) -> tuple[list[Any], dict[str, str]]:
        """As ``batch``, without the samples that cannot be read or encoded; and the reason for each of these."""
        epoch, refs = self._view.batch(number, part)
        samples: list[Any] = []
        bad: dict[str, str] = {}
        for ref in refs:
            try:
                samples.append(self.sample(ref, epoch))
            except BadSampleError as error:
                bad[str(ref.identity)] = str(error)
        return samples, bad

    def sample(self, ref: SampleRef, epoch: int) -> Any:
        """Encode one sample; a pure function of the data, the plan's seed, the epoch and the sample.

        Raises:
            UserError: its shard cannot be read.
            BadSampleError: the sample cannot be read or encoded.
        """
        row = self._rows[ref.set].row(ref.row)
        try:
            return self._processor.encode(self._drawers[ref.set].sample(row, ref, epoch))
        except (UserError, ValueError, KeyError, IndexError, TypeError, OSError) as error:
            index = self._plan.mixture.indices[ref.set]
            shard = posixpath.join(index.url, index.shards[int(index.shard[ref.row])])
            raise BadSampleError(f"Sample {ref.identity} (shard {shard}) cannot be trained on: {error}") from error
