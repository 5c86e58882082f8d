"""Who is let in: a bounded number of requests at once, of which no key holds all; and how the engine is."""

import asyncio
import math
import time
from collections import Counter
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
# No client is told to wait for longer.
LONGEST_WAIT_S = 60


class Places:
    """A number of places; whoever finds none is refused at once instead of waiting.

    Attributes:
        most: how many there are.
        taken: how many are held now.
    """

    def __init__(self, most: int, retry_after_s: int, share: float = 1.0) -> None:
        """Start with all places free.

        Args:
            most: how many there are.
            retry_after_s: what a refusal tells the client to wait at least.
            share: of the places that one client may hold, in (0, 1].
        """
        self.most = most
        self.taken = 0
        self._most_each = max(1, math.floor(most * share))
        self._held: Counter[str] = Counter()
        self._least_wait = retry_after_s
        self._mean_s = 0.0

    @contextmanager
    def one(self, client: str = "") -> Iterator[None]:
        """Hold one place for the length of a block.

        Args:
            client: who holds it; those without a name share no limit of their own.

        Raises:
            RequestError: 429, the client holds its share; 503, all are taken.
        """
        wait = self.retry_after_s
        if client and self._held[client] >= self._most_each:
            message = (
                f"{self._held[client]} requests of your key are being answered, its share of this server: wait for one "
                f"of them, or try again in {wait} s."
            )
            raise RequestError(429, "too_many_requests", message, wait)
        if self.taken >= self.most:
            raise RequestError(503, "overloaded", f"Too many requests wait: try again in {wait} s.", wait)
        began = time.monotonic()
        self.taken += 1
        self._held[client] += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]
            held = time.monotonic() - began
            self._mean_s = held if not self._mean_s else 0.9 * self._mean_s + 0.1 * held

    @property
    def retry_after_s(self) -> int:
        """Seconds after which about half of the places that are held now will be free."""
        return max(self._least_wait, min(LONGEST_WAIT_S, math.ceil(self._mean_s / 2)))


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
