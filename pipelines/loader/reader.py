"""Training reader: from a plan to collated batches of one rank.

The pure core reads one row, renders and encodes it (``SampleSource``). The Ray edge runs that core in reading
processes: Ray Data carries batch numbers in and encoded samples (bytes) out, in order, ahead of the consumer.
"""

import logging
import posixpath
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from padt.data.collate import EncodedSample, collate
from padt.data.tasks import TaskOptions
from padt.errors import ImageError, UserError, check_range
from pipelines.dataset.index import SetIndex
from pipelines.dataset.read import open_shard
from pipelines.io.images import read_image
from pipelines.loader.mixture import SampleRef
from pipelines.loader.plan import Plan
from pipelines.loader.sample import Drawer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReaderOptions:
    """How samples are read.

    Attributes:
        ray: use Ray Data processes; False reads in a thread of the calling process.
        processes: reading processes of this rank.
        batches_per_task: batches made by one Ray task.
        prefetch: collated batches that wait for the consumer.
        segment: batches of one Ray Data execution; bounds its bookkeeping in long runs.
        cache_bytes: row groups kept in a reading process.
        memory_bytes: encoded samples that may wait in the object store.
    """

    ray: bool = True
    processes: int = 1
    batches_per_task: int = 4
    prefetch: int = 4
    segment: int = 4096
    cache_bytes: int = 256 * 2**20
    memory_bytes: int = 512 * 2**20

    def __post_init__(self) -> None:
        for name in ("processes", "batches_per_task", "prefetch", "segment"):
            check_range(f"reader.{name}", getattr(self, name), 1)
        for name in ("cache_bytes", "memory_bytes"):
            check_range(f"reader.{name}", getattr(self, name), 0)


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
            UserError: the shard or the linked image cannot be read (names key and file).
        """
        shard = int(self._index.shard[number])
        key = self._index.keys[number].as_py()
        path = self._index.shards[shard]
        location = posixpath.join(self._index.url, path)
        try:
            row = self._read(shard, int(self._index.row[number]), path)
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
            return read_image(path)
        except ImageError as error:
            raise UserError(
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

    def batch(self, number: int, rank: int) -> list[Any]:
        """Encoded samples of one rank in global batch ``number``.

        Raises:
            UserError: a row cannot be read or encoded; names its key and shard.
        """
        epoch, refs = self._view.batch(number, rank)
        return [self.sample(ref, epoch) for ref in refs]

    def sample(self, ref: SampleRef, epoch: int) -> Any:
        """Encode one sample; a pure function of the data, the plan's seed, the epoch and the sample."""
        row = self._rows[ref.set].row(ref.row)
        try:
            return self._processor.encode(self._drawers[ref.set].sample(row, ref, epoch))
        except (UserError, ValueError, KeyError, IndexError, TypeError, OSError) as error:
            index = self._plan.mixture.indices[ref.set]
            shard = posixpath.join(index.url, index.shards[int(index.shard[ref.row])])
            raise UserError(f"Sample {ref.identity} (shard {shard}) cannot be trained on: {error}") from error


class EncodeBatches:
    """Ray Data map: a block of batch numbers becomes a block of encoded samples. One instance a reading process."""

    def __init__(self, plan: Plan, processor_path: str, task: TaskOptions, rank: int, cache_bytes: int) -> None:
        import ray

        from padt.data.processor import load_processor

        plan = ray.get(plan) if isinstance(plan, ray.ObjectRef) else plan
        processor = load_processor(processor_path)
        self._source = SampleSource(plan, processor, task, cache_bytes)
        self._padding = processor.pad_token_id
        self._rank = rank

    def __call__(self, block: dict[str, np.ndarray]) -> pa.Table:
        """Batch numbers ``item``, ``(batches,)`` -> one row of ``_BLOCK`` for each sample of the batches."""
        rows: list[tuple[int, int, bytes, str | None]] = []
        for number in block["item"].tolist():
            try:
                batch = self._source.batch(number, self._rank)
            except UserError as error:
                # As data, not as an exception: Ray Data would retry it, and hand on no more than its text.
                rows.append((number, self._padding, b"", str(error)))
                break
            rows.extend((number, self._padding, sample.to_bytes(), None) for sample in batch)
        columns = [list(column) for column in zip(*rows, strict=True)]
        return pa.table(columns, schema=_BLOCK)


_BLOCK = pa.schema(
    [
        ("batch", pa.int64()),
        ("padding", pa.int64()),
        ("sample", pa.large_binary()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class _Uncollated:
    """One batch on its way: its number, the padding token, and its samples."""

    number: int
    padding: int
    samples: list[EncodedSample]


class TrainingReader:
    """Iterates the collated batches of one rank, from any global batch on.

    A thread fetches and collates ahead. ``wait_seconds`` is the time the consumer stood waiting.

    Args:
        plan: order of the run.
        rank: whose part of each batch.
        processor_path: model folder that holds the processor.
        task: options of the draws.
        start, stop: first global batch, and the one after the last.
        options: processes and prefetch.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        processor_path: str,
        task: TaskOptions,
        *,
        start: int,
        stop: int,
        options: ReaderOptions | None = None,
    ) -> None:
        self._plan = plan
        self._rank = rank
        self._path = processor_path
        self._task = task
        self._first = start
        self._stop = stop
        self._options = options or ReaderOptions()
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=self._options.prefetch)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.wait_seconds = 0.0

    def start(self) -> None:
        """Begin to read ahead; iterating does it too."""
        if self._thread is None:
            # Imports and loads in the calling thread: two threads importing transformers would trip over each other.
            batches = self._with_ray() if self._options.ray else self._in_process(self._source())
            self._thread = threading.Thread(target=self._produce, args=(batches,), name="training-reader", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield ``(global batch number, Batch)`` in order, once.

        Raises:
            UserError: a sample cannot be read or encoded.
        """
        self.start()
        try:
            while True:
                begun = time.perf_counter()
                entry = self._queue.get()
                self.wait_seconds += time.perf_counter() - begun
                if entry is None:
                    return
                if isinstance(entry, BaseException):
                    raise entry
                yield entry
        finally:
            self.close()

    def close(self) -> None:
        """Stop reading ahead; safe to call twice."""
        self._closed.set()

    def _produce(self, batches: Iterator[_Uncollated]) -> None:
        try:
            for entry in batches:
                if not self._put((entry.number, collate(entry.samples, entry.padding))):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            self._put(error)

    def _put(self, entry: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(entry, timeout=0.5)
                return True
            except queue.Full:
                continue
        return False

    def _source(self) -> tuple[SampleSource, int]:
        from padt.data.processor import load_processor

        processor = load_processor(self._path)
        return SampleSource(self._plan, processor, self._task, self._options.cache_bytes), processor.pad_token_id

    def _in_process(self, opened: tuple[SampleSource, int]) -> Iterator[_Uncollated]:
        source, padding = opened
        for number in range(self._first, self._stop):
            yield _Uncollated(number, padding, source.batch(number, self._rank))

    def _with_ray(self) -> Iterator[_Uncollated]:
        import ray

        plan = ray.put(self._plan)
        expected = self._first
        while expected < self._stop and not self._closed.is_set():
            stop = min(self._stop, expected + self._options.segment)
            for entry in self._segment(plan, expected, stop):
                if entry.number != expected:
                    raise RuntimeError(f"Ray Data delivered batch {entry.number} where batch {expected} was due.")
                expected += 1
                yield entry

    def _segment(self, plan: Any, start: int, stop: int) -> Iterator[_Uncollated]:
        dataset = self._dataset(plan, start, stop)
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for message in block["error"].drop_null().to_pylist():
                raise UserError(message)
            numbers = block["batch"].to_numpy()
            column = block["sample"]
            edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
            for first, last in zip(edges[:-1], edges[1:], strict=True):
                # Views into the block's shared memory, not copies.
                samples = [EncodedSample.from_bytes(column[i].as_buffer()) for i in range(first, last)]
                yield _Uncollated(int(numbers[first]), block["padding"][first].as_py(), samples)

    def _dataset(self, plan: Any, start: int, stop: int) -> Any:
        import ray

        options = self._options
        blocks = -(-(stop - start) // options.batches_per_task)
        dataset = ray.data.from_items(list(range(start, stop)), override_num_blocks=blocks)
        context = dataset.context
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        # Each rank runs its own execution: without limits every one of them would count on the whole cluster.
        context.execution_options.resource_limits = ray.data.ExecutionResources(
            cpu=options.processes, object_store_memory=options.memory_bytes
        )
        return dataset.map_batches(
            EncodeBatches,
            fn_constructor_args=(plan, self._path, self._task, self._rank, options.cache_bytes),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=options.processes),
            num_cpus=1,
        )
