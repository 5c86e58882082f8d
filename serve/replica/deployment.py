"""The engine's deployment: takes jobs, lets the model's engine answer them together, hands events back as they come."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from ray import serve

from padt.errors import UserError
from padt.inference.engine.waiting import EngineBusyError
from padt.inference.events import Ended, Event, ObjectFound, TextPiece
from padt.inference.requests import class_names
from serve.messages import EngineState, Job, Outcome, StreamItem
from serve.replica.versions import Heartbeat, Version
from serve.settings import Release, ServerArgs

logger = logging.getLogger("ray.serve")


def outcome_of(end: Ended, job: Job, version: Version) -> Outcome:
    """The end of a request as a plain value; classes that were not asked for are left out."""
    about: dict[str, Any] = {
        "reason": end.reason,
        "times": end.times,
        "prompt_tokens": end.prompt_tokens,
        "version": version.name,
        "fingerprint": version.fingerprint,
    }
    if end.prediction is None:
        refused = isinstance(end.error, UserError)
        message = str(end.error) if refused else "The engine failed on this request; its log says why."
        return Outcome(trouble="refused" if refused else "failed", message=message, **about)
    prediction = end.prediction.of_classes(class_names(job.request))
    return Outcome(prediction.to_dict(), completion_tokens=len(prediction.token_ids), **about)


async def events_of(version: Version, job: Job, pieces: bool = True) -> AsyncIterator[list[StreamItem]]:
    """Let a version answer a job; yields what has come together, at the end the outcome.

    Closing the iterator cancels the request at the engine's next step.

    Args:
        version: what answers.
        job: what is asked.
        pieces: yield text and objects too, not only the outcome.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def hear(event: Event) -> None:
        if pieces or isinstance(event, Ended):
            loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        ticket = await asyncio.to_thread(
            version.engine.submit, list(job.images) or None, job.request, job.settings, seed=job.seed, listener=hear
        )
    except EngineBusyError as error:
        yield [Outcome(trouble="busy", message=str(error), version=version.name)]
        return
    except UserError as error:
        yield [Outcome(trouble="refused", message=str(error), version=version.name)]
        return
    names = class_names(job.request)
    wanted = None if names is None else {" ".join(name.split()).casefold() for name in names}
    number = 0
    try:
        while True:
            batch = [await events.get()]
            while not events.empty():
                batch.append(events.get_nowait())
            items: list[StreamItem] = []
            for event in batch:
                if isinstance(event, Ended):
                    items.append(outcome_of(event, job, version))
                elif isinstance(event, TextPiece):
                    items.append(event)
                elif wanted is None or " ".join(event.object.label.split()).casefold() in wanted:
                    items.append(ObjectFound(number, event.object))
                    number += 1
            if items:
                yield items
            if isinstance(batch[-1], Ended):
                return
    finally:
        ticket.cancel()


@serve.deployment
class Engine:
    """Serve deployment around one model. Which one, says ``reconfigure``."""

    def __init__(self, args: ServerArgs) -> None:
        self._args = args
        self._version: Version | None = None
        self._heartbeat = Heartbeat()

    async def reconfigure(self, release: dict[str, Any]) -> None:
        """Serve calls this with the application's release before the first job, and when it changes."""
        loaded = await asyncio.to_thread(Version, Release.model_validate(release), self._args)
        old, self._version = self._version, loaded
        if old is not None:
            await asyncio.to_thread(old.close)

    @property
    def _current(self) -> Version:
        assert self._version is not None, "Serve configures a replica before its first request"
        return self._version

    async def answer(self, job: Job) -> Outcome:
        """Answer a job. One that is cancelled costs nothing from the engine's next step on."""
        async for items in events_of(self._current, job, pieces=False):
            (outcome,) = items
        assert isinstance(outcome, Outcome)
        return outcome

    async def stream(self, job: Job) -> AsyncIterator[list[StreamItem]]:
        """Answer a job bit by bit; the last item of all is the outcome."""
        async for items in events_of(self._current, job):
            yield items

    async def state(self) -> EngineState:
        """How the engine is; answers only once the model is loaded and warm."""
        version = self._current
        return EngineState(
            version.release.model,
            version.device,
            version.name,
            version.fingerprint,
            self._heartbeat.stalled_s(version.engine),
        )

    def check_health(self) -> None:
        """Serve asks this now and then, and replaces an engine that raises.

        Raises:
            RuntimeError: the model hangs.
        """
        stalled = self._heartbeat.stalled_s(self._current.engine)
        if stalled >= self._args.hang_after_s:
            raise RuntimeError(f"The model has made no step for {stalled:.0f} s.")
