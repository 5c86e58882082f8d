"""The access log: one line of JSON a request, without pictures, and without text unless it is asked for."""

import json
import logging
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any

from padt.errors import UserError
from serve.observability.records import Observer, RequestRecord

_SERVE_LOG = "ray.serve"
_OWN_LOG = "padt.requests"


class RequestLog(Observer):
    """Writes the line of each request."""

    def __init__(self, path: str = "", text: bool = False) -> None:
        """Open the log.

        Args:
            path: file that lines are added to, made if need be, and opened again where it was moved away (logrotate);
                empty = Serve's own log, at level INFO.
            text: write the words of questions and answers too.

        Raises:
            UserError: the file cannot be written.
        """
        self._text = text
        self._logger = logging.getLogger(_OWN_LOG if path else _SERVE_LOG)
        self._handler: logging.Handler | None = None
        if path:
            try:
                self._handler = WatchedFileHandler(path, encoding="utf-8")
            except OSError as error:
                raise UserError(f"request_log {path} cannot be written ({error.strerror}): give another.") from error
            self._handler.setFormatter(logging.Formatter("%(message)s"))
            self._logger.addHandler(self._handler)
            self._logger.setLevel(logging.INFO)
            self._logger.propagate = False

    def ended(self, record: RequestRecord) -> None:
        """See ``Observer``."""
        if self._logger.isEnabledFor(logging.INFO):
            self._logger.info("%s", json.dumps(line(record, self._text), ensure_ascii=False))

    def close(self) -> None:
        """See ``Observer``."""
        if self._handler is not None:
            self._logger.removeHandler(self._handler)
            self._handler.close()


def line(record: RequestRecord, text: bool = False) -> dict[str, Any]:
    """What is written of a request.

    Args:
        record: of a request that is over.
        text: add the words of questions and answers (of a batch the first ones).
    """
    times = record.engine
    values: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.began, UTC).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "key": record.client,
        "method": record.method,
        "path": record.path[:200],
        "task": record.task,
        "status": record.status,
        "code": record.code,
        "milliseconds": {
            **{stage: _ms(seconds) for stage, seconds in record.seconds.items()},
            "queue": _ms(times.queued),
            "engine": _ms(times.prefill + times.decode + times.objects),
            **({"refine": _ms(times.refine)} if times.refine else {}),
        },
        "answers": record.count,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "objects": record.objects,
        "version": record.version,
    }
    if text:
        values["prompts"] = [answer.prompt for answer in record.answers]
        values["texts"] = [answer.text for answer in record.answers]
    return values


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)
