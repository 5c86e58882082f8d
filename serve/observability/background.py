"""Work that no request waits for: a thread with a short queue. What does not fit is left out, and counted."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from serve.observability.metrics import Meters

logger = logging.getLogger("ray.serve")

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Does one thing with each item, in a thread that starts with the first.

    Items that find the queue full, and those over which the work fails, are counted as ``padt_left_out_total``.
    """

    def __init__(self, name: str, work: Callable[[Item], None], meters: Meters, most: int = 16) -> None:
        """Get ready.

        Args:
            name: of the work: in messages, and as the label ``observer``.
            work: called with each item.
            meters: count what is left out.
            most: items that wait at a time.
        """
        self._meters = meters
        self._name = name
        self._work = work
        self._items: queue.Queue[Item | None] = queue.Queue(most)
        self._thread: threading.Thread | None = None
        self._failing = False

    def put(self, item: Item) -> None:
        """Hand over an item, at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"padt-{self._name}", daemon=True)
            self._thread.start()
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self._lose("the queue is full")

    def close(self, wait_s: float = 5.0) -> None:
        """Do what waits, for so many seconds at most."""
        if self._thread is None:
            return
        try:
            self._items.put(None, timeout=wait_s)
        except queue.Full:
            self._lose("the process stops")
        self._thread.join(wait_s)

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                self._work(item)
                self._failing = False
            except Exception as error:
                self._lose(f"{type(error).__name__}: {error}")

    def _lose(self, reason: str) -> None:
        self._meters.add("padt_left_out_total", 1, observer=self._name)
        # Once for each row of failures: a server that is down for an hour is one fact.
        if not self._failing:
            logger.warning("Of requests, %s are left out (%s); further ones are only counted", self._name, reason)
        self._failing = True
