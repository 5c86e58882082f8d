"""Work that no request waits for: a thread with a short queue. What does not fit is left out, and counted."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger("ray.serve")

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Does one thing with each item, in a thread that starts with the first.

    Attributes:
        lost: items that found the queue full, or over which the work failed.
    """

    def __init__(self, name: str, work: Callable[[Item], None], most: int = 16) -> None:
        """Get ready.

        Args:
            name: of the thread, and of the work in messages.
            work: called with each item.
            most: items that wait at a time.
        """
        self.lost = 0
        self._name = name
        self._work = work
        self._items: queue.Queue[Item | None] = queue.Queue(most)
        self._thread: threading.Thread | None = None
        self._failing = False

    def put(self, item: Item) -> bool:
        """Hand over an item; False = the queue is full, and the item is left out."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"padt-{self._name}", daemon=True)
            self._thread.start()
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self._lose("the queue is full")
            return False
        return True

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
        self.lost += 1
        # Once for each row of failures: a server that is down for an hour is one fact.
        if not self._failing:
            logger.warning("%s leaves requests out (%s); further ones are only counted", self._name, reason)
        self._failing = True
