"""What is there and how it is: the model list, health, readiness, and the description of the API."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from padt.data.tasks import TASK_NAMES
from serve.api.answers import ErrorBody, ModelCard, ModelList
from serve.api.errors import RequestError
from serve.api.reference import reference_page
from serve.ingress.desk import desk_of
from serve.observability.scrape import CONTENT_TYPE

router = APIRouter()
_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "description": "No engine is ready"}}


@router.get("/v1/models", response_model=ModelList, responses=_NOT_READY, summary="What answers here")
async def models(request: Request) -> ModelList:
    """The model that is loaded."""
    desk = desk_of(request)
    # An engine that hangs is known all the same.
    await desk.watch.ready()
    known = desk.watch.last
    if known is None:
        raise not_ready()
    card = ModelCard(
        id=desk.args.name,
        source=known.source,
        device=known.device,
        version=known.version,
        fingerprint=known.fingerprint,
        tasks=list(TASK_NAMES),
    )
    return ModelList(data=[card])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive")
async def healthz() -> dict[str, str]:
    """200 as long as the ingress itself answers."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Would a request be answered now", responses=_NOT_READY)
async def readyz(request: Request) -> dict[str, str]:
    """200 when an engine has its model loaded and warm and does not hang, else 503."""
    desk = desk_of(request)
    if desk.questions.closed or not await desk.watch.ready():
        raise not_ready()
    return {"status": "ready"}


@router.get("/metrics", summary="Numbers for Prometheus")
async def metrics(request: Request) -> Response:
    """What all replicas of the cluster counted, in Prometheus's text format; Ray gathers it every few seconds."""
    return Response(await desk_of(request).metrics.text(), media_type=CONTENT_TYPE)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The description, for people."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
    return HTMLResponse(reference_page(request.app.openapi()), headers={"Content-Security-Policy": policy})


def not_ready() -> RequestError:
    """The error of a server without an engine that answers."""
    return RequestError(503, "not_ready", "No engine is ready: try again.", 1)
