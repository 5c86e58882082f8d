"""An engine without a model, for tests of the HTTP side: answers from the request alone."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from ray import serve

from padt.data.rle import encode
from padt.inference.events import ObjectFound, TextPiece, Times
from padt.inference.requests import Request
from padt.inference.results import Frame, PredictedObject, Prediction
from serve.messages import EngineState, Job, Outcome, StreamItem

TEXT = "one thing (<|VRT_0|><|VRT_1|>), and an ö."


def words_of(request: Request) -> str:
    """What was asked last."""
    return request.prompt if isinstance(request.prompt, str) else request.prompt[-1].text


class Answers:
    """Answers at once; some prompts do what they say.

    They are 'slow', 'silent', 'endless', 'refuse', 'crash', 'die', 'break off', 'cut', 'hang' and 'count'.

    Attributes:
        jobs: what was asked.
        running: how many questions are being answered.
        most: how many were at once.
        cancelled: how many questions were given up.
        nap_s: what 'slow' takes.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.running = self.most = self.cancelled = 0
        self.stalled_s = 0.0
        self.nap_s = 2.0

    async def answer(self, job: Job) -> Outcome:
        async for items in self.stream(job):
            (outcome,) = items[-1:]
        assert isinstance(outcome, Outcome)
        return outcome

    async def stream(self, job: Job) -> AsyncIterator[list[StreamItem]]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async for items in self._stream(job):
                yield items
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _stream(self, job: Job) -> AsyncIterator[list[StreamItem]]:
        self.jobs.append(job)
        words = words_of(job.request)
        if "slow" in words:
            await asyncio.sleep(self.nap_s)
        if "silent" in words:
            await asyncio.Event().wait()
        if "hang" in words:
            self.stalled_s = float(words.split()[1])
        if "count" in words:
            # Itself not.
            yield [Outcome(trouble="refused", message=f"{self.running - 1} run, {self.cancelled} were cancelled")]
            return
        if words.startswith("die "):
            flag = Path(words.removeprefix("die "))
            # Once for each line of the file.
            if lines := flag.read_text().splitlines():
                flag.write_text("\n".join(lines[1:]))
                # Serve itself sends a request again whose replica dies before it has said that it takes it.
                await asyncio.sleep(0.3)
                os._exit(1)
        if "refuse" in words:
            yield [Outcome(trouble="refused", message="The prompt says so: ask for something else.")]
            return
        if "crash" in words:
            raise RuntimeError("the engine's own secret details")
        prediction = self.prediction(job)
        yield [TextPiece("one thing (")]
        if prediction.objects:
            yield [ObjectFound(number, found) for number, found in enumerate(prediction.objects)]
        if "break off" in words:
            await asyncio.sleep(0.3)
            os._exit(1)
        while "endless" in words:
            await asyncio.sleep(0.02)
            yield [TextPiece("and so on ")]
        times = Times(queued=0.001, prefill=0.002, decode=0.003, objects=0.004)
        reason = "length" if prediction.truncated else "stop"
        about = {"times": times, "prompt_tokens": 7, "completion_tokens": 5, "version": "fake/1", "fingerprint": "f00"}
        yield [TextPiece("), and an ö."), Outcome(prediction.to_dict(), reason, **about)]

    def prediction(self, job: Job) -> Prediction:
        """An object that fills each picture, the later the less sure; text-only questions get text only."""
        words = words_of(job.request)
        found = []
        for number, image in enumerate(job.images):
            width, height = image.size
            thing = PredictedObject(
                label="thing",
                score=0.9 / (1 + number),
                box=(0.0, 0.0, float(width), float(height)),
                mask=encode(np.ones((height, width), bool)) if job.settings.masks else None,
                patches=(0, 1),
                span=(3, 5),
                confidence=0.8,
                complete=True,
                image=number,
            )
            found.append(thing)
        frames = tuple(Frame(*image.size, (2, 3)) for image in job.images)
        return Prediction(TEXT, tuple(found), frames, truncated="cut" in words)

    async def state(self) -> EngineState:
        return EngineState("/models/fake", "cpu", "fake/1", "f00", stalled_s=self.stalled_s)


@serve.deployment
class FakeEngine(Answers):
    """The same behind Serve."""
