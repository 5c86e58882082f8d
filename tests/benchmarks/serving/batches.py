"""The serving that the engine has replaced, as a measure: Ray Serve gathers batches, `predict` answers each."""

import asyncio
from collections import defaultdict
from typing import Any

from PIL import Image
from ray import serve

from padt.inference.requests import GenerationSettings, caption_request, class_names
from serve.messages import EngineState, Job, Outcome


@serve.deployment
class BatchEngine:
    """Takes the place of ``serve.replica.deployment.Engine`` behind the ingress."""

    def __init__(self, model: str) -> None:
        from padt import load_model

        self._model = load_model(model, device="cpu")
        self._predict([Job((Image.new("RGB", (112, 112), "grey"),), caption_request(), GenerationSettings(4))])

    async def answer(self, job: Job) -> Outcome:
        """Answer a job together with others that came within 20 ms."""
        return await self._batch(job)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.02)
    async def _batch(self, jobs: list[Job]) -> list[Outcome]:
        return await asyncio.to_thread(self._predict, jobs)

    def _predict(self, jobs: list[Job]) -> list[Outcome]:
        from padt.inference.predict import predict

        alike: dict[GenerationSettings, list[int]] = defaultdict(list)
        for index, job in enumerate(jobs):
            alike[job.settings].append(index)
        found: dict[int, Any] = {}
        for settings, indices in alike.items():
            pictures, requests = [jobs[i].images[0] for i in indices], [jobs[i].request for i in indices]
            found.update(zip(indices, predict(self._model, pictures, requests, settings), strict=True))
        return [Outcome(found[i].of_classes(class_names(job.request)).to_dict()) for i, job in enumerate(jobs)]

    async def state(self) -> EngineState:
        """Always well."""
        return EngineState("batches", "cpu")
