"""What all routes share: the engine, the places, the settings, and the way from a question to a job."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from starlette.requests import Request as HttpRequest

from padt.errors import UserError
from padt.inference.requests import GenerationSettings, Request
from serve.api.errors import RequestError
from serve.api.pictures import Picture, is_address, open_picture, picture_bytes
from serve.api.schemas import Sampling
from serve.ingress.admission import EngineWatch, Places, ReplicaCount, running_replicas
from serve.ingress.fetch import fetch_image
from serve.messages import Job, Outcome
from serve.observability.scrape import ClusterMetrics
from serve.replica import routing
from serve.settings import Autoscaling, ServerArgs, fewest

# Pictures that are decoded at once: each may have as many pixels as the settings allow.
_DECODING = 4


class Desk:
    """What an ingress works with.

    Attributes:
        engine: handle of the engine's deployment.
        args: settings.
        bodies: places for bodies that are read.
        batches: places for batches.
        questions: places for questions that are answered.
        watch: how the engine is.
        metrics: what the whole cluster counts.
    """

    def __init__(self, engine: Any, args: ServerArgs) -> None:
        self.engine = engine
        self.args = args
        self.bodies = Places(args.max_bodies, args.retry_after_s)
        self.batches = Places(args.max_batches, args.retry_after_s)
        places = args.places(fewest(args.engine_replicas), fewest(args.ingress_replicas))
        self.questions = Places(places, args.retry_after_s, args.key_share)
        scaled = any(isinstance(each, Autoscaling) for each in (args.engine_replicas, args.ingress_replicas))
        self._replicas = ReplicaCount(running_replicas, self._resize) if scaled else None
        self.watch = EngineWatch(
            lambda avoid: self.engine.options(session_id=routing.session(avoid=avoid)).state.remote(),
            args.hang_after_s,
        )
        self.metrics = ClusterMetrics()
        self._decoding = asyncio.Semaphore(_DECODING)

    @property
    def max_body_bytes(self) -> int:
        """Longest body."""
        return int(self.args.max_body_mb * 1e6)

    def _resize(self, engines: int, ingresses: int) -> None:
        self.questions.most = self.args.places(engines, ingresses)

    @contextmanager
    def body(self, client: str) -> Iterator[None]:
        """Hold a place for a request's body. Whoever could not be answered now is told so before the body is read.

        Raises:
            RequestError: as ``Places.one``.
        """
        if self._replicas is not None:
            self._replicas.look()
        self.questions.check(client)
        with self.bodies.one():
            yield

    @contextmanager
    def places(self, count: int, client: str) -> Iterator[None]:
        """Hold a place for each of some questions.

        Raises:
            RequestError: as ``Places.one``.
        """
        if self._replicas is not None:
            self._replicas.look()
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(self.questions.one(client))
            yield

    async def pictures(self, sources: Sequence[str | bytes], places: Sequence[str] = ()) -> list[Picture]:
        """The pictures of a question: fetched where they are addresses, decoded, and scaled to share the patches.

        Args:
            sources: base64, data URLs, addresses, or contents of files.
            places: names of the fields that they come from.

        Raises:
            RequestError: one is not what it should be, or there are too many.
        """
        args = self.args
        if len(sources) > args.max_images:
            message = f"{len(sources)} pictures are too many: this server takes {args.max_images} at once."
            raise RequestError(422, "too_many_images", message, param="images")
        opened = []
        for number, source in enumerate(sources):
            param = places[number] if places else "image" if len(sources) == 1 else f"images.{number}"
            if is_address(source):
                assert isinstance(source, str)
                source = await fetch_image(source, args.image_hosts, self.max_body_bytes, args.fetch_timeout_s)
            async with self._decoding:
                opened.append(await asyncio.to_thread(self._open, source, args.max_patches // len(sources), param))
        return opened

    def _open(self, source: str | bytes, max_patches: int, param: str) -> Picture:
        return open_picture(picture_bytes(source, param), self.args.max_image_pixels, max_patches, param)

    def job(
        self,
        http: HttpRequest,
        asked: Request,
        pictures: Sequence[Picture],
        sampling: Sampling,
        max_new_tokens: int | None,
        masks: bool,
        words: int,
    ) -> Job:
        """A checked question as the engine takes it.

        Args:
            http: the request that it came with.
            asked: the question.
            pictures: that it is about.
            sampling: how to answer.
            max_new_tokens: longest answer; None = as long as the server lets it be.
            masks: whether objects need masks.
            words: bytes of text in the question.

        Raises:
            RequestError: 422, the words are too long, or more tokens are asked for than the server gives.
        """
        args = self.args
        tokens = max_new_tokens or args.max_new_tokens
        if tokens > args.max_new_tokens:
            message = f"max_new_tokens: this server gives at most {args.max_new_tokens}."
            raise RequestError(422, "invalid_request", message, param="max_new_tokens")
        if words > args.max_prompt_bytes:
            most = args.max_prompt_bytes
            message = f"The prompt has {words:,} bytes and this server takes {most:,}: give fewer or shorter words."
            raise RequestError(422, "prompt_too_long", message)
        try:
            settings = GenerationSettings(
                max_new_tokens=tokens, temperature=sampling.temperature, top_p=sampling.top_p, masks=masks
            )
        except UserError as error:
            raise RequestError(422, "invalid_request", str(error)) from error
        about = http.state
        images = tuple(picture.image for picture in pictures)
        key = routing.picture_key(*(picture.digest for picture in pictures)) if pictures else ""
        return Job(images, asked, settings, sampling.seed, about.client, about.request_id, key)


def desk_of(request: HttpRequest) -> Desk:
    """The desk of the replica that a request has come to."""
    desk: Desk = request.state.desk
    return desk


def trouble_of(outcome: Outcome, retry_after_s: int) -> RequestError:
    """The error that a client sees of an outcome without a prediction."""
    if outcome.trouble == "refused":
        return RequestError(422, "invalid_request", outcome.message)
    if outcome.trouble == "busy":
        return RequestError(503, "overloaded", outcome.message, retry_after_s)
    return RequestError(500, "internal_error", outcome.message)
