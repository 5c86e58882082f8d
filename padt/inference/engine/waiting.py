"""The queue of the engine: requests that wait, each client's turn after the other's."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from padt.errors import UserError
from padt.inference.engine.rows import Row
from padt.inference.engine.scheduler import Admission, EngineLimits


class EngineBusyError(UserError):
    """The engine's queue is full, or one client's share of it.

    Attributes:
        client: whose share is used up; None where the whole queue is.
    """

    def __init__(self, message: str, client: str | None = None) -> None:
        super().__init__(message)
        self.client = client


class WaitingRows:
    """Requests that wait. Safe in threads.

    Clients take turns, and one client's requests are served in the order of their submission: a client that has
    submitted a hundred holds another's one up by a single request.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        # In the order of the clients' turns; a client without requests is not there.
        self._queues: OrderedDict[str, deque[Row]] = OrderedDict()
        self._closed: BaseException | None = None
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """How many wait."""
        with self._changed:
            return sum(map(len, self._queues.values()))

    @property
    def closed(self) -> BaseException | None:
        """Why no more requests are taken; None while they are."""
        return self._closed

    def of_client(self, client: str) -> int:
        """How many of one client wait."""
        with self._changed:
            return len(self._queues.get(client, ()))

    def rows(self) -> list[Row]:
        """Those that wait now."""
        with self._changed:
            return [row for queue in self._queues.values() for row in queue]

    def oldest(self) -> float | None:
        """Time of the earliest submission (``time.perf_counter``); None where nobody waits."""
        with self._changed:
            return min((queue[0].submitted for queue in self._queues.values()), default=None)

    def check_room(self, client: str) -> None:
        """Refuse more requests than may wait.

        Raises:
            EngineBusyError: so many wait already.
            RuntimeError: the engine has failed.
        """
        if self._closed is not None:
            raise RuntimeError("The engine has failed and takes no more requests.") from self._closed
        if len(self) >= self._limits.max_waiting:
            raise EngineBusyError(f"{self._limits.max_waiting} requests are waiting already: try again later.")
        share = self._limits.max_waiting_per_client
        if share is not None and self.of_client(client) >= share:
            raise EngineBusyError(
                f"{share} requests of one client are waiting already (max_waiting_per_client): wait for some of their "
                "answers.",
                client,
            )

    def add(self, row: Row) -> None:
        """Let a request wait.

        Raises:
            EngineBusyError: too many wait already.
            RuntimeError: the engine has failed.
        """
        with self._changed:
            self.check_room(row.client)
            self._queues.setdefault(row.client, deque()).append(row)
            self._changed.notify_all()

    def take_cancelled(self) -> list[Row]:
        """Requests that were cancelled while they waited."""
        with self._changed:
            found = [row for queue in self._queues.values() for row in queue if row.ticket.cancelled]
            for client in {row.client for row in found}:
                self._keep(client, deque(row for row in self._queues[client] if not row.ticket.cancelled))
        return found

    def take(self, most: int, admission: Admission) -> list[Row]:
        """The next requests that an admission has room for.

        The first that does not fit ends the admission and keeps its turn: nobody overtakes it, however small.
        """
        found: list[Row] = []
        with self._changed:
            while self._queues and len(found) < most:
                client, queue = next(iter(self._queues.items()))
                if not admission.fits(queue[0].prompt):
                    break
                found.append(queue.popleft())
                self._queues.move_to_end(client)
                self._keep(client, queue)
        return found

    def _keep(self, client: str, queue: deque[Row]) -> None:
        if queue:
            self._queues[client] = queue
        else:
            del self._queues[client]

    def close(self, error: BaseException) -> list[Row]:
        """Take no more requests; returns those that still wait."""
        with self._changed:
            self._closed = error
            found = self.rows()
            self._queues.clear()
        return found

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait until a request comes, or ``until`` is true when somebody calls :meth:`wake`."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queues) or until())

    def wake(self) -> None:
        """Let whoever waits look again."""
        with self._changed:
            self._changed.notify_all()
