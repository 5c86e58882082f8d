"""The engine: holds the model, gathers requests into batches and answers them, one batch at a time."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image
from ray import serve

from padt.errors import UserError
from padt.inference.requests import Request, caption_request, class_names
from serve.admission import EngineState
from serve.settings import AppArgs

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Job:
    """One question for the engine. Plain values and a picture, so that the ingress needs no torch.

    Attributes:
        image: upright, RGB, within the server's budget of patches.
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
            results = [
                Outcome(prediction.of_classes(class_names(job.request)).to_dict())
                for job, prediction in zip(batch, predictions, strict=True)
            ]
        except UserError as error:
            results = [Outcome(refusal=str(error))] if len(batch) == 1 else _one_by_one(model, batch)
        for index, result in zip(indices, results, strict=True):
            outcomes[index] = result
    return outcomes


def _one_by_one(model: Any, jobs: list[Job]) -> list[Outcome]:
    return [answer_jobs(model, [job])[0] for job in jobs]


class AbandonedError(Exception):
    """Nobody waits for the answers of the batch any more."""


class Progress:
    """What the model is at: hears of every step of it, and stops a batch whose clients have all gone.

    Attributes:
        wanted: tokens of the jobs that somebody waits for.
    """

    def __init__(self) -> None:
        self.wanted: set[object] = set()
        self._running: Sequence[object] = ()
        self._last_step = 0.0

    @contextmanager
    def batch(self, tokens: Sequence[object]) -> Iterator[None]:
        """Mark a batch as running for the length of a block."""
        self._last_step = time.monotonic()
        self._running = tokens
        try:
            yield
        finally:
            self._running = ()

    def step(self, *_: Any) -> None:
        """The model makes a step.

        Raises:
            AbandonedError: nobody waits for any answer of the running batch.
        """
        self._last_step = time.monotonic()
        if self._running and self.wanted.isdisjoint(self._running):
            raise AbandonedError

    @property
    def stalled_s(self) -> float:
        """Seconds since the last step, or since the batch began; 0 while none runs."""
        return time.monotonic() - self._last_step if self._running else 0.0


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
        self._batch.set_max_batch_size(args.max_batch_size)
        self._batch.set_batch_wait_timeout_s(args.batch_wait_s)
        self._progress = Progress()
        self._model.register_forward_pre_hook(self._progress.step)
        self._warm_up()
        logger.info("Engine is ready: %s on %s", args.model, device)

    def _warm_up(self) -> None:
        # The first call pays for allocation and lazy imports; better here than in somebody's request.
        answer_jobs(self._model, [Job(Image.new("RGB", (112, 112), "grey"), caption_request(), 4)])

    async def answer(self, job: Job) -> Outcome:
        """Answer a job. One that is cancelled before its batch starts costs nothing."""
        token = object()
        self._progress.wanted.add(token)
        try:
            return await self._batch((token, job))
        finally:
            self._progress.wanted.discard(token)

    @serve.batch
    async def _batch(self, items: list[tuple[object, Job]]) -> list[Outcome]:
        """Answer a batch. Runs in a thread, so that health checks and new requests are heard meanwhile."""
        # One batch at a time (serve.batch's default): two at once would only share the same cores or GPU.
        return await asyncio.to_thread(self._answer, items)

    def _answer(self, items: list[tuple[object, Job]]) -> list[Outcome]:
        with self._progress.batch([token for token, _ in items]):
            try:
                return answer_jobs(self._model, [job for _, job in items])
            except AbandonedError:
                return [Outcome(refusal="Nobody waits for the answer.") for _ in items]

    async def state(self) -> EngineState:
        """How the engine is; answers only once the model is loaded and warm."""
        return EngineState(self._args.model, self._device, self._progress.stalled_s)

    def check_health(self) -> None:
        """Serve asks this now and then, and replaces an engine that raises.

        Raises:
            RuntimeError: the model hangs.
        """
        stalled = self._progress.stalled_s
        if stalled >= self._args.hang_after_s:
            raise RuntimeError(f"The model has made no step for {stalled:.0f} s.")
