"""What a client of the engine holds: events of its request as they come, the whole answer, and a way to cancel."""

import queue
import threading
from collections.abc import Callable, Iterator

from padt.errors import UserError
from padt.inference.events import Ended, Event
from padt.inference.results import Prediction


class CancelledError(UserError):
    """The answer of a request that was cancelled was asked for."""


class Ticket:
    """A submitted request: iterate for its events, once; the last is :class:`Ended`. Safe in threads.

    Iterating waits for events, so the engine must run: in a thread (``engine.running()``), or before
    (``engine.run_until_idle()``).
    """

    def __init__(self, listener: Callable[[Event], None] | None = None) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._listener = listener
        self._ended = threading.Event()
        self._end: Ended | None = None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask for the end: from its next step on the engine does nothing more for this request."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked for the end."""
        return self._cancelled.is_set()

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._ended.is_set()

    def __iter__(self) -> Iterator[Event]:
        """Events, each once."""
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, Ended):
                return

    def end(self, timeout: float | None = None) -> Ended:
        """The last event, waited for.

        Raises:
            TimeoutError: the request has not ended after ``timeout`` seconds.
        """
        if not self._ended.wait(timeout) or self._end is None:
            raise TimeoutError(f"The request has not ended after {timeout} seconds.")
        return self._end

    def result(self, timeout: float | None = None) -> Prediction:
        """The whole answer, waited for.

        Raises:
            TimeoutError: the request has not ended after ``timeout`` seconds.
            CancelledError: it was cancelled.
            Exception: what ended it.
        """
        end = self.end(timeout)
        if end.error is not None:
            raise end.error
        if end.prediction is None:
            raise CancelledError("The request was cancelled before its answer was whole: submit it again.")
        return end.prediction

    def put(self, event: Event) -> None:
        """Called by the engine with each event."""
        if isinstance(event, Ended):
            self._end = event
        try:
            if self._listener is not None:
                self._listener(event)
            else:
                self._events.put(event)
        finally:
            if self._end is not None:
                self._ended.set()
