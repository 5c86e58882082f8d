"""Records of a run on their way from rank 0 to the driver, which alone writes the log lines, the JSONL file and MLflow.

So a SQLite file on the driver's machine serves a run on any cluster, and a restarted worker cannot write a step twice.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.common.mlflow_run import TrackedRun
from jobs.training.meter import loss_metric
from padt.model.losses import LOSS_TERMS
from pipelines.io.reading import is_local
from pipelines.io.storage import Folder

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
POLL_SECONDS = 0.5


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
    """Ray actor between rank 0 and the driver. Rank 0 puts without waiting; the driver takes."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def put(self, record: Record) -> None:
        """Add a record."""
        self._records.append(record)

    def take(self) -> list[Record]:
        """All records since the last call."""
        records, self._records = self._records, []
        return records


class RunLog:
    """Writes records: a log line, a line of ``metrics.jsonl``, MLflow. Steps that were written before are left out."""

    def __init__(
        self, output: str, label: str, run: TrackedRun | None, on_record: Callable[[Record], None] | None = None
    ) -> None:
        self._folder = Folder(output)
        self._label = label
        self._run = run
        self._on_record = on_record
        text = self._folder.read_text(FILE) or ""
        # A process killed while it wrote may leave half a line.
        self._lines = [line for line in text.splitlines() if _is_json(line)]
        self._last = max((json.loads(line)["step"] for line in self._lines), default=-1)
        self._local = is_local(self._folder.fs)
        self._begun: tuple[float, int] | None = None
        self.latest: dict[str, float] = json.loads(self._lines[-1]) if self._lines else {}
        if self._lines:
            self._folder.write(FILE, "\n".join(self._lines) + "\n")

    def write(self, record: Record) -> None:
        """Write one record."""
        if record.kind == "note":
            logger.info("%s: %s", self._label, record.text)
            return
        logger.info("%s", self._line(record))
        if self._on_record is not None:
            self._on_record(record)
        self.latest = dict(record.metrics)
        if record.step > self._last:
            self._last = record.step
            self._append(json.dumps({"step": record.step, **record.metrics}))
        if self._run is not None:
            self._run.log_metrics(record.step, record.metrics)

    def flush(self) -> None:
        """Write the JSONL file where it cannot be appended to (object stores)."""
        if not self._local and self._lines:
            self._folder.write(FILE, "\n".join(self._lines) + "\n")

    def _append(self, line: str) -> None:
        self._lines.append(line)
        if self._local:
            path = Path(self._folder.path(FILE))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as handle:
                handle.write(line.encode("utf-8") + b"\n")

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
        return (
            f"{self._label} {record.step}/{record.total} {100 * record.step // record.total:3d}% | {parts} | "
            f"lr {get('train/lr', 0.0):.1e} | {get('perf/samples_per_s', 0.0):.1f} samples/s, "
            f"data wait {100 * get('perf/data_wait_frac', 0.0):.0f}% | {left // 60}:{left % 60:02d} left"
        )


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class Courier(threading.Thread):
    """Carries records from the mailbox to the run log while the driver's main thread waits for the trainer."""

    def __init__(self, mailbox: Any, log: RunLog) -> None:
        super().__init__(name="run-log", daemon=True)
        self._mailbox = mailbox
        self._log = log
        self._done = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        """Poll until ``close``."""
        while not self._done.wait(POLL_SECONDS):
            self._deliver()

    def close(self) -> None:
        """Deliver what is left and stop."""
        self._done.set()
        self.join()
        self._deliver()
        self._log.flush()

    def _deliver(self) -> None:
        import ray

        try:
            for record in ray.get(self._mailbox.take.remote()):
                self._log.write(record)
        except Exception as error:  # a lost log must not end a long run; the driver reports it at the end
            if self.failure is None:
                logger.warning("metrics could not be written: %s", error)
            self.failure = error
