"""Who is let in: a bounded number of requests at once, and what is known of the engine without asking its queue."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve.api.errors import RequestError
from serve.messages import EngineState

# An engine that does not say within this how it is, is not ready; what it said counts for so long.
ANSWER_TIMEOUT_S = 2.0
FRESH_S = 0.5


class Places:
    """A number of places; whoever finds none is refused at once instead of waiting."""

    def __init__(self, most: int, retry_after_s: int) -> None:
        self.most = most
        self.taken = 0
        self._retry_after_s = retry_after_s

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one place for the length of a block.

        Raises:
            RequestError: 503, all are taken.
        """
        if self.taken >= self.most:
            wait = self._retry_after_s
            raise RequestError(503, "overloaded", f"Too many requests wait: try again in {wait} s.", wait)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class EngineWatch:
    """Asks the engine how it is: once for all who want to know, and never for longer than ``ANSWER_TIMEOUT_S``.

    Attributes:
        last: the last answer that came, however old; None before the first.
    """

    def __init__(self, ask: Callable[[], Any], hang_after_s: float) -> None:
        """Start knowing nothing.

        Args:
            ask: starts a call to the engine: an awaitable ``EngineState`` that can be cancelled.
            hang_after_s: an engine that has made no step for so long hangs.
        """
        self.last: EngineState | None = None
        self._ask = ask
        self._hang_after_s = hang_after_s
        self._asking = asyncio.Lock()
        self._current: EngineState | None = None
        self._until = 0.0

    async def ready(self) -> bool:
        """Whether an engine has its model loaded, answers, and does not hang."""
        async with self._asking:
            if time.monotonic() >= self._until:
                self._current = await self._state()
                self.last = self._current or self.last
                self._until = time.monotonic() + FRESH_S
        return self._current is not None and self._current.stalled_s < self._hang_after_s

    async def _state(self) -> EngineState | None:
        call = self._ask()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await call
        except TimeoutError:
            call.cancel()
            return None
        except (RayError, RayServeException):
            # No replica is there, or it died while it was asked: that is the answer.
            return None
