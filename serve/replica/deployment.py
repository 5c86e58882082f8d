"""The engine's deployment: takes jobs, lets the model's engine answer them together, hands events back as they come."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import torch
from ray import serve

from padt.errors import UserError
from padt.inference.engine.waiting import EngineBusyError
from padt.inference.events import Ended, Event, ObjectFound, TextPiece
from padt.inference.requests import class_names
from serve.messages import EngineState, Job, Outcome, StreamItem
from serve.replica.lineup import Lineup
from serve.replica.refining import Refining
from serve.replica.versions import Version
from serve.settings import Release, ServerArgs

logger = logging.getLogger("ray.serve")


async def outcome_of(end: Ended, job: Job, version: Version, refining: Refining | None = None) -> Outcome:
    """The end of a request as a plain value; classes that were not asked for are left out, masks refined."""
    about: dict[str, Any] = {
        "reason": end.reason,
        "times": end.times,
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "version": version.name,
        "fingerprint": version.fingerprint,
    }
    if end.prediction is None:
        if version.engine.failure is not None:
            return lost(version)
        if isinstance(end.error, UserError):
            return Outcome(trouble="refused", message=str(end.error), **about)
        if isinstance(end.error, torch.OutOfMemoryError | MemoryError):
            # It had the model to itself: the engine tries halves of what is too much together.
            message = "This request needs more memory than the engine has: send smaller pictures, or fewer."
            return Outcome(trouble="refused", message=message, **about)
        return Outcome(trouble="failed", message="The engine failed on this request; its log says why.", **about)
    prediction = end.prediction.of_classes(class_names(job.request))
    if refining is not None:
        prediction, seconds = await refining.refine(job.images, prediction)
        about["times"] = replace(end.times, refine=seconds)
    return Outcome(prediction.to_dict(), **about)


def lost(version: Version) -> Outcome:
    """The end of a request that this version will not answer, and another replica may."""
    message = version.lost or "The engine has failed."
    return Outcome(trouble="lost", message=message, reason="error", version=version.name)


async def events_of(
    version: Version, job: Job, pieces: bool = True, refining: Refining | None = None
) -> AsyncGenerator[list[StreamItem], None]:
    """Let a version answer a job; yields what has come together, at the end the outcome.

    Closing the iterator cancels the request at the engine's next step.

    Args:
        version: what answers.
        job: what is asked.
        pieces: yield text and objects too, not only the outcome.
        refining: makes the masks of the outcome finer; those of the objects before are the model's own.
    """
    if version.lost:
        yield [lost(version)]
        return
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event | None] = asyncio.Queue()

    def hear(event: Event) -> None:
        if pieces or isinstance(event, Ended):
            loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        ticket = await asyncio.to_thread(
            version.engine.submit,
            list(job.images) or None,
            job.request,
            job.settings,
            seed=job.seed,
            client=job.client,
            listener=hear,
        )
    except EngineBusyError as error:
        yield [Outcome(trouble="busy", message=str(error), version=version.name)]
        return
    except UserError as error:
        yield [Outcome(trouble="refused", message=str(error), version=version.name)]
        return
    except RuntimeError:
        if version.engine.failure is None:
            raise
        yield [lost(version)]
        return
    names = class_names(job.request)
    wanted = None if names is None else {" ".join(name.split()).casefold() for name in names}
    number = 0
    try:
        with version.told(events):
            while True:
                batch = [await events.get()]
                while not events.empty():
                    batch.append(events.get_nowait())
                items: list[StreamItem] = []
                for event in batch:
                    if event is None:
                        items.append(lost(version))
                        break
                    if isinstance(event, Ended):
                        if items and refining is not None:
                            # What has come so far need not wait for masks.
                            yield items
                            items = []
                        items.append(await outcome_of(event, job, version, refining))
                    elif isinstance(event, TextPiece):
                        items.append(event)
                    elif wanted is None or " ".join(event.object.label.split()).casefold() in wanted:
                        items.append(ObjectFound(number, event.object))
                        number += 1
                if items:
                    yield items
                    if isinstance(items[-1], Outcome):
                        return
    finally:
        ticket.cancel()


@serve.deployment
class Engine:
    """Serve deployment around a model, or two that share the requests. Which ones, says ``reconfigure``."""

    def __init__(self, args: ServerArgs) -> None:
        # One for all versions: it has nothing to do with the model's weights.
        self._refining = Refining.load(args.refinement, args.device) if args.refinement is not None else None
        self._lineup = Lineup(lambda source: Version(source, args))
        self._replica = serve.get_replica_context().replica_id.unique_id

    async def reconfigure(self, release: dict[str, Any]) -> None:
        """Serve calls this with the application's release before the first job, and when it changes.

        A replica takes no jobs until this returns, so a change is only begun here.
        """
        await self._lineup.change(Release.model_validate(release))

    async def answer(self, job: Job) -> Outcome:
        """Answer a job. One that is cancelled costs nothing from the engine's next step on."""
        with self._lineup.using(job.request_id) as version:
            async for items in events_of(version, job, pieces=False, refining=self._refining):
                (outcome,) = items
        assert isinstance(outcome, Outcome)
        return replace(outcome, replica=self._replica)

    async def stream(self, job: Job) -> AsyncIterator[list[StreamItem]]:
        """Answer a job bit by bit; the last item of all is the outcome."""
        with self._lineup.using(job.request_id) as version:
            async with aclosing(events_of(version, job, refining=self._refining)) as events:
                async for items in events:
                    if isinstance(items[-1], Outcome):
                        items[-1] = replace(items[-1], replica=self._replica)
                    yield items

    async def state(self) -> EngineState:
        """How the engine is; answers only once the model is loaded and warm."""
        lineup, main = self._lineup, self._lineup.main
        assert lineup.release is not None and lineup.wanted is not None
        return EngineState(
            source=main.source.model,
            device=main.device,
            version=main.name,
            fingerprint=main.fingerprint,
            stalled_s=lineup.stalled_s,
            replica=self._replica,
            versions=lineup.shares,
            release=lineup.release.model_dump(),
            wanted=lineup.wanted.model_dump(),
            loading=lineup.loading,
            problem=lineup.problem,
            lost=main.lost,
            running=lineup.running,
        )

    async def check_health(self) -> None:
        """Serve asks this now and then, and replaces an engine that raises.

        Raises:
            RuntimeError: a model hangs or its engine's thread has died; who waits for it has been told to ask another.
        """
        self._lineup.check()
