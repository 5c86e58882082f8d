"""An engine without a model, for tests of the HTTP side: answers from the request alone."""

import asyncio

from ray import serve

from padt.inference.predict import Frame, PredictedObject, Prediction
from serve.engine import Job, Outcome


@serve.deployment
class FakeEngine:
    """Answers at once; the prompts 'slow', 'refuse' and 'crash' do what they say."""

    async def answer(self, job: Job) -> Outcome:
        if "slow" in job.request.prompt:
            await asyncio.sleep(2.0)
        if "refuse" in job.request.prompt:
            return Outcome(refusal="The prompt says so: ask for something else.")
        if "crash" in job.request.prompt:
            raise RuntimeError("the engine's own secret details")
        width, height = job.image.size
        thing = PredictedObject(
            label="thing",
            score=0.9,
            box=(0.0, 0.0, float(width), float(height)),
            mask={"size": [height, width], "counts": "0"} if job.masks else None,
            patches=(0, 1),
            span=(3, 5),
            confidence=0.8,
            complete=True,
        )
        frames = (Frame(width, height, (2, 3)),)
        return Outcome(Prediction(f"{job.request.task} <|VRT_0|><|VRT_1|>", (thing,), frames).to_dict())

    async def describe(self) -> dict[str, str]:
        return {"source": "/models/fake", "device": "cpu"}
