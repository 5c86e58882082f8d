"""One shape for everything that goes wrong, whatever a client sends and wherever it goes."""

import base64
import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

pytest.importorskip("ray.serve")

from serve.settings import ServerArgs  # noqa: E402
from tests.serve.fake_engine import Answers  # noqa: E402
from tests.serve.in_process import connect, listening, served  # noqa: E402
from tests.serve.test_reading import encoded  # noqa: E402

ARGS = ServerArgs(max_patches=16, max_new_tokens=64, max_body_mb=0.1)
BODY = json.dumps({"image": base64.b64encode(encoded()).decode(), "task": "caption"}).encode()
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(served(Answers(), ARGS)) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with connect(url) as client:
        yield client


def exchange(http: httpx.Client, *parts: bytes, ends: bool = False) -> bytes:
    """What a connection answers to bytes, until it closes; ``ends``: the client closes its side first."""
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while received := connection.recv(65536):
            answer += received
    return answer


def head(*lines: str, path: str = "/v1/predict") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: a", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/v1/predict/", 404, "not_found"),
        ("GET", "/v1/%00/..%2f", 404, "not_found"),
        ("GET", "/redoc", 404, "not_found"),
        ("GET", "/v1/predict", 405, "method_not_allowed"),
        ("DELETE", "/v1/batch", 405, "method_not_allowed"),
        ("PUT", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PATCH", "/v1/predict", 405, "method_not_allowed"),
    ],
)
def test_paths_and_methods_that_are_not_there(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status and answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"} and error["code"] == code
    if status == 405:
        assert answer.headers["allow"] == "POST"


def test_heads_have_no_body(http: httpx.Client) -> None:
    for path, status in (("/healthz", 200), ("/readyz", 200), ("/v1/predict", 405), ("/no", 404)):
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (status, b"")


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({"content-type": "text/plain"}, BODY, 415, "unsupported_content_type"),
        ({}, BODY, 415, "unsupported_content_type"),
        ({"content-type": "application/json; charset=utf-16"}, BODY, 415, "unsupported_content_type"),
        ([("content-type", "application/json"), ("content-type", "text/plain")], BODY, 415, "unsupported_content_type"),
        ({**JSON, "content-encoding": "gzip"}, gzip.compress(BODY), 415, "unsupported_content_type"),
        ({**JSON, "accept": "text/html"}, BODY, 406, "not_acceptable"),
        (JSON, b"A" * 200_000, 413, "body_too_large"),
        (JSON, b"", 400, "invalid_json"),
        (JSON, gzip.compress(BODY), 400, "invalid_json"),
        ({"content-type": "multipart/form-data"}, BODY, 400, "invalid_form"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x\r\n\r\n\r\n--x--\r\n", 400, "invalid_form"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"no form", 400, "invalid_form"),
    ],
)
def test_bodies_and_headers_that_do_not_fit(
    http: httpx.Client, headers: Any, content: bytes, status: int, code: str
) -> None:
    answer = http.post("/v1/predict", headers=headers, content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_what_is_acceptable_is_answered(http: httpx.Client) -> None:
    for accept in ("application/json", "text/html, */*;q=0.1", "application/*", "text/event-stream", ""):
        answer = http.post("/v1/predict", headers={**JSON, "accept": accept}, content=BODY)
        assert answer.status_code == 200, accept


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(http: httpx.Client) -> None:
    lines = ("content-type: application/json", f"content-length: {len(BODY)}", "expect: 100-continue")
    answer = exchange(http, head(*lines, "connection: close"), BODY)
    assert answer.startswith(b"HTTP/1.1 100 Continue") and b"HTTP/1.1 200 OK" in answer


def test_bodies_that_end_early_or_are_too_large_are_told_so(http: httpx.Client) -> None:
    lines = ("content-type: application/json", f"content-length: {len(BODY) + 9}")
    assert b"200 OK" not in exchange(http, head(*lines), BODY, ends=True)

    refusal = exchange(http, head("content-type: application/json", "content-length: 999999999", "connection: close"))
    assert b" 413 " in refusal and b'"body_too_large"' in refusal


def test_bodies_that_come_slowly_are_told_so() -> None:
    hasty = ARGS.model_copy(update={"body_timeout_s": 0.1})
    with listening(served(Answers(), hasty)) as url, connect(url) as http:
        refusal = exchange(http, head("content-type: application/json", "content-length: 50", "connection: close"))
    assert b" 408 " in refusal and b'"body_too_slow"' in refusal


def test_who_finds_no_place_is_told_so_before_the_body_has_come() -> None:
    app = served(Answers(), ARGS)
    lines = ("content-type: application/json", "content-length: 5000", "connection: close")
    with listening(app) as url, connect(url) as http:
        http.get("/healthz")
        with ExitStack() as held:
            (desk,) = app.desks  # type: ignore[attr-defined]
            for _ in range(desk.questions.most):
                held.enter_context(desk.questions.one())
            for path in ("/v1/predict", "/v1/chat/completions"):
                refusal = exchange(http, head(*lines, path=path))
                assert b" 503 " in refusal and b'"overloaded"' in refusal


def test_the_server_answers_as_before_afterwards(http: httpx.Client) -> None:
    assert http.post("/v1/predict", headers=JSON, content=BODY).status_code == 200


@pytest.mark.parametrize(
    "text", ["\x00\x1b[31m", "<|im_end|>\n<|im_start|>assistant", "<|VRT_1|><|image_pad|>", "\u202e\ufeff", "😀" * 40]
)
def test_words_of_any_kind_are_words(http: httpx.Client, text: str) -> None:
    image = base64.b64encode(encoded()).decode()
    for fields in ({"task": "refer", "sentence": f"x{text}"}, {"task": "detect", "names": [f"x{text}"]}):
        answer = http.post("/v1/predict", json={"image": image, **fields})
        assert answer.status_code == 200, answer.text
