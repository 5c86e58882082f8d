"""``/v1/batch``: every line is answered, a broken one costs itself only, and nothing waits in vain."""

import base64
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("ray.serve")

from padt.errors import EndpointError  # noqa: E402
from padt.inference.requests import caption_request, text_request  # noqa: E402
from padt.inference.results import Prediction  # noqa: E402
from serve.client import Client  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402
from tests.serve.fake_engine import Answers  # noqa: E402
from tests.serve.in_process import connect, listening, served  # noqa: E402
from tests.serve.test_http_predict import settled  # noqa: E402
from tests.serve.test_reading import encoded  # noqa: E402

ARGS = ServerArgs(
    max_patches=16,
    max_new_tokens=64,
    max_body_mb=0.01,
    max_batch_lines_at_once=3,
    max_batches=2,
    max_rows=2,
    max_queued_requests=0,
)
IMAGE = base64.b64encode(encoded()).decode()
TYPE = {"content-type": "application/jsonl"}


@pytest.fixture
def engine() -> Answers:
    return Answers()


@pytest.fixture
def app(engine: Answers) -> Any:
    return served(engine, ARGS)


@pytest.fixture
def http(app: Any) -> Iterator[httpx.Client]:
    with listening(app) as url, connect(url) as client:
        yield client


def line(custom_id: Any = None, **fields: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "body": {"image": IMAGE, "task": "caption", **fields}}).encode() + b"\n"


def say(prompt: str, custom_id: Any = None) -> bytes:
    return json.dumps({"custom_id": custom_id, "body": {"task": "chat", "prompt": prompt}}).encode() + b"\n"


def answers(response: httpx.Response) -> list[dict[str, Any]]:
    return sorted((json.loads(each) for each in response.text.splitlines()), key=lambda answer: answer["line"])


def test_a_broken_line_costs_itself_only_and_blank_ones_count_as_lines(http: httpx.Client) -> None:
    lines = [
        line("first"),
        b"\r\n",
        b"no json\n",
        b'{"custom_id": "twice", "body": {}, "body": {}}\n',
        b'{"custom_id": "empty", "body": {}}\n',
        b'{"custom_id": 7, "body": {"task": "caption"}}\n',
        b"[" * 9_000 + b"\n",
        line("stream", stream=True),
        say("crash", "crash"),
        say("a" * 20_000, "long"),
        b'{"custom_id": "bytes \xff"}\n',
        line("last").rstrip(b"\n"),
    ]
    response = http.post("/v1/batch", content=b"".join(lines), headers=TYPE)
    assert response.headers["content-type"].startswith("application/jsonl")
    found = [(each["line"], each["custom_id"], each["status"]) for each in answers(response)]
    assert found == [
        (1, "first", 200),
        (3, None, 400),
        (4, None, 400),
        (5, "empty", 422),
        (6, None, 422),
        (7, None, 400),
        (8, "stream", 422),
        (9, "crash", 500),
        (10, None, 413),
        (11, None, 400),
        (12, "last", 200),
    ]
    for each in answers(response):
        if each["status"] == 200:
            assert Prediction.from_dict(each["body"]).width == 60
        else:
            assert set(each["body"]["error"]) == {"message", "type", "code", "param"}
    assert "secret" not in response.text


def test_lines_are_answered_while_others_are_still_sent(http: httpx.Client) -> None:
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=60) as connection:
        head = "POST /v1/batch HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-ndjson\r\n"
        connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        received = b""
        for number in range(3):
            content = line(str(number))
            # Cut in the middle, as networks do.
            for part in (content[:50], content[50:]):
                connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            while f'"custom_id": "{number}"'.encode() not in received or not received.endswith(b"}\n\r\n"):
                received += connection.recv(65536)
        connection.sendall(b"0\r\n\r\n")
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
    assert received.startswith(b"HTTP/1.1 200")


def test_so_many_lines_run_at_a_time_and_lines_without_a_place_wait(http: httpx.Client, engine: Answers) -> None:
    engine.nap_s = 0.3
    # Two places for three lines at a time: the third waits and is not refused.
    found = answers(http.post("/v1/batch", content=say("slow") * 6, headers=TYPE))
    assert [each["status"] for each in found] == [200] * 6
    assert len(engine.jobs) == 6 and engine.most <= ARGS.max_rows


def test_a_batch_that_nobody_reads_any_more_is_given_up(http: httpx.Client, engine: Answers, app: Any) -> None:
    content = say("hello") + say("endless") * 20
    with http.stream("POST", "/v1/batch", content=content, headers=TYPE) as response:
        # Whoever lets go of this iterator lets go of the connection.
        lines = response.iter_lines()
        assert json.loads(next(lines))["line"] == 1
        assert settled(lambda: engine.running == ARGS.max_rows)
        asked = len(engine.jobs)
    (desk,) = app.desks
    assert settled(lambda: desk.batches.taken == 0 and desk.questions.taken == 0)
    assert settled(lambda: engine.cancelled == ARGS.max_rows and engine.running == 0)
    time.sleep(0.5)
    assert len(engine.jobs) == asked


def test_a_client_that_goes_before_its_last_line_is_noticed(http: httpx.Client, engine: Answers, app: Any) -> None:
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=60) as connection:
        head = "POST /v1/batch HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\ncontent-type: application/jsonl\r\n\r\n"
        connection.sendall(head.encode() + say("endless"))
        assert settled(lambda: len(engine.jobs) == 1)
    assert settled(lambda: engine.cancelled == 1 and app.desks[0].batches.taken == 0)


def test_a_batch_that_stops_coming_ends_with_an_error_and_keeps_what_it_has(engine: Answers) -> None:
    hasty = ARGS.model_copy(update={"body_timeout_s": 0.3})
    with listening(served(engine, hasty)) as url, connect(url) as http:
        # All in one packet, so that only the rest of the second line is late.
        sent = line("whole") + b'{"custom'
        head = "POST /v1/batch HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\ncontent-type: application/jsonl\r\n\r\n"
        with socket.create_connection((http.base_url.host, http.base_url.port), timeout=60) as connection:
            connection.sendall(head.encode() + sent)
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += connection.recv(65536)
    lines = [json.loads(each) for each in received.splitlines() if each.startswith(b"{")]
    first, second = sorted(lines, key=lambda answer: answer["line"])
    assert (first["custom_id"], first["status"]) == ("whole", 200)
    assert (second["line"], second["status"], second["body"]["error"]["code"]) == (2, 408, "body_too_slow")


def test_batches_have_places_and_content_types(http: httpx.Client, app: Any) -> None:
    assert http.post("/v1/batch", content=line(), headers={"content-type": "application/json"}).status_code == 415
    assert http.post("/v1/batch", content=b"", headers=TYPE).text == ""
    with app.desks[0].batches.one(), app.desks[0].batches.one():
        refused = http.post("/v1/batch", content=line(), headers=TYPE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")


def test_the_client_gets_each_item_or_what_was_wrong_with_it(http: httpx.Client) -> None:
    items = [(encoded(), caption_request()), (None, text_request("refuse")), (None, text_request("hello"))] * 10
    with Client(str(http.base_url), api_key="") as client:
        found = dict(client.batch(items))
    assert sorted(found) == list(range(30))
    for number, answer in found.items():
        assert isinstance(answer, EndpointError if number % 3 == 1 else Prediction)
