"""Traces of requests in MLflow, tied to the version of the model that answered.

They are made from the record once a request is over, in a thread of their own: a tracking server that is slow or down
costs the requests nothing.
"""

import importlib.util
import logging
import os
from typing import Any

from padt.errors import UserError, install_command
from serve.observability.background import Background
from serve.observability.metrics import Meters
from serve.observability.records import AnswerRecord, Observer, RequestRecord
from serve.observability.sampling import chosen

logger = logging.getLogger("ray.serve")

VERSION_TAG = "padt.version"
FINGERPRINT_TAG = "padt.fingerprint"


class TraceWriter(Observer):
    """Writes a trace of each chosen request."""

    def __init__(self, share: float, uri: str, experiment: str, text: bool, meters: Meters) -> None:
        """Get ready; MLflow is imported with the first trace.

        Args:
            share: which part of the requests, 0 to 1.
            uri: of the tracking server; empty = ``MLFLOW_TRACKING_URI``.
            experiment: which the traces go into; made if need be.
            text: put the words of questions and answers into the traces.
            meters: count what was left out.

        Raises:
            UserError: MLflow is not installed, or nobody says where the traces go.
        """
        if importlib.util.find_spec("mlflow") is None:
            raise UserError(f"trace_share needs MLflow: install it with `{install_command('train')}`.")
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self._uri:
            raise UserError("trace_share needs a place for the traces: set trace_uri or MLFLOW_TRACKING_URI.")
        self._share = share
        self._experiment = experiment
        self._text = text
        self._experiment_id = ""
        self._background: Background[RequestRecord] = Background("traces", self._write, meters)

    def ended(self, record: RequestRecord) -> None:
        """See ``Observer``."""
        if record.answers and chosen(record.request_id, self._share):
            self._background.put(record)

    def close(self) -> None:
        """See ``Observer``."""
        self._background.close()

    def _write(self, record: RequestRecord) -> None:
        self._connect()
        write_trace(record, self._experiment_id, self._text)

    def _connect(self) -> None:
        if self._experiment_id:
            return
        # This is the thread that may wait; and it tries again with the next trace, not seven times with this one.
        os.environ.setdefault("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        mlflow.set_tracking_uri(self._uri)
        self._experiment_id = mlflow.set_experiment(self._experiment).experiment_id


def write_trace(record: RequestRecord, experiment_id: str, text: bool) -> None:
    """Write the trace of a request that is over: a span for it, one for each question, and one for each stage.

    Stages of a question follow one another: with what is known of them, only their lengths are exact.
    """
    import mlflow

    fingerprints = {answer.fingerprint for answer in record.answers if answer.fingerprint}
    root = mlflow.start_span_no_context(
        f"{record.method} {record.path}",
        span_type="CHAIN",
        experiment_id=experiment_id,
        start_time_ns=_ns(record.began),
        attributes={"status": record.status, "key": record.client, "request_id": record.request_id},
        tags={
            VERSION_TAG: record.version,
            FINGERPRINT_TAG: ",".join(sorted(fingerprints)),
            "padt.task": record.task,
            "padt.request_id": record.request_id,
        },
    )
    for answer in record.answers:
        _write_answer(mlflow, root, answer, text)
    root.end(
        status="OK" if record.status < 400 and not record.code else "ERROR",
        attributes={"code": record.code},
        end_time_ns=_ns(record.began + record.seconds.get("total", 0.0)),
    )


def _write_answer(mlflow: Any, root: Any, answer: AnswerRecord, text: bool) -> None:
    times = answer.times
    stages = {"queue": times.queued, "prefill": times.prefill, "decode": times.decode, "objects": times.objects}
    if times.refine:
        stages["refine"] = times.refine
    began = answer.ended - sum(stages.values())
    span = mlflow.start_span_no_context(
        answer.task,
        span_type="LLM",
        parent_span=root,
        start_time_ns=_ns(began),
        inputs={"prompt": answer.prompt} if text else None,
        attributes={
            "version": answer.version,
            "fingerprint": answer.fingerprint,
            "result": answer.result,
            "objects": answer.objects,
            "mlflow.chat.tokenUsage": {
                "input_tokens": answer.prompt_tokens,
                "output_tokens": answer.completion_tokens,
                "total_tokens": answer.prompt_tokens + answer.completion_tokens,
            },
        },
    )
    for name, seconds in stages.items():
        stage = mlflow.start_span_no_context(name, parent_span=span, start_time_ns=_ns(began))
        began += seconds
        stage.end(end_time_ns=_ns(began))
    span.end(outputs={"text": answer.text} if text else None, end_time_ns=_ns(answer.ended))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
