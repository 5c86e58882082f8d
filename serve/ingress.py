"""The ingress: HTTP in front of the engine. Checks and decodes requests; needs no model and no GPU."""

import asyncio
import logging
import time
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from padt import __version__
from padt.data.tasks import TASK_NAMES
from padt.errors import UserError
from padt.inference.requests import ask
from serve.engine import Job, Outcome
from serve.reading import RequestError, read_image, read_request
from serve.schemas import (
    ErrorBody,
    ModelCard,
    ModelList,
    PredictedObjectBody,
    PredictRequest,
    PredictResponse,
    Question,
)
from serve.settings import AppArgs

logger = logging.getLogger("ray.serve")

READY_TIMEOUT_S = 2.0

api = FastAPI(
    title="PaDT",
    version=__version__,
    description="Ask about a picture; answers are grounded in its patches: text, boxes, masks and Visual Reference "
    "Tokens. Boxes are x0, y0, x1, y1 in pixels of the upright image.",
)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
    for status in (400, 413, 415, 422, 500, 503, 504)
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


def refused(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error answer: ``{"error": {"code", "message"}}``."""
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)


def to_job(question: Question, image: Image.Image, args: AppArgs) -> Job:
    """A checked question and its image as the engine takes them.

    Raises:
        RequestError: 422, a name or sentence is blank, or more tokens are asked for than the server gives.
    """
    tokens = question.max_new_tokens or args.max_new_tokens
    if tokens > args.max_new_tokens:
        raise RequestError(422, "invalid_request", f"max_new_tokens: this server gives at most {args.max_new_tokens}.")
    try:
        asked = ask(question.task, question.words)
    except UserError as error:
        raise RequestError(422, "invalid_request", str(error)) from error
    return Job(image, asked, tokens, masks=question.mask == "rle")


def to_response(
    name: str, question: Question, prediction: dict[str, Any], milliseconds: dict[str, float]
) -> PredictResponse:
    """A prediction (``padt.inference.predict.Prediction.to_dict``) as the body of an answer."""
    kept = {key: prediction[key] for key in ("text", "width", "height", "grid", "truncated", "warnings")}
    return PredictResponse(
        model=name,
        task=question.task,
        objects=[PredictedObjectBody.model_validate(found) for found in prediction["objects"]],
        milliseconds={key: round(value, 1) for key, value in milliseconds.items()},
        **kept,
    )


@api.exception_handler(Exception)
async def internal_error(request: Request, error: Exception) -> JSONResponse:
    """Whatever nobody foresaw: details go to the log, not to the client."""
    logger.error("Request to %s failed", request.url.path, exc_info=error)
    return refused(500, "internal_error", "The server failed on this request; its log says why.")


@serve.deployment
@serve.ingress(api)
class Ingress:
    """Serve deployment for HTTP. Scaled by ``AppArgs.ingress_replicas``."""

    def __init__(self, engine: DeploymentHandle, args: AppArgs) -> None:
        self._engine = engine
        self._args = args

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
        try:
            question, encoded = await read_request(request, int(self._args.max_body_mb * 1e6))
            image = await asyncio.to_thread(read_image, encoded, self._args.max_image_pixels)
            job = to_job(question, image, self._args)
        except RequestError as error:
            return refused(error.status, error.code, str(error))
        decoded = time.perf_counter()
        waiting = self._engine.answer.remote(job)
        try:
            outcome: Outcome = await asyncio.wait_for(waiting, self._args.request_timeout_s)
        except BackPressureError:
            wait = {"Retry-After": str(self._args.retry_after_s)}
            return refused(503, "overloaded", f"Too many requests wait: try again in {wait['Retry-After']} s.", wait)
        except TimeoutError:
            waiting.cancel()
            limit = self._args.request_timeout_s
            return refused(504, "timeout", f"No answer within {limit:g} s: ask for fewer tokens or try again later.")
        if outcome.prediction is None:
            return refused(422, "invalid_request", outcome.refusal or "")
        milliseconds = {"decode": (decoded - started) * 1e3, "answer": (time.perf_counter() - decoded) * 1e3}
        body = to_response(self._args.name, question, outcome.prediction, milliseconds)
        # Masks make bodies large, so they are written by pydantic directly, once.
        return Response(body.model_dump_json(), media_type="application/json")

    @api.get("/v1/models", response_model=ModelList, summary="What answers here")
    async def models(self) -> ModelList:
        """The model that is loaded."""
        facts = await self._engine.describe.remote()
        card = ModelCard(id=self._args.name, source=facts["source"], device=facts["device"], tasks=list(TASK_NAMES))
        return ModelList(data=[card])

    @api.get("/healthz", summary="Is the process alive")
    async def healthz(self) -> dict[str, str]:
        """200 as long as the ingress itself answers."""
        return {"status": "ok"}

    @api.get("/readyz", summary="Would a request be answered now", responses={503: {"model": ErrorBody}})
    async def readyz(self) -> Response:
        """200 when an engine has its model loaded and warm, else 503."""
        try:
            await asyncio.wait_for(self._engine.describe.remote(), READY_TIMEOUT_S)
        except (TimeoutError, BackPressureError):
            return refused(503, "not_ready", "No engine is ready: try again.", {"Retry-After": "1"})
        return JSONResponse({"status": "ready"})
