"""Training reader: from a plan to collated micro-batches of one rank.

The pure core, ``SampleSource``, reads one row, renders and encodes it. The Ray edge runs that core in reading
processes: Ray Data carries their numbers in and encoded samples (bytes) out, in order, ahead of the consumer.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from padt.data.collate import NO_PIXELS, EncodedSample, collate
from padt.data.tasks import TaskOptions
from padt.errors import UserError, check_range
from pipelines.loader.plan import Plan
from pipelines.loader.sample_source import SampleSource, check_quarantine

if TYPE_CHECKING:
    from padt.data.processor import PaDTProcessor

logger = logging.getLogger(__name__)

# Seconds without a batch until it is said what is waited for, and between saying it again.
_PATIENCE = 30.0


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
        quarantine: samples of a run that may be left out because they cannot be read or encoded, after several tries;
            one more ends it.
        wait_limit: seconds without a batch after which the run ends.
    """

    ray: bool = True
    processes: int = 1
    batches_per_task: int = 4
    prefetch: int = 4
    segment: int = 4096
    cache_bytes: int = 256 * 2**20
    memory_bytes: int = 512 * 2**20
    quarantine: int = 10
    wait_limit: float = 600.0

    def __post_init__(self) -> None:
        for name in ("processes", "batches_per_task", "prefetch", "segment"):
            check_range(f"reader.{name}", getattr(self, name), 1)
        for name in ("cache_bytes", "memory_bytes", "quarantine", "wait_limit"):
            check_range(f"reader.{name}", getattr(self, name), 0)


class EncodeBatches:
    """Ray Data map: a block of batch numbers becomes a block of encoded samples. One instance a reading process."""

    def __init__(
        self, plan: Plan, processor_path: str, task: TaskOptions, rank: int, world_size: int, cache_bytes: int
    ) -> None:
        import ray

        plan = ray.get(plan) if isinstance(plan, ray.ObjectRef) else plan
        processor = _processor(processor_path, plan)
        self._plan: Plan = plan
        self._source = SampleSource(plan, processor, task, cache_bytes)
        self._padding = processor.pad_token_id
        self._rank, self._world_size = rank, world_size

    def __call__(self, block: dict[str, np.ndarray]) -> pa.Table:
        """Batch numbers ``item``, ``(batches,)`` -> one row of ``_BLOCK`` for each sample of the batches."""
        rows: list[tuple[int, int, bytes, str | None, str | None]] = []
        for number in block["item"].tolist():
            try:
                batch, bad = self._source.readable(*self._plan.place(number, self._rank, self._world_size))
            except UserError as error:
                # As data, not as an exception: Ray Data would retry it, and hand on no more than its text.
                rows.append((number, self._padding, b"", None, str(error)))
                break
            # An empty one is a row, too: it is counted.
            bad = bad if batch or bad else {"": ""}
            rows.extend((number, self._padding, sample.to_bytes(), None, None) for sample in batch)
            rows.extend((number, self._padding, b"", name, reason) for name, reason in bad.items())
        columns = [list(column) for column in zip(*rows, strict=True)]
        return pa.table(columns, schema=_BLOCK)


_BLOCK = pa.schema(
    [
        ("batch", pa.int64()),
        ("padding", pa.int64()),
        ("sample", pa.large_binary()),
        ("bad", pa.string()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class _Uncollated:
    """One batch on its way: its number, the padding token, its samples, and why others are left out, by identity."""

    number: int
    padding: int
    samples: list[EncodedSample]
    bad: dict[str, str]


def _processor(path: str, plan: Plan) -> "PaDTProcessor":
    """The model's processor with the sets' resize policy, which the run may have put in the place of the model's."""
    from padt.data.processor import load_processor

    return load_processor(path, min_pixels=plan.policy.min_pixels, max_pixels=plan.policy.max_pixels)


def _placeholder(padding: int) -> EncodedSample:
    """In place of a batch without samples: it has no key and no answer, and counts for nothing."""
    nothing = np.zeros(1, bool)
    return EncodedSample("", "", np.array([padding], np.int64), nothing, nothing, NO_PIXELS, (), ())


class TrainingReader:
    """Iterates the collated micro-batches of one rank, from any global batch on.

    A thread fetches and collates ahead. ``wait_seconds`` is the time the consumer stood waiting, ``quarantined`` why
    samples of the batches so far were left out, by their identity. A batch that has no sample, or lost all of them, has
    one without key and answer.

    Args:
        plan: order of the run.
        rank, world_size: whose share of each global batch: ``Plan.turns`` micro-batches.
        processor_path: model folder that holds the processor.
        task: options of the draws.
        start, stop: first global batch, and the one after the last.
        options: processes and prefetch.
        notify: takes a sentence about what is waited for.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        processor_path: str,
        task: TaskOptions,
        *,
        world_size: int = 1,
        start: int,
        stop: int,
        options: ReaderOptions | None = None,
        notify: Callable[[str], object] = logger.warning,
    ) -> None:
        self._plan = plan
        self._notify = notify
        self._rank, self._world_size = rank, world_size
        self._path = processor_path
        self._task = task
        self._first, self._stop = (step * plan.turns(world_size) for step in (start, stop))
        self._options = options or ReaderOptions()
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=self._options.prefetch)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.wait_seconds = 0.0
        self.quarantined: dict[str, str] = {}

    def start(self) -> None:
        """Begin to read ahead; iterating does it too."""
        if self._thread is None:
            # Imports and loads in the calling thread: two threads importing transformers would trip over each other.
            batches = self._with_ray() if self._options.ray else self._in_process(self._source())
            self._thread = threading.Thread(target=self._produce, args=(batches,), name="training-reader", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield ``(number, Batch)`` in order, once: micro-batches of the rank as ``Plan.place`` numbers them.

        Raises:
            UserError: a shard cannot be read, or more samples than ``ReaderOptions.quarantine`` cannot be trained on.
        """
        self.start()
        try:
            while True:
                begun = time.perf_counter()
                entry = self._next()
                self.wait_seconds += time.perf_counter() - begun
                if entry is None:
                    return
                if isinstance(entry, BaseException):
                    raise entry
                number, batch, bad = entry
                for name in bad.keys() - self.quarantined.keys():
                    logger.warning("left out: %s", bad[name])
                self.quarantined |= bad
                check_quarantine(self.quarantined, self._options.quarantine)
                yield number, batch
        finally:
            self.close()

    def _next(self) -> Any:
        waited = 0.0
        while True:
            pause = min(_PATIENCE, self._options.wait_limit - waited)
            try:
                return self._queue.get(timeout=max(0.0, pause))
            except queue.Empty:
                waited += pause
            reason = f"rank {self._rank} has waited {waited:.0f} s for a batch: {self._awaited()}"
            if waited >= self._options.wait_limit:
                raise UserError(
                    f"{reason}. Add CPUs or take fewer for the workers (each needs its own and reader.processes more), "
                    "or set reader.ray=false to read in the workers; if reading is that slow, raise reader.wait_limit."
                )
            self._notify(reason)

    def _awaited(self) -> str:
        options = self._options
        if not options.ray:
            return "its reading thread gives none yet, so the storage is slow or does not answer"
        import ray

        free, there = (each.get("CPU", 0.0) for each in (ray.available_resources(), ray.cluster_resources()))
        return f"its {options.processes} reading process(es) need a CPU each, and {free:g} of {there:g} are free"

    def close(self) -> None:
        """Stop reading ahead; safe to call twice."""
        self._closed.set()

    def _produce(self, batches: Iterator[_Uncollated]) -> None:
        try:
            for entry in batches:
                samples = entry.samples or [_placeholder(entry.padding)]
                if not self._put((entry.number, collate(samples, entry.padding), entry.bad)):
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
        processor = _processor(self._path, self._plan)
        return SampleSource(self._plan, processor, self._task, self._options.cache_bytes), processor.pad_token_id

    def _in_process(self, opened: tuple[SampleSource, int]) -> Iterator[_Uncollated]:
        source, padding = opened
        for number in range(self._first, self._stop):
            place = self._plan.place(number, self._rank, self._world_size)
            yield _Uncollated(number, padding, *source.readable(*place))

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
            reasons, bad = block["error"].to_pylist(), block["bad"].to_pylist()
            for reason, name in zip(reasons, bad, strict=True):
                if reason is not None and name is None:
                    raise UserError(reason)
            numbers = block["batch"].to_numpy()
            column = block["sample"]
            edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
            for first, last in zip(edges[:-1], edges[1:], strict=True):
                # Views into the block's shared memory, not copies.
                whole = [i for i in range(first, last) if bad[i] is None]
                samples = [EncodedSample.from_bytes(column[i].as_buffer()) for i in whole]
                left_out = {bad[i]: reasons[i] for i in range(first, last) if bad[i]}
                yield _Uncollated(int(numbers[first]), block["padding"][first].as_py(), samples, left_out)

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
            fn_constructor_args=(plan, self._path, self._task, self._rank, self._world_size, options.cache_bytes),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=options.processes),
            num_cpus=1,
        )
