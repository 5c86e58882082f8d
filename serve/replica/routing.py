"""Which engine gets a job: the one that has seen its pictures, as long as it has room."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


def picture_key(*pictures: bytes) -> str:
    """The same for the same encoded pictures in the same order, and for no others."""
    digest = hashlib.sha256()
    for encoded in pictures:
        digest.update(hashlib.sha256(encoded).digest())
    return digest.hexdigest()


def session(picture_key: str = "", *, only: str = "", avoid: Sequence[str] = ()) -> str:
    """What a job wants of the router, as the ``session_id`` of Serve's handles.

    Args:
        picture_key: of its pictures' content.
        only: name of the one engine that will do; empty = any.
        avoid: names of engines that are to be taken last.
    """
    return ";".join((picture_key, only, ",".join(avoid)))


def ranked(session_id: str, load: Mapping[str, int], full: int) -> list[list[str]]:
    """Names of engines, in groups: the first group comes first, and of a group whichever has least to do.

    A picture always has the same order of engines, each of them its own ("highest random weight"), so that engines
    which come and go move no more pictures than their own. An engine that is full is passed over: one picture that
    everybody asks about is seen by several engines.

    Args:
        session_id: what :func:`session` gave, or empty.
        load: what each engine has to do, in jobs.
        full: jobs from which on an engine is passed over.
    """
    picture_key, only, avoided = session_id.split(";") if session_id else ("", "", "")
    if only:
        return [[only]] if only in load else []
    avoid = set(avoided.split(","))
    others = [name for name in load if name not in avoid]
    last = [name for name in load if name in avoid]
    first: list[str] = []
    if picture_key:
        order = sorted(others, key=lambda name: hashlib.sha256(f"{picture_key} {name}".encode()).digest())
        first = [name for name in order if load[name] < full]
    rest = [name for name in others if name not in first]
    return [group for group in (*([name] for name in first), rest, last) if group]


class PictureRouter(RequestRouter):
    """Serve's request router for the engine's deployment. ``request_router_kwargs``: ``full``, see :func:`ranked`."""

    def initialize_state(self, full: int = 16, **others: Any) -> None:
        """Serve calls this with ``request_router_kwargs``."""
        self._full = full
        self._asked: WeakKeyDictionary[asyncio.Task[Any], PendingRequest] = WeakKeyDictionary()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of engines, in the order in which they are tried."""
        # Jobs that come together are placed one after the other: each has to be counted before the next.
        await asyncio.sleep(0)
        names = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if pending_request is None:
            return [candidate_replicas]
        if (task := asyncio.current_task()) is not None:
            self._asked[task] = pending_request
        # Where nobody takes it, the next try waits.
        pending_request.routing_context.should_backoff = True
        load = {name: self.replica_queue_len_cache.get(one.replica_id) or 0 for name, one in names.items()}
        groups = ranked(pending_request.metadata.session_id, load, self._full)
        return [[names[name] for name in group] for group in groups]

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        """Give the replica to the job that it was chosen for.

        The one that Serve would find by its request's id is another one, or none, where one HTTP request asks the
        engine several things at a time: these have the same id.
        """
        task = asyncio.current_task()
        pending = self._asked.get(task) if task is not None else None
        if pending is None:
            super()._fulfill_next_pending_request(replica, request_metadata)
        elif not pending.future.done():
            self._record_queue_wait_time(pending)
            pending.future.set_result(replica)
            self._remove_pending_request_from_indices(pending)
