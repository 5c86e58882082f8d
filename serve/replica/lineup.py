"""Which versions answer, and how new ones take over while the old ones go on answering."""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve.messages import Share
from serve.replica.versions import Version
from serve.settings import ModelSource, Release

logger = logging.getLogger("ray.serve")


class Lineup:
    """The versions of one replica. Lives in one event loop.

    Attributes:
        release: what answers; None before the first.
        wanted: what shall answer; the same once it is loaded.
        loading: name of the version that is being loaded beside, or empty.
        problem: why the release that was last wanted does not answer, or empty.
    """

    def __init__(self, load: Callable[[ModelSource], Version]) -> None:
        """Start with nothing.

        Args:
            load: gives a version that is loaded and warm; called in a thread.
        """
        self.release: Release | None = None
        self.loading = ""
        self.problem = ""
        self._load = load
        self.wanted: Release | None = None
        self._versions: dict[ModelSource, Version] = {}
        self._users: Counter[Version] = Counter()
        self._leaving: set[Version] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None

    async def change(self, release: Release) -> None:
        """Let a release answer.

        The first one's main model is loaded before this returns. Later ones, and canaries, are loaded beside what
        answers, which goes on until they are warm, and stays where they cannot be loaded (``problem`` says why).

        Raises:
            UserError: the first model cannot be loaded.
        """
        self.wanted, self.problem = release, ""
        if self.release is None:
            main = release.sources[0]
            self._versions[main] = await asyncio.to_thread(self._load, main)
            self.release = release.model_copy(update={"canary": None})
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        """Load what is wanted until it answers, or cannot."""
        failed: Release | None = None
        while (wanted := self.wanted) not in (self.release, failed):
            assert wanted is not None and self.wanted is not None
            try:
                for source in wanted.sources:
                    if source not in self._versions:
                        self.loading = source.label
                        self._versions[source] = await asyncio.to_thread(self._load, source)
            except Exception as error:
                # Whatever ails a new model is told to whoever wanted it, and costs nobody an answer.
                logger.exception("%s cannot be loaded; what answered goes on", self.loading)
                failed = wanted
                if wanted is self.wanted:
                    self.problem = f"{self.loading} cannot be loaded: {error}"
            else:
                # Something else may be wanted by now.
                if wanted is self.wanted:
                    self.release, self.problem = wanted, ""
                    logger.info("%s answers", ", ".join(source.label for source in wanted.sources))
            finally:
                self.loading = ""
            self._let_go(() if self.wanted is failed else self.wanted.sources)

    def _let_go(self, wanted: tuple[ModelSource, ...]) -> None:
        """Close the versions that neither answer nor are wanted, as soon as nobody waits for them."""
        assert self.release is not None
        kept = {*self.release.sources, *wanted}
        for source in [source for source in self._versions if source not in kept]:
            version = self._versions.pop(source)
            self._leaving.add(version)
            self._close_unused(version)

    def _close_unused(self, version: Version) -> None:
        if version in self._leaving and not self._users[version]:
            del self._users[version]
            task = asyncio.create_task(self._close(version))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _close(self, version: Version) -> None:
        await asyncio.to_thread(version.close)
        self._leaving.discard(version)

    @contextmanager
    def using(self, request_id: str) -> Iterator[Version]:
        """The version that answers a request, which stays for the length of a block whatever is changed."""
        version = self._choose(request_id)
        self._users[version] += 1
        try:
            yield version
        finally:
            self._users[version] -= 1
            self._close_unused(version)

    def _choose(self, request_id: str) -> Version:
        assert self.release is not None, "Serve configures a replica before its first request"
        main, *canaries = self.release.sources
        canary = self.release.canary
        if canary is not None and percent_of(request_id) < canary.percent:
            return self._versions[canaries[0]]
        return self._versions[main]

    @property
    def main(self) -> Version:
        """The version that answers whatever is not the canary's share."""
        assert self.release is not None, "Serve configures a replica before its first request"
        return self._versions[self.release.sources[0]]

    @property
    def shares(self) -> tuple[Share, ...]:
        """Who answers which share of the requests."""
        assert self.release is not None
        main, *canaries = (self._versions[source] for source in self.release.sources)
        percent = self.release.canary.percent if self.release.canary is not None else 0.0
        rest = Share(main.name, main.fingerprint, main.source.model, 100.0 - percent)
        return (rest, *(Share(one.name, one.fingerprint, one.source.model, percent) for one in canaries))

    @property
    def running(self) -> int:
        """How many requests are being answered."""
        return self._users.total()

    @property
    def stalled_s(self) -> float:
        """How long some version has been without a step although answers wait for one."""
        return max((version.stalled_s for version in self._every()), default=0.0)

    def check(self) -> None:
        """Notice a version that answers nothing more, and tell whoever waits for it.

        Raises:
            RuntimeError: there is one; or no model was ever named.
        """
        if self.release is None:
            raise RuntimeError(
                "No model is named: give `model` in the application's args or in the user_config of its Engine."
            )
        problems = []
        for version in self._every():
            try:
                version.check()
            except RuntimeError as error:
                problems.append(str(error))
        if problems:
            raise RuntimeError(" ".join(problems))

    def _every(self) -> list[Version]:
        # One that is being closed has been answered for.
        return [*self._versions.values(), *(version for version in self._leaving if self._users[version])]


def percent_of(request_id: str) -> float:
    """Where a request falls in [0, 100): the same place on every replica, and evenly over all requests."""
    digest = hashlib.sha256(request_id.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100
