"""The engine: holds the model, gathers requests into batches and answers them, one batch at a time."""

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from PIL import Image
from ray import serve

from padt.errors import UserError
from padt.inference.requests import Request, caption_request
from serve.settings import AppArgs

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Job:
    """One question for the engine. Plain values and a picture, so that the ingress needs no torch.

    Attributes:
        image: upright, RGB.
        request: what is asked about it.
        max_new_tokens: longest answer.
        masks: whether masks are asked for.
    """

    image: Image.Image
    request: Request
    max_new_tokens: int
    masks: bool = True


@dataclass(frozen=True)
class Outcome:
    """A prediction as plain values (``Prediction.to_dict``), or the reason why there is none (the user's to mend)."""

    prediction: dict[str, Any] | None = None
    refusal: str | None = None


def answer_jobs(model: Any, jobs: list[Job]) -> list[Outcome]:
    """Answer jobs together, as far as their settings agree; a job that is refused does not spoil the others."""
    from padt.inference.predict import GenerationSettings, predict

    by_settings: dict[GenerationSettings, list[int]] = defaultdict(list)
    for index, job in enumerate(jobs):
        by_settings[GenerationSettings(max_new_tokens=job.max_new_tokens, masks=job.masks)].append(index)
    outcomes: list[Outcome] = [Outcome()] * len(jobs)
    for settings, indices in by_settings.items():
        batch = [jobs[index] for index in indices]
        try:
            predictions = predict(model, [job.image for job in batch], [job.request for job in batch], settings)
            results = [Outcome(prediction.to_dict()) for prediction in predictions]
        except UserError as error:
            results = [Outcome(refusal=str(error))] if len(batch) == 1 else _one_by_one(model, batch)
        for index, result in zip(indices, results, strict=True):
            outcomes[index] = result
    return outcomes


def _one_by_one(model: Any, jobs: list[Job]) -> list[Outcome]:
    return [answer_jobs(model, [job])[0] for job in jobs]


@serve.deployment
class Engine:
    """Serve deployment around one model. Scaled by ``AppArgs.engine_replicas``."""

    def __init__(self, args: AppArgs) -> None:
        import torch

        from padt import load_model

        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, args.dtype) if args.dtype else None
        self._args = args
        self._model = load_model(args.model, dtype=dtype, device=device, attn_implementation=args.attn_implementation)
        self._device = device
        self.answer.set_max_batch_size(args.max_batch_size)
        self.answer.set_batch_wait_timeout_s(args.batch_wait_s)
        self._warm_up()
        logger.info("Engine is ready: %s on %s", args.model, device)

    def _warm_up(self) -> None:
        # The first call pays for allocation and lazy imports; better here than in somebody's request.
        answer_jobs(self._model, [Job(Image.new("RGB", (112, 112), "grey"), caption_request(), 4)])

    @serve.batch
    async def answer(self, jobs: list[Job]) -> list[Outcome]:
        """Answer a batch. Runs in a thread, so that health checks and new requests are heard meanwhile."""
        # One batch at a time (serve.batch's default): two at once would only share the same cores or GPU.
        return await asyncio.to_thread(answer_jobs, self._model, jobs)

    async def describe(self) -> dict[str, str]:
        """Where the model came from and where it runs; answers only once the model is loaded and warm."""
        return {"source": self._args.model, "device": self._device}
