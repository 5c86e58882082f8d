"""Records of a run on their way from rank 0 to the driver, which alone writes the log lines, the JSONL file and MLflow.

So a SQLite file on the driver's machine serves a run on any cluster, and a restarted worker cannot write a step twice.
"""

import json
import logging
import posixpath
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jobs.common.mlflow_run import TrackedRun
from jobs.training.meter import loss_metric
from padt.model.losses import LOSS_TERMS
from pipelines.io.storage import Folder

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
# Metric: samples that were left out so far because they could not be read; there where it is not 0.
QUARANTINED = "data/quarantined"
POLL_SECONDS = 0.5
# How long a place rests after a failure, and after a success as a multiple of the time that it took.
RETRY_SECONDS = 5.0
REST = 20


@dataclass(frozen=True)
class Record:
    """Metrics of one optimiser step.

    Attributes:
        step: optimiser steps done.
        total: steps of the run.
        metrics: names as in the run contract (``train/*``, ``perf/*``).
        kind: ``metrics``, or ``note`` for a line of text only.
        text: the line of a note.
    """

    step: int
    total: int
    metrics: dict[str, float]
    kind: str = "metrics"
    text: str = ""


class Mailbox:
    """Between rank 0, which puts without waiting, and the driver, which takes; an actor where Ray trains."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._lock = threading.Lock()

    def put(self, record: Record) -> None:
        """Add a record."""
        with self._lock:
            self._records.append(record)

    def take(self) -> list[Record]:
        """All records since the last call."""
        with self._lock:
            records, self._records = self._records, []
        return records


class Sink:
    """A place that records are written to: what fails is kept and tried again, and told at the end if it stays lost.

    Args:
        name: as errors call it.
        write: takes waiting records, some of which an attempt that failed may have written already.
    """

    def __init__(self, name: str, write: Callable[[list[Record]], None]) -> None:
        self._name = name
        self._write = write
        self._waiting: list[Record] = []
        self._failure: Exception | None = None
        self._rests_until = 0.0

    def put(self, record: Record) -> None:
        """Take a record; ``flush`` writes it."""
        self._waiting.append(record)

    def flush(self, *, final: bool = False) -> None:
        """Write what waits, unless this place has to rest; ``final`` is the last chance."""
        begun = time.monotonic()
        if not self._waiting or (begun < self._rests_until and not final):
            return
        try:
            self._write(self._waiting)
        except Exception as error:  # noqa: BLE001 - a lost log must not end a long run; ``lost`` tells it
            if self._failure is None:
                logger.warning("%s cannot be written now and will be tried again: %s", self._name, error)
            self._failure = error
            self._rests_until = time.monotonic() + RETRY_SECONDS
            return
        self._waiting, self._failure = [], None
        ended = time.monotonic()
        self._rests_until = ended + REST * (ended - begun)

    def lost(self) -> str | None:
        """What was not written, as a sentence; None where all was."""
        if not self._waiting:
            return None
        first, last = self._waiting[0].step, self._waiting[-1].step
        reason = f" ({type(self._failure).__name__}: {self._failure})" if self._failure else ""
        return f"{self._name} lacks {len(self._waiting)} records, steps {first} to {last}{reason}."


class RunLog:
    """Writes records: a log line, ``metrics.jsonl``, MLflow. Steps that were written before are left out.

    The file is small and written anew each time, which serves object stores too: a driver that is killed loses what
    came in the last seconds.
    """

    def __init__(
        self, output: str, label: str, run: TrackedRun | None, on_record: Callable[[Record], None] | None = None
    ) -> None:
        self._folder = Folder(output)
        self._label = label
        self._on_record = on_record
        self._lines = (self._folder.read_text(FILE) or "").splitlines()
        self._last = max((json.loads(line)["step"] for line in self._lines), default=-1)
        self._begun: tuple[float, int] | None = None
        self.latest: dict[str, float] = json.loads(self._lines[-1]) if self._lines else {}
        self._file = Sink(posixpath.join(output, FILE), self._write_file)
        self._sinks = [self._file]
        if run is not None:
            self._sinks.append(Sink(f"MLflow run {run.run_id}", partial(_write_to_mlflow, run)))

    def write(self, record: Record) -> None:
        """Log one record and hand it on; ``flush`` writes it."""
        if record.kind == "note":
            logger.info("%s: %s", self._label, record.text)
            return
        logger.info("%s", self._line(record))
        self.latest = dict(record.metrics)
        for sink in self._sinks:
            if sink is not self._file or record.step > self._last:
                sink.put(record)
        if record.step > self._last:
            self._last = record.step
            self._lines.append(json.dumps({"step": record.step, **record.metrics}))
        if self._on_record is not None:
            self._on_record(record)

    def flush(self, *, final: bool = False) -> None:
        """Write what waits, the file first: MLflow may let one wait long."""
        for sink in self._sinks:
            sink.flush(final=final)

    def flush_file(self) -> None:
        """Write what waits for the file, which is no reason to wait for MLflow."""
        self._file.flush(final=True)

    def lost(self) -> list[str]:
        """What could not be written, a sentence for each place."""
        return [sentence for sink in self._sinks if (sentence := sink.lost())]

    def _write_file(self, records: list[Record]) -> None:
        self._folder.write(FILE, "\n".join(self._lines) + "\n")

    def _line(self, record: Record) -> str:
        now = time.monotonic()
        if self._begun is None or record.step <= self._begun[1]:
            seconds = record.metrics.get("perf/step_seconds", 0.0)
        else:
            seconds = (now - self._begun[0]) / (record.step - self._begun[1])
        if self._begun is None:
            self._begun = (now, record.step)
        left = int(seconds * (record.total - record.step))
        get = record.metrics.get
        shown = {"loss": "train/loss", **{name: loss_metric(name) for name in LOSS_TERMS}}
        parts = " ".join(f"{name} {get(key):.3f}" for name, key in shown.items() if key in record.metrics)
        mfu = f"MFU {100 * get('perf/mfu', 0.0):.0f}%, " if "perf/mfu" in record.metrics else ""
        return (
            f"{self._label} {record.step}/{record.total} {100 * record.step // record.total:3d}% | {parts} | "
            f"lr {get('train/lr', 0.0):.1e} | {get('perf/samples_per_s', 0.0):.1f} samples/s, "
            f"{mfu}data wait {100 * get('perf/data_wait_frac', 0.0):.0f}% | {left // 60}:{left % 60:02d} left"
        )


def _write_to_mlflow(run: TrackedRun, records: list[Record]) -> None:
    for record in records:
        run.log_metrics(record.step, record.metrics)


class Courier(threading.Thread):
    """Carries records from the mailbox to the run log while the driver's main thread waits for the trainer."""

    def __init__(self, take: Callable[[], list[Record]], log: RunLog) -> None:
        """Args: take: all records since its last call."""
        super().__init__(name="run-log", daemon=True)
        self._take = take
        self._log = log
        self._done = threading.Event()
        self._failure: Exception | None = None
        self._delivering = threading.Lock()

    def run(self) -> None:
        """Poll until ``close``."""
        while not self._done.wait(POLL_SECONDS):
            with self._delivering:
                self._deliver()
                self._log.flush()

    def deliver(self) -> None:
        """Write what has been sent until now into the metrics file; another thread may call this."""
        with self._delivering:
            self._deliver()
            self._log.flush_file()

    def close(self) -> list[str]:
        """Deliver what is left and stop.

        Returns:
            What could not be logged, a sentence each; they are in the log too.
        """
        self._done.set()
        self.join()
        self._deliver()
        self._log.flush(final=True)
        lost = self._log.lost()
        if self._failure is not None:
            lost.append(f"Records were lost on their way ({type(self._failure).__name__}: {self._failure}).")
        for sentence in lost:
            logger.error("%s", sentence)
        return lost

    def _deliver(self) -> None:
        try:
            for record in self._take():
                self._log.write(record)
        except Exception as error:  # noqa: BLE001 - a lost log must not end a long run; ``close`` tells it
            if self._failure is None:
                logger.warning("records cannot be taken from the workers: %s", error)
            self._failure = error
