"""The client against a played endpoint: what it sends, what it makes of answers, and when it tries again."""

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from padt.errors import EndpointError, ImageError, UserError
from padt.inference.events import ObjectFound, TextPiece
from padt.inference.requests import Request, caption_request, chat_request, detect_request, refer_request, text_request
from padt.inference.results import Frame, PredictedObject, Prediction
from serve.client import AsyncClient, Client
from serve.client.wire import BatchReader, EventReader, Options, batch_pieces, body, picture, wait_before
from tests.conftest import REPOSITORY

MASK = {"size": [40, 60], "counts": "0`X1"}
FOUND = PredictedObject("the \u2028 cat", 0.1 + 0.2, (0.5, 1.25, 1 / 3, 40.0), MASK, (0, 1), (3, 5), 0.8, True)
ANSWER = Prediction("a cat <|VRT_0|><|VRT_1|>", (FOUND,), (Frame(60, 40, (2, 3)),), (), False, ("odd",))
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def encoded() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return buffer.getvalue()


def answer_body(prediction: Prediction = ANSWER) -> dict[str, Any]:
    """As the endpoint words it: more than the prediction."""
    return {**prediction.to_dict(), "model": "padt", "version": "padt/7", "milliseconds": {"decode": 1.0}}


def refused(status: int, code: str, **headers: str) -> httpx.Response:
    told = {"x-request-id": "r-1", **headers}
    return httpx.Response(status, json={"error": {"code": code, "message": "Do something else."}}, headers=told)


def event(name: str, values: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(values, ensure_ascii=False)}\n\n".encode()


FIRST = event("text", {"answer": 0, "text": "a \u2028 cät"})
STREAM = b": keep-alive\n\n" + b"".join(
    [
        FIRST,
        event("object", {"answer": 0, "number": 0, "at": 7, "object": FOUND.to_dict()}),
        event("later", {"whatever": 1}),
        event("done", answer_body()),
    ]
)
EVENTS = [TextPiece("a \u2028 cät"), ObjectFound(0, FOUND), ANSWER]


class Blocking:
    """An ``AsyncClient`` behind the face of ``Client``, so that both are held to the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._make: Callable[[], AsyncClient] = lambda: AsyncClient(*args, **kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            async with self._make() as client:
                made = getattr(client, name)(*args, **kwargs)
                return [each async for each in made] if name in ("stream", "batch") else await made

        return lambda *args, **kwargs: asyncio.run(call(*args, **kwargs))


@pytest.fixture(params=[Client, Blocking], ids=["waiting", "asyncio"])
def connect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a client whose endpoint is a function."""
    monkeypatch.delenv("PADT_API_KEY", raising=False)
    return lambda handler, *args, **kwargs: request.param(
        "http://padt.test", *args, transport=httpx.MockTransport(handler), **kwargs
    )


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clients would have waited."""
    slept: list[float] = []

    async def nap(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("serve.client.waiting.time.sleep", slept.append)
    monkeypatch.setattr("serve.client.asynchronous.asyncio.sleep", nap)
    return slept


def in_turn(*answers: httpx.Response) -> Callable[[httpx.Request], httpx.Response]:
    left = iter(answers)
    return lambda request: next(left)


def test_each_question_is_sent_in_the_fields_of_its_task(connect: Callable[..., Any]) -> None:
    sent: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/predict"
        sent.append(json.loads(request.content))
        return httpx.Response(200, json=answer_body())

    client = connect(handler)
    asked = [
        client.detect(PICTURE, ["cat", 'a "dog"'], masks=False, score_threshold=0.5),
        client.refer(PICTURE, 'the "red" cat', max_new_tokens=7, temperature=0.5, top_p=0.9, seed=3),
        client.caption([PICTURE, PICTURE]),
        client.ask(None, "detect the cat"),
        client.predict(PICTURE, refer_request("x"), masks=True),
        client.predict(PICTURE, "plain words"),
    ]
    assert asked == [ANSWER] * 6
    images = [(one.pop("image", None) is not None, len(one.pop("images", []))) for one in sent]
    assert images == [(True, 0), (True, 0), (False, 2), (False, 0), (True, 0), (True, 0)]
    assert sent == [
        {"task": "detect", "names": ["cat", 'a "dog"'], "mask": "none", "score_threshold": 0.5},
        {
            "task": "refer",
            "sentence": 'the "red" cat',
            "max_new_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 3,
        },
        {"task": "caption"},
        {"task": "chat", "prompt": "detect the cat"},
        {"task": "refer", "sentence": "x"},
        {"task": "chat", "prompt": "plain words"},
    ]


def test_several_questions_about_one_picture_go_in_one_call(connect: Callable[..., Any]) -> None:
    other = replace(ANSWER, text="no")

    def handler(request: httpx.Request) -> httpx.Response:
        content = json.loads(request.content)
        assert [question["task"] for question in content["questions"]] == ["caption", "refer"]
        assert content["mask"] == "none"
        return httpx.Response(200, json={"model": "padt", "answers": [answer_body(), answer_body(other)]})

    client = connect(handler)
    requests = [caption_request(), refer_request("x")]
    assert client.predict_all(PICTURE, requests, masks=False) == [ANSWER, other]
    assert client.raw(PICTURE, requests, masks=False)["answers"][1]["version"] == "padt/7"


def test_pictures_arrive_with_the_pixels_that_they_have(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    for source in (encoded(), path, str(path), PICTURE, np.asarray(PICTURE)):
        arrived = Image.open(io.BytesIO(base64.b64decode(picture(source))))
        assert np.array_equal(np.asarray(arrived), np.asarray(PICTURE)), type(source)
    assert picture("https://host/a.png") == "https://host/a.png"
    with pytest.raises(ImageError, match=r"nothing\.png cannot be read"):
        picture(tmp_path / "nothing.png")


def test_what_the_api_has_no_form_for_is_said_before_anything_is_sent() -> None:
    with pytest.raises(UserError, match="at least one request"):
        body(PICTURE, [], {})
    _, conversation = chat_request([{"role": "user", "content": "hello"}])
    with pytest.raises(UserError, match="/v1/chat/completions"):
        body(None, [conversation], {})
    with pytest.raises(UserError, match="not worded as task 'refer'"):
        body(PICTURE, [Request("refer", "where is the cat?")], {})


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_is_the_same_however_its_bytes_come(connect: Callable[..., Any], size: int) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["stream"] is True
        pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
        return httpx.Response(200, stream=Bytes(pieces), headers={"content-type": "text/event-stream"})

    assert list(connect(handler).stream(PICTURE, caption_request())) == EVENTS


class Bytes(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces; an exception among them is raised."""

    def __init__(self, pieces: list[Any]) -> None:
        self._pieces = pieces
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self):
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def test_a_stream_that_is_left_closes_its_connection() -> None:
    stream = Bytes([STREAM[:100], STREAM[100:]])
    client = Client("http://padt.test", transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=stream)))
    for first in client.stream(PICTURE, caption_request()):
        assert first == EVENTS[0]
        break
    assert stream.closed


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ([FIRST, STREAM[:100]], "cut_off"),
        ([FIRST, httpx.RemoteProtocolError("gone")], "unreachable"),
        ([FIRST, event("error", {"error": {"code": "engine_lost", "message": "Ask again."}})], "engine_lost"),
    ],
)
def test_a_stream_that_fails_says_so(connect: Callable[..., Any], pieces: list[Any], code: str) -> None:
    client = connect(lambda _: httpx.Response(200, stream=Bytes(pieces), headers={"x-request-id": "r-9"}))
    with pytest.raises(EndpointError) as caught:
        list(client.stream(PICTURE, caption_request()))
    assert caught.value.code == code
    if code != "unreachable":
        assert caught.value.request_id == "r-9"


def test_a_refusal_is_an_error_with_status_code_message_and_request_id(connect: Callable[..., Any]) -> None:
    with pytest.raises(EndpointError, match=r"Do something else\. \(request r-1\)") as caught:
        connect(lambda _: refused(422, "prompt_too_long")).caption(PICTURE)
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (422, "prompt_too_long", "r-1")
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ((502, "<html>Bad gateway</html>"), "http_502"),
        ((500, '["what"]'), "http_500"),
        ((200, "hello, I am a router"), "no_json"),
    ],
)
def test_whoever_stands_between_may_answer_in_another_shape(
    connect: Callable[..., Any], response: tuple[int, str], code: str
) -> None:
    with pytest.raises(EndpointError) as caught:
        connect(lambda _: httpx.Response(response[0], text=response[1])).caption(PICTURE)
    assert caught.value.code == code


def test_busy_endpoints_are_asked_again_after_the_time_that_they_say(
    connect: Callable[..., Any], naps: list[float]
) -> None:
    handler = in_turn(
        refused(503, "overloaded", **{"retry-after": "3"}),
        refused(429, "too_many", **{"retry-after": "2"}),
        httpx.Response(200, json=answer_body()),
    )
    assert connect(handler).caption(PICTURE) == ANSWER
    assert 3 <= naps[0] <= 3.75 and 2 <= naps[1] <= 2.5


def test_asking_again_has_an_end(connect: Callable[..., Any], naps: list[float]) -> None:
    calls = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return refused(503, "overloaded")

    with pytest.raises(EndpointError) as caught:
        connect(handler, retries=2).caption(PICTURE)
    assert (caught.value.code, len(calls), len(naps)) == ("overloaded", 3, 2)
    with pytest.raises(EndpointError):
        connect(in_turn(refused(429, "quota", **{"retry-after": "3600"}))).caption(PICTURE)
    assert len(naps) == 2


@pytest.mark.parametrize("status", [400, 401, 422, 500, 504])
def test_what_would_fail_again_is_not_asked_again(connect: Callable[..., Any], naps: list[float], status: int) -> None:
    with pytest.raises(EndpointError):
        connect(in_turn(refused(status, "x", **{"retry-after": "1"}))).caption(PICTURE)
    assert not naps


def test_retry_after_may_be_a_date_and_may_be_missing() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert wait_before(1, {"retry-after": format_datetime(now + timedelta(seconds=9), usegmt=True)}, now) == 9
    assert wait_before(1, {"retry-after": format_datetime(now - timedelta(seconds=9), usegmt=True)}, now) == 0
    waits = [wait_before(attempt, {"retry-after": "soon"}) for attempt in range(1, 9)]
    assert waits == sorted(waits) and waits[0] == 0.5 and waits[-1] == 8


def test_keys_come_from_the_argument_or_the_environment(
    connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(
            200, json={"object": "list", "data": [{"id": "padt", "tasks": ["refer"], "version": "7"}]}
        )

    (model,) = connect(handler).models()
    assert (model.id, model.tasks, model.about["version"]) == ("padt", ("refer",), "7")
    monkeypatch.setenv("PADT_API_KEY", "from-the-environment")
    connect(handler).models()
    connect(handler, "given").models()
    assert seen == [None, "Bearer from-the-environment", "Bearer given"]


def test_readiness_is_true_false_or_false_where_nobody_is(connect: Callable[..., Any], naps: list[float]) -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert connect(lambda _: httpx.Response(200)).ready() is True
    assert connect(lambda _: refused(503, "not_ready")).ready() is False
    assert connect(gone).ready() is False
    assert not naps
    with pytest.raises(EndpointError, match=r"http://padt\.test does not answer"):
        connect(gone).models()


def test_a_timeout_says_what_to_do(connect: Callable[..., Any]) -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("")

    with pytest.raises(EndpointError, match="raise timeout_s") as caught:
        connect(slow).caption(PICTURE)
    assert caught.value.code == "timeout"


def batch_line(number: int, status: int = 200, line: int | None = None) -> bytes:
    answer = answer_body(replace(ANSWER, text=str(number)))
    content = answer if status == 200 else {"error": {"code": "bad", "message": f"Line {number} is bad."}}
    return (
        json.dumps({"custom_id": str(number), "line": line or number + 1, "status": status, "body": content}).encode()
        + b"\n"
    )


def test_a_batch_answers_each_item_once_in_order_of_completion(connect: Callable[..., Any]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/batch"
        lines = [json.loads(line) for line in request.content.splitlines()]
        assert [line["body"]["mask"] for line in lines] == ["none"] * 3
        assert [line["body"]["task"] for line in lines] == ["caption", "refer", "chat"]
        content = b"".join(
            batch_line(int(line["custom_id"]), 422 if line["custom_id"] == "1" else 200) for line in lines
        )
        return httpx.Response(200, content=content)

    items = [(PICTURE, caption_request()), (encoded(), refer_request("x")), (None, text_request("hello"))]
    answers = dict(connect(handler).batch(iter(items), masks=False))
    assert sorted(answers) == [0, 1, 2]
    assert answers[2].text == "2"
    assert isinstance(answers[1], EndpointError) and answers[1].code == "bad"


def test_a_large_batch_goes_in_pieces_that_are_read_as_they_are_sent() -> None:
    read: list[int] = []

    def items() -> Iterator[tuple[bytes, Request]]:
        for number in range(7):
            read.append(number)
            yield b"x" * (300 if number == 4 else 10), caption_request()

    pieces = batch_pieces(items(), {}, lines=3, size=400)
    numbers, content = next(pieces)
    assert numbers == [0, 1, 2] and len(content.splitlines()) == 3 and read == [0, 1, 2, 3]
    # The large one is alone.
    assert [numbers for numbers, _ in pieces] == [[3], [4], [5, 6]]


def test_items_that_the_endpoint_did_not_come_to_are_told_and_not_lost() -> None:
    reader = BatchReader([4, 5, 6], {"x-request-id": "r-2"})
    assert list(reader.feed(batch_line(5, line=2)[:40])) == []
    assert [number for number, _ in reader.feed(batch_line(5, line=2)[40:])] == [5]
    rest = dict(reader.finish())
    assert sorted(rest) == [4, 6] and {error.code for error in rest.values()} == {"cut_off"}


def test_lines_that_have_no_name_are_known_by_their_place() -> None:
    reader = BatchReader([4, 5], {})
    broken = {
        "line": 1,
        "custom_id": None,
        "status": 413,
        "body": {"error": {"code": "body_too_large", "message": "No."}},
    }
    late = {"line": 3, "custom_id": None, "status": 408, "body": {"error": {"code": "body_too_slow", "message": "No."}}}
    content = f"{json.dumps(broken)}\n{json.dumps(late)}\n".encode()
    answers = [*reader.feed(content), *reader.finish()]
    assert [(number, error.code) for number, error in answers if isinstance(error, EndpointError)] == [
        (4, "body_too_large"),
        (5, "body_too_slow"),
    ]


def test_events_of_a_newer_endpoint_are_passed_over() -> None:
    reader = EventReader({})
    assert list(reader.feed(event("progress", {"percent": 3}) + b"id: 3\nretry: 10\n\n")) == []


def test_what_the_client_sends_is_what_the_endpoint_reads() -> None:
    pytest.importorskip("fastapi")
    from serve.api.bodies import Body
    from serve.api.pictures import picture_bytes
    from serve.api.schemas import read_predict

    requests = [detect_request(["cat"]), refer_request("x"), caption_request(), text_request("hello")]
    options: Options = {"masks": False, "max_new_tokens": 5, "temperature": 1, "seed": 3, "score_threshold": 0.5}
    for asked, images in [*(([request], encoded()) for request in requests), (requests, [encoded(), encoded()])]:
        read, sources = read_predict(Body(json.loads(json.dumps(body(images, asked, options, stream=True)))))
        assert [question.task for question in read.asked] == [request.task for request in asked]
        assert (read.mask, read.max_new_tokens, read.temperature, read.seed) == ("none", 5, 1, 3)
        assert read.stream and {picture_bytes(source) for source in sources} == {encoded()}


def test_the_client_needs_neither_torch_nor_ray_nor_the_server() -> None:
    code = (
        "import sys, serve.client; print(*{'torch', 'transformers', 'ray', 'pydantic', 'fastapi'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert run.stdout.strip() == ""
