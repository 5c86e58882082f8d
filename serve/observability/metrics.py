"""The metrics of the endpoint: one table, and how requests and steps of the engine are counted in it.

They are Ray's own (``ray.serve.metrics``): each node's exporter, which a cluster's Prometheus scrapes already, has them
as ``ray_`` and their name, with the labels of Serve (application, deployment, replica) beside those of the table. Ray
takes the middle of a bucket for each value of it, so the sums of histograms are rough; counts and quantiles are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

from serve.messages import Job, Outcome
from serve.observability.records import AnswerRecord, Observer, RequestRecord

if TYPE_CHECKING:
    # Its package needs torch, which an ingress does without.
    from padt.inference.engine.reports import StepReport

PREFIX = "ray_"
"""What Ray puts before each name."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

PATHS = frozenset({"/", "/v1/predict", "/v1/chat/completions", "/v1/batch", "/v1/models", "/docs", "/openapi.json"})
"""Paths that are counted by their name."""
STAGES = ("preprocess", "queue", "prefill", "decode", "objects", "refine", "encode")
"""What a request goes through: body and picture; waiting; vision and prompt; steps; object decoder; SAM 2; writing."""


@dataclass(frozen=True)
class Metric:
    """One row.

    Attributes:
        name: without ``PREFIX``.
        kind: of Prometheus.
        help: what it is, in a sentence.
        labels: by which it is told apart.
        buckets: upper bounds of a histogram.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "padt_requests_total", "counter", "Requests, health checks aside.", ("path", "task", "status", "version")
        ),
        Metric("padt_request_seconds", "histogram", "From head to end of a request.", ("task", "version"), _SECONDS),
        Metric("padt_answers_total", "counter", "Questions that ended in an engine.", ("task", "result", "version")),
        Metric(
            "padt_stage_seconds",
            "histogram",
            f"Time of a question in each stage: {', '.join(STAGES)}.",
            ("stage", "task", "version"),
            _SECONDS,
        ),
        Metric("padt_prompt_tokens_total", "counter", "Tokens of prompts, patches included.", ("task", "version")),
        Metric("padt_completion_tokens_total", "counter", "Tokens of answers.", ("task", "version")),
        Metric("padt_objects_total", "counter", "Objects in answers.", ("task", "version")),
        Metric("padt_step_seconds", "histogram", "Time of a step of the engine.", ("version",), _SECONDS),
        Metric("padt_step_rows", "histogram", "Answers that a step wrote a token of.", ("version",), _SIZES),
        Metric("padt_waiting_rows", "gauge", "Questions that wait for their admission.", ("version",)),
        Metric("padt_running_rows", "gauge", "Answers that are being written.", ("version",)),
        Metric("padt_cache_hits_total", "counter", "Look-ups of pictures that the engine knew already.", ("version",)),
        Metric("padt_cache_misses_total", "counter", "Look-ups of pictures that it had to look at.", ("version",)),
        Metric("padt_refusals_repeated_total", "counter", "503 given by proxies for full ingresses.", ("path",)),
        Metric("padt_left_out_total", "counter", "Requests not sampled or traced for lack of time.", ("observer",)),
    )
}
"""All metrics by name."""


class Instrument(Protocol):
    """One of Ray's metrics, whatever its kind."""

    def __call__(self, value: float, tags: Mapping[str, str]) -> None:
        """Count, set or observe a value."""


class Meters:
    """All metrics of the table; see ``process_meters``."""

    def __init__(self) -> None:
        self._instruments = {name: instrument(name) for name in METRICS}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Count, set or observe a value of ``METRICS[name]``, with all of its labels."""
        self._instruments[name](value, labels)


class CountRequests(Observer):
    """Counts what the ingress knows of requests."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters

    def answered(self, job: Job, outcome: Outcome, answer: AnswerRecord) -> None:
        """See ``Observer``."""
        add, about = self._meters.add, {"task": answer.task, "version": answer.version}
        add("padt_answers_total", 1, result=answer.result, **about)
        if outcome.prediction is None:
            return
        times = answer.times
        for stage, seconds in (
            ("queue", times.queued),
            ("prefill", times.prefill),
            ("decode", times.decode),
            ("objects", times.objects),
        ):
            add("padt_stage_seconds", seconds, stage=stage, **about)
        if times.refine:
            add("padt_stage_seconds", times.refine, stage="refine", **about)
        add("padt_prompt_tokens_total", answer.prompt_tokens, **about)
        add("padt_completion_tokens_total", answer.completion_tokens, **about)
        add("padt_objects_total", answer.objects, **about)

    def ended(self, record: RequestRecord) -> None:
        """See ``Observer``."""
        about = {"task": record.task, "version": record.version}
        # Paths that do not exist are as many as strangers make up.
        path = record.path if record.path in PATHS else "other"
        self._meters.add("padt_requests_total", 1, path=path, status=str(record.status), **about)
        if record.answers:
            self._meters.add("padt_request_seconds", record.seconds["total"], **about)
            for stage in ("preprocess", "encode"):
                if stage in record.seconds:
                    self._meters.add("padt_stage_seconds", record.seconds[stage], stage=stage, **about)


class CountSteps:
    """Counts the steps of an engine: give it to the engine as ``on_step``, and the engine to it."""

    def __init__(self, meters: Meters, version: str) -> None:
        """Get ready.

        Args:
            meters: what counts.
            version: of the engine's model.
        """
        self._meters = meters
        self._version = version
        self._engine: Any = None
        self._looked_up = (0, 0)

    def watch(self, engine: Any) -> None:
        """Count this engine (``padt.inference.engine.Engine``)."""
        self._engine = engine

    def __call__(self, report: "StepReport") -> None:
        """Called in the engine's thread after a step."""
        add, version, work = self._meters.add, self._version, report.work
        if report.rows:
            add("padt_step_rows", report.rows, version=version)
            add("padt_step_seconds", work.prefill_s + work.decode_s + work.objects_s, version=version)
        add("padt_waiting_rows", report.waiting, version=version)
        if self._engine is None:
            return
        # Not the rows of the step: those that have ended in it run no more, and there may be no further step.
        add("padt_running_rows", self._engine.running_rows, version=version)
        hits, misses = self._engine.cache.hits, self._engine.cache.misses
        add("padt_cache_hits_total", hits - self._looked_up[0], version=version)
        add("padt_cache_misses_total", misses - self._looked_up[1], version=version)
        self._looked_up = (hits, misses)


@cache
def process_meters() -> Meters:
    """The metrics of this process, made once, whatever number of models it has."""
    return Meters()


def instrument(name: str) -> Instrument:
    """The metric of this process with a name of ``METRICS``, alone."""
    from ray.serve import metrics

    metric = METRICS[name]
    if metric.kind == "histogram":
        histogram = metrics.Histogram(metric.name, metric.help, list(metric.buckets), metric.labels)
        return lambda value, tags: histogram.observe(value, dict(tags))
    if metric.kind == "gauge":
        gauge = metrics.Gauge(metric.name, metric.help, metric.labels)
        return lambda value, tags: gauge.set(value, dict(tags))
    counter = metrics.Counter(metric.name, metric.help, metric.labels)

    def count(value: float, tags: Mapping[str, Any]) -> None:
        # Ray refuses to count nothing.
        if value > 0:
            counter.inc(value, dict(tags))

    return count
