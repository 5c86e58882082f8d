"""The ingress: HTTP in front of the engine. Checks and decodes requests; needs no model and no GPU."""

import asyncio
import logging
import time
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from padt import __version__
from padt.data.rle import resize
from padt.data.tasks import TASK_NAMES
from padt.errors import UserError
from padt.inference.requests import GenerationSettings, ask
from serve.api.errors import RequestError, error_response
from serve.api.reading import read_image, read_request, within_patches
from serve.api.reference import reference_page
from serve.api.schemas import (
    ErrorBody,
    FrameBody,
    ModelCard,
    ModelList,
    PredictedObjectBody,
    PredictRequest,
    PredictResponse,
    Question,
)
from serve.ingress import asking
from serve.ingress.admission import EngineWatch, Places, ReplicaCount, running_replicas
from serve.ingress.gate import Gate
from serve.ingress.keys import KeyRing
from serve.messages import Job, Outcome
from serve.observability import records
from serve.observability.observers import observers_of
from serve.observability.recorder import Recorder
from serve.observability.scrape import CONTENT_TYPE, ClusterMetrics
from serve.replica import routing
from serve.settings import Autoscaling, ServerArgs, fewest

logger = logging.getLogger("ray.serve")

api = FastAPI(
    title="PaDT",
    version=__version__,
    description="Ask about a picture; answers are grounded in its patches: text, boxes, masks and Visual Reference "
    "Tokens. Boxes are x0, y0, x1, y1 in pixels of the upright image.",
    # FastAPI's own pages load their scripts from outside, and are blank where there is no way there.
    docs_url=None,
    redoc_url=None,
)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)
}
_FORM_PROPERTIES = {
    "image": {"type": "string", "format": "binary"},
    "names": {"type": "string", "description": "Classes to detect, separated by commas."},
}
# One path takes two content types, which FastAPI's parameters cannot say; so the body is described by hand.
_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": PredictRequest.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image", "task"],
                "properties": Question.model_json_schema()["properties"] | _FORM_PROPERTIES,
            }
        },
    },
}


def to_job(question: Question, image: Image.Image, args: ServerArgs) -> Job:
    """A checked question and its image as the engine takes them.

    Raises:
        RequestError: 422, a name or sentence is blank, the prompt is too long, or more tokens are asked for than the
            server gives.
    """
    tokens = question.max_new_tokens or args.max_new_tokens
    if tokens > args.max_new_tokens:
        raise RequestError(422, "invalid_request", f"max_new_tokens: this server gives at most {args.max_new_tokens}.")
    try:
        asked = ask(question.task, question.words)
    except UserError as error:
        raise RequestError(422, "invalid_request", str(error)) from error
    length = len(str(asked.prompt).encode("utf-8", "replace"))
    if length > args.max_prompt_bytes:
        most = args.max_prompt_bytes
        message = f"The prompt has {length:,} bytes and this server takes {most:,}: give fewer or shorter words."
        raise RequestError(422, "prompt_too_long", message)
    settings = GenerationSettings(max_new_tokens=tokens, masks=question.mask == "rle")
    return Job((within_patches(image, args.max_patches),), asked, settings)


def trouble_of(outcome: Outcome, retry_after_s: int) -> RequestError:
    """The error that a client sees of an outcome without a prediction."""
    if outcome.trouble == "refused":
        return RequestError(422, "invalid_request", outcome.message)
    if outcome.trouble == "busy":
        return RequestError(503, "overloaded", outcome.message, retry_after_s)
    return RequestError(500, "internal_error", outcome.message)


def in_original_pixels(found: dict[str, Any], seen: tuple[int, int], original: tuple[int, int]) -> dict[str, Any]:
    """An object, in pixels of the picture as it came; sizes are ``(width, height)``."""
    if seen == original:
        return found
    scale = (original[0] / seen[0], original[1] / seen[1])
    x0, y0, x1, y1 = found["box"]
    box = (x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1])
    mask = found["mask"] and resize(found["mask"], height=original[1], width=original[0])
    return {**found, "box": box, "mask": mask}


def to_response(
    name: str,
    question: Question,
    prediction: dict[str, Any],
    original: tuple[int, int],
    milliseconds: dict[str, float],
) -> PredictResponse:
    """A prediction (``padt.inference.predict.Prediction.to_dict``) as the body of an answer.

    Args:
        name: of the model.
        question: what was asked.
        prediction: about the picture that the engine saw.
        original: width and height of the upright picture as it came.
        milliseconds: what took how long.
    """
    seen = (prediction["width"], prediction["height"])
    found = [in_original_pixels(one, seen, original) for one in prediction["objects"]]
    return PredictResponse(
        model=name,
        task=question.task,
        objects=[PredictedObjectBody.model_validate(one) for one in found],
        images=[FrameBody(width=original[0], height=original[1], grid=prediction["grid"])],
        width=original[0],
        height=original[1],
        milliseconds={key: round(value, 1) for key, value in milliseconds.items()},
        **{key: prediction[key] for key in ("text", "grid", "truncated", "warnings")},
    )


class BehindGate:
    """Puts the replica's own gate before the routes: which one is known when the replica runs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._gate: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the gate; what no replica runs, such as the start of the application, passes."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._gate is None:
            self._gate = serve.get_replica_context().servable_object.gate(self._app)
        await self._gate(scope, receive, send)


api.add_middleware(BehindGate)


@api.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """The description, for people."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
    return HTMLResponse(reference_page(api.openapi()), headers={"Content-Security-Policy": policy})


@api.exception_handler(RequestError)
async def request_error(request: Request, error: RequestError) -> JSONResponse:
    """What a client can mend, or must wait for."""
    wait = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return error_response(error.status, error.code, str(error), wait)


@api.exception_handler(HTTPException)
async def http_error(request: Request, error: HTTPException) -> JSONResponse:
    """A path that is not there, or a method that it does not take."""
    phrase = HTTPStatus(error.status_code).phrase
    message = f"{request.method} {request.url.path}: {phrase}. /docs says what there is."
    return error_response(error.status_code, phrase.lower().replace(" ", "_"), message, dict(error.headers or {}))


@api.exception_handler(Exception)
async def internal_error(request: Request, error: Exception) -> JSONResponse:
    """Whatever nobody foresaw: details go to the log, not to the client."""
    logger.error("Request to %s failed", request.url.path, exc_info=error)
    return error_response(500, "internal_error", "The server failed on this request; its log says why.")


@serve.deployment
@serve.ingress(api)
class Ingress:
    """Serve deployment for HTTP. Scaled by ``ServerArgs.ingress_replicas``."""

    def __init__(self, engine: DeploymentHandle, args: ServerArgs) -> None:
        self._engine = engine
        self._args = args
        self._bodies = Places(args.max_bodies, args.retry_after_s)
        places = args.places(fewest(args.engine_replicas), fewest(args.ingress_replicas))
        self._questions = Places(places, args.retry_after_s, args.key_share)
        scaled = any(isinstance(each, Autoscaling) for each in (args.engine_replicas, args.ingress_replicas))
        self._replicas = ReplicaCount(running_replicas, self._resize) if scaled else None
        self._keys = KeyRing(args.keys_file)
        self._observers = observers_of(args)
        self._metrics = ClusterMetrics()
        self._watch = EngineWatch(
            lambda avoid: self._engine.options(session_id=routing.session(avoid=avoid)).state.remote(),
            args.hang_after_s,
        )

    def reconfigure(self, options: dict[str, Any]) -> None:
        """Serve calls this with the ingress's ``user_config``: ``draining`` lets nobody in any more."""
        self._questions.closed = bool(options.get("draining"))

    def _resize(self, engines: int, ingresses: int) -> None:
        self._questions.most = self._args.places(engines, ingresses)

    def __del__(self) -> None:
        """Serve calls this when the replica stops."""
        self._observers.close()

    def gate(self, app: ASGIApp) -> ASGIApp:
        """The gate before an application, with this server's settings and keys, and who records what comes and goes."""
        return Recorder(Gate(app, self._args, self._keys, proxied=True), self._observers)

    @api.post(
        "/v1/predict",
        response_model=PredictResponse,
        responses=_ERRORS,
        openapi_extra={"requestBody": _BODY},
        summary="Ask about one picture",
    )
    async def predict(self, request: Request) -> Response:
        """Detect classes, find what a sentence describes, caption, or send a free prompt."""
        started = time.perf_counter()
        args = self._args
        with self._bodies.one(), records.timed("preprocess"):
            question, encoded = await read_request(request, int(args.max_body_mb * 1e6), args.body_timeout_s)
        if self._replicas is not None:
            self._replicas.look()
        # Whoever cannot be answered now is told so before the picture costs anything.
        with self._questions.one(request.state.client):
            with records.timed("preprocess"):
                job, original = await asyncio.to_thread(self._to_job, question, encoded, request)
            decoded = time.perf_counter()
            outcome = await asking.ask(self._engine, job, args)
            prediction = outcome.prediction
            if prediction is None:
                raise trouble_of(outcome, args.retry_after_s)
            milliseconds = {"decode": (decoded - started) * 1e3, "answer": (time.perf_counter() - decoded) * 1e3}
            # Masks make bodies large, so they are written by pydantic directly, once, and not in the event loop.
            with records.timed("encode"):
                body = await asyncio.to_thread(
                    lambda: to_response(args.name, question, prediction, original, milliseconds).model_dump_json()
                )
        return Response(body, media_type="application/json")

    def _to_job(self, question: Question, encoded: bytes, request: Request) -> tuple[Job, tuple[int, int]]:
        """The job, and width and height of the upright picture as it came."""
        image = read_image(encoded, self._args.max_image_pixels)
        job = to_job(question, image, self._args)
        about = request.state
        key = routing.picture_key(encoded)
        return replace(job, client=about.client, request_id=about.request_id, picture_key=key), image.size

    @api.get("/v1/models", response_model=ModelList, responses={503: {"model": ErrorBody}}, summary="What answers here")
    async def models(self) -> ModelList:
        """The model that is loaded."""
        known = self._watch.last or (await self._watch.ready() and self._watch.last)
        if not known:
            raise RequestError(503, "not_ready", "No engine is ready: try again.", 1)
        return ModelList(
            data=[ModelCard(id=self._args.name, source=known.source, device=known.device, tasks=list(TASK_NAMES))]
        )

    @api.get("/healthz", summary="Is the process alive")
    async def healthz(self) -> dict[str, str]:
        """200 as long as the ingress itself answers."""
        return {"status": "ok"}

    @api.get("/readyz", summary="Would a request be answered now", responses={503: {"model": ErrorBody}})
    async def readyz(self) -> dict[str, str]:
        """200 when an engine has its model loaded and warm and does not hang, else 503."""
        if self._questions.closed or not await self._watch.ready():
            raise RequestError(503, "not_ready", "No engine is ready: try again.", 1)
        return {"status": "ready"}

    @api.get("/metrics", summary="Numbers for Prometheus")
    async def metrics(self) -> Response:
        """What all replicas of the cluster counted, in Prometheus's text format; Ray gathers it every few seconds."""
        return Response(await self._metrics.text(), media_type=CONTENT_TYPE)
