"""Who is let in: a bounded number of requests at once, of which no key holds all; and how the engine is."""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve.api.errors import RequestError
from serve.messages import EngineState

logger = logging.getLogger("ray.serve")

# An engine that does not say within this how it is, is not ready; what it said counts for so long.
ANSWER_TIMEOUT_S = 2.0
FRESH_S = 0.5
# One of several may be about to be replaced.
ENGINES_ASKED = 2
COUNT_FRESH_S = 2.0
# No client is told to wait for longer.
LONGEST_WAIT_S = 60


class Places:
    """A number of places; whoever finds none is refused at once instead of waiting.

    Attributes:
        most: how many there are; may change.
        taken: how many are held now.
        closed: whether nobody is let in any more, because the server stops.
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
        self.closed = False
        self._share = share
        self._held: Counter[str] = Counter()
        self._least_wait = retry_after_s
        self._mean_s = 0.0

    @contextmanager
    def one(self, client: str = "") -> Iterator[None]:
        """Hold one place for the length of a block.

        Args:
            client: who holds it; those without a name share no limit of their own.

        Raises:
            RequestError: 429, the client holds its share; 503, all are taken, or the server stops.
        """
        self.check(client)
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

    def check(self, client: str = "") -> None:
        """Refuse whoever would find no place now.

        Raises:
            RequestError: as :meth:`one`.
        """
        wait = self.retry_after_s
        if self.closed:
            raise RequestError(503, "stopping", f"This server is stopping: try again in {wait} s.", wait)
        if client and self._held[client] >= max(1, math.floor(self.most * self._share)):
            message = (
                f"{self._held[client]} requests of your key are being answered, its share of this server: wait for one "
                f"of them, or try again in {wait} s."
            )
            raise RequestError(429, "too_many_requests", message, wait)
        if self.taken >= self.most:
            raise RequestError(503, "overloaded", f"Too many requests wait: try again in {wait} s.", wait)

    @property
    def retry_after_s(self) -> int:
        """Seconds after which about half of the places that are held now will be free."""
        return max(self._least_wait, min(LONGEST_WAIT_S, math.ceil(self._mean_s / 2)))


class EngineWatch:
    """Asks an engine how it is: once for all who want to know, and never for longer than ``ANSWER_TIMEOUT_S`` each.

    Attributes:
        last: the last answer that came, however old; None before the first.
    """

    def __init__(self, ask: Callable[[tuple[str, ...]], Any], hang_after_s: float) -> None:
        """Start knowing nothing.

        Args:
            ask: starts a call to an engine, rather not to those that are named: an awaitable ``EngineState`` that can
                be cancelled.
            hang_after_s: an engine that has made no step for so long hangs.
        """
        self.last: EngineState | None = None
        self._ask = ask
        self._hang_after_s = hang_after_s
        self._asking = asyncio.Lock()
        self._well = False
        self._until = 0.0

    async def ready(self) -> bool:
        """Whether some engine has its model loaded, answers, and does not hang."""
        async with self._asking:
            if time.monotonic() >= self._until:
                avoid: tuple[str, ...] = ()
                for _ in range(ENGINES_ASKED):
                    state = await self._state(avoid)
                    self.last = state or self.last
                    self._well = state is not None and not state.lost and state.stalled_s < self._hang_after_s
                    if self._well:
                        break
                    avoid = (*avoid, state.replica) if state else avoid
                self._until = time.monotonic() + FRESH_S
        return self._well

    async def _state(self, avoid: tuple[str, ...]) -> EngineState | None:
        call = self._ask(avoid)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await call
        except TimeoutError:
            call.cancel()
            return None
        except (RayError, RayServeException):
            # No replica is there, or it died while it was asked: that is the answer.
            return None


class ReplicaCount:
    """Learns how many replicas run, where they follow the load: now and then, beside the requests."""

    def __init__(self, count: Callable[[], tuple[int, int]], tell: Callable[[int, int], None]) -> None:
        """Start not knowing.

        Args:
            count: numbers of engines and of ingresses that run; called in a thread.
            tell: gets them.
        """
        self._count = count
        self._tell = tell
        self._looking: asyncio.Task[None] | None = None
        self._until = 0.0

    def look(self) -> None:
        """Have a look, unless the last one is fresh; does not wait for it."""
        if time.monotonic() >= self._until and (self._looking is None or self._looking.done()):
            self._until = time.monotonic() + COUNT_FRESH_S
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        try:
            engines, ingresses = await asyncio.to_thread(self._count)
        except (RayError, RayServeException) as error:
            # What was known goes on to count.
            logger.warning("Serve does not say how many replicas run: %s", error)
        else:
            self._tell(engines, ingresses)


def running_replicas() -> tuple[int, int]:
    """How many engines and ingresses of this replica's application run."""
    deployments = serve.status().applications[serve.get_replica_context().app_name].deployments
    engines, ingresses = (
        sum(deployments[name].replica_states.get(state, 0) for state in ("RUNNING", "UPDATING"))
        for name in ("Engine", "Ingress")
    )
    return engines, ingresses
