"""An engine without a model, for tests of the HTTP side: answers from the request alone."""

import asyncio
import os
from pathlib import Path

import numpy as np
from ray import serve

from padt.data.rle import encode
from padt.inference.results import Frame, PredictedObject, Prediction
from serve.messages import EngineState, Job, Outcome


@serve.deployment
class FakeEngine:
    """Answers at once; the prompts 'slow', 'refuse', 'crash', 'die' and 'hang' do what they say."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.stalled_s = 0.0

    async def answer(self, job: Job) -> Outcome:
        if "slow" in job.request.prompt:
            try:
                await asyncio.sleep(2.0)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if "hang" in job.request.prompt:
            self.stalled_s = float(job.request.prompt.split()[1])
        if "cancelled" in job.request.prompt:
            return Outcome(trouble="refused", message=f"{self.cancelled} were cancelled")
        if job.request.prompt.startswith("die "):
            flag = Path(job.request.prompt.removeprefix("die "))
            # Once for each line of the file.
            if lines := flag.read_text().splitlines():
                flag.write_text("\n".join(lines[1:]))
                # Serve itself sends a request again whose replica dies before it has said that it takes it.
                await asyncio.sleep(0.3)
                os._exit(1)
        if "refuse" in job.request.prompt:
            return Outcome(trouble="refused", message="The prompt says so: ask for something else.")
        if "crash" in job.request.prompt:
            raise RuntimeError("the engine's own secret details")
        width, height = job.images[0].size
        thing = PredictedObject(
            label="thing",
            score=0.9,
            box=(0.0, 0.0, float(width), float(height)),
            mask=encode(np.ones((height, width), bool)) if job.settings.masks else None,
            patches=(0, 1),
            span=(3, 5),
            confidence=0.8,
            complete=True,
        )
        frames = (Frame(width, height, (2, 3)),)
        return Outcome(Prediction(f"{job.request.task} <|VRT_0|><|VRT_1|>", (thing,), frames).to_dict())

    async def state(self) -> EngineState:
        return EngineState("/models/fake", "cpu", stalled_s=self.stalled_s)
