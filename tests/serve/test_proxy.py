"""What the proxy says in the place of an application: the one error shape; an application's own words pass."""

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("starlette")

from starlette.responses import JSONResponse, PlainTextResponse, Response  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402
from starlette.types import ASGIApp, Message, Receive, Scope, Send  # noqa: E402

from serve.api.errors import error_response  # noqa: E402
from serve.ingress.proxy import REPEAT_S, ProxyErrors  # noqa: E402


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """What Serve's proxy does where the ingress dies."""


def answer(app: ASGIApp, path: str = "/v1/predict") -> tuple[int, dict[str, str], bytes]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "path": path, "method": "GET", "headers": []}
    asyncio.run(ProxyErrors(app)(scope, receive, send))
    start, *rest = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, b"".join(message["body"] for message in rest)


@pytest.mark.parametrize(
    ("app", "status", "code"),
    [
        (PlainTextResponse("Path '/' not found. Ping /-/routes.", 404), 503, "not_served"),
        (PlainTextResponse("Request dropped due to backpressure", 503), 503, "overloaded"),
        (PlainTextResponse("Internal Server Error", 500), 503, "ingress_lost"),
        (PlainTextResponse("timed out", 408), 504, "timeout"),
        (silent, 503, "ingress_lost"),
    ],
)
def test_refusals_of_the_proxy_are_errors_like_all_others(app: ASGIApp, status: int, code: str) -> None:
    found, headers, body = answer(app)
    assert (found, json.loads(body)["error"]["code"]) == (status, code)
    assert headers["content-type"] == "application/json"
    assert ("Retry-After" in headers) == (status == 503) or headers.get("retry-after") == "2"


@pytest.mark.parametrize(
    ("app", "path"),
    [
        (JSONResponse({"error": {"code": "overloaded", "message": "m"}}, 503), "/v1/predict"),
        (PlainTextResponse("padt_requests 1"), "/metrics"),
        (Response(b"", 204), "/"),
        (PlainTextResponse("This node is being drained.", 503), "/-/healthz"),
    ],
)
def test_what_the_application_says_passes(app: Response, path: str) -> None:
    assert answer(app, path) == (app.status_code, {k.decode(): v.decode() for k, v in app.raw_headers}, app.body)


def test_a_refusal_for_all_places_being_taken_is_repeated_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, counted = 100.0, [], []
    monkeypatch.setattr("serve.ingress.proxy.time.monotonic", lambda: now)
    answers = {"/v1/predict": error_response(503, "overloaded", "Full.", {"Retry-After": "7", "x-request-id": "old"})}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        await answers.get(scope["path"], JSONResponse({"text": "a"}))(scope, receive, send)

    proxy = ProxyErrors(app, counted.append)

    def ask(path: str = "/v1/predict", method: str = "POST", **headers: str) -> Any:
        return TestClient(proxy).request(method, path, headers=headers)

    first, second = ask(), ask(**{"x-request-id": "mine-1"})
    assert (first.status_code, second.status_code, second.json()) == (503, 503, first.json())
    assert (second.headers["retry-after"], second.headers["x-request-id"]) == ("7", "mine-1")
    assert len(ask().headers["x-request-id"]) >= 32
    assert (asked, counted) == (["/v1/predict"], ["/v1/predict"] * 2)
    # Neither what is asked elsewhere, nor what only looks, nor anybody a moment later is refused unheard.
    assert ask("/v1/batch").status_code == 200 and ask(method="GET").status_code == 503
    answers.clear()
    now += REPEAT_S
    assert ask().status_code == 200 and len(asked) == 4


@pytest.mark.parametrize("code", ["stopping", "engine_lost", "not_ready"])
def test_other_refusals_are_not_repeated(code: str) -> None:
    asked = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(code)
        await error_response(503, code, "Not now.")(scope, receive, send)

    client = TestClient(ProxyErrors(app))
    assert [client.post("/v1/predict").json()["error"]["code"] for _ in range(2)] == asked == [code] * 2
