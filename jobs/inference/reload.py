"""`padt reload`: another model in the place of the one that answers, or beside it, without a request that fails."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common.model_reference import ResolvedModel, find_model, listing
from padt.errors import UserError

if TYPE_CHECKING:
    from serve.messages import EngineState
    from serve.settings import ModelSource, Release

logger = logging.getLogger(__name__)


def source_of(model: str) -> "ModelSource":
    """A model as an engine takes it.

    Raises:
        UserError: it is not there.
    """
    return as_source(find_model(model))


def as_source(found: ResolvedModel) -> "ModelSource":
    """A found model as an engine takes it: its folder, and what answers call it (``padt/7``, or the folder's name)."""
    from serve.settings import ModelSource

    version = f"{found.name}/{found.version}" if found.version else ""
    return ModelSource(model=str(found.path), version=version, revision=listing(found.path)[:12])


def next_release(now: "Release", source: "ModelSource", percent: float | None = None) -> "Release":
    """The release after one: a model for all requests, or as a canary for a part of them."""
    from serve.settings import Canary, Release

    if percent is not None:
        return now.model_copy(update={"canary": Canary(**source.model_dump(), percent=percent)})
    main = now.sources[0]
    return Release(**source.model_dump(), previous=main if main != source else now.previous)


def release_before(now: "Release") -> "Release":
    """The release to go back to: without the canary, or the model that answered before.

    Raises:
        UserError: there is neither.
    """
    from serve.settings import Release

    if now.canary is not None:
        return now.model_copy(update={"canary": None})
    if now.previous is None:
        raise UserError(f"{now.label} is the first model of this application: there is none to go back to.")
    return Release(**now.previous.model_dump(), previous=now.sources[0])


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Be connected to the Ray at an address, of the environment, or that runs on this machine.

    Raises:
        UserError: there is none.
    """
    from jobs.common.ray_session import ray_session

    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = address or before or "auto"
    _show_token()
    try:
        with ray_session():
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            yield
    finally:
        if before is None:
            del os.environ["RAY_ADDRESS"]
        else:
            os.environ["RAY_ADDRESS"] = before


def _show_token() -> None:
    """Let Ray show its token, where there is one: it asks for one wherever `padt serve` has started it by itself."""
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if named or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def run_reload(
    model: str | None,
    *,
    canary: float | None = None,
    back: bool = False,
    address: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> "Release":
    """Change what the running application answers with; returns when every engine does.

    Args:
        model: folder, URL or registered model; None with ``back``.
        canary: percentage of the requests that it answers, beside the model that answers now; None = all.
        back: instead drop the canary, or else go back to the model before.
        address: of the Ray that the application runs on.
        tell: gets a line wherever an engine is in another state.

    Raises:
        UserError: nothing runs there, the model is not there, or an engine cannot load it: what answered goes on.
    """
    if (model is None) != back:
        raise UserError("Give a model to change to, or --back: one of the two.")
    source = None if model is None else source_of(model)
    with cluster(address):
        from serve.control import change, deployed, release_of

        now = release_of(deployed())
        release = release_before(now) if source is None else next_release(now, source, canary)
        change(release, tell=_changes(tell))
    return release


def _changes(tell: Callable[[str], None]) -> "Callable[[Mapping[str, EngineState | None]], None]":
    """Tells of each engine whatever is new."""
    last: dict[str, str] = {}

    def hear(states: "Mapping[str, EngineState | None]") -> None:
        for name, state in sorted(states.items()):
            words = "no answer" if state is None else _words(state)
            if last.get(name) != words:
                last[name] = words
                tell(f"engine {name}: {words}")

    return hear


def _words(state: "EngineState") -> str:
    shares = ", ".join(f"{share.version} {share.percent:g} %" for share in state.versions)
    return f"{shares} (loading {state.loading})" if state.loading else shares


def run_watch(reference: str, every_s: float, *, address: str | None = None) -> None:
    """Let the application follow an alias of the registry until this process is told to stop.

    Raises:
        UserError: the reference is no alias, or nothing runs there.
    """
    check_watchable(reference)
    with cluster(address):
        from serve.control import deployed, release_of

        release_of(deployed())
        watcher = Watcher(reference)
        while True:
            watcher.look()
            time.sleep(every_s)


def check_watchable(reference: str) -> None:
    """Make sure that a reference may name another version later.

    Raises:
        UserError: it is no alias.
    """
    if not (reference.startswith("models:") and "@" in reference):
        raise UserError(f"{reference} always names the same model: watch an alias, as in models:/padt@champion.")


class Watcher:
    """Follows an alias: where it names another version than at the last look, that one is to answer.

    So whoever goes back to the version before is left in peace until the alias moves again.
    """

    def __init__(self, reference: str, seen: str = "") -> None:
        """Start to follow.

        Args:
            reference: the alias.
            seen: version that it has named so far, as in padt/7.
        """
        self._reference = reference
        self._seen = seen

    def look(self) -> bool:
        """Have a look; returns whether something was changed.

        What goes wrong is told in the log, and what answers goes on; a version that could not be loaded is not tried
        again.
        """
        from serve.control import change, deployed, release_of

        try:
            source = source_of(self._reference)
            if source.label == self._seen:
                return False
            now = release_of(deployed())
            self._seen = source.label
            if source.label == now.label:
                return False
            logger.info("%s is %s now", self._reference, source.label)
            change(next_release(now, source))
        except UserError as error:
            logger.warning("%s", error)
            return False
        logger.info("%s answers", source.label)
        return True
