"""A real endpoint tells of its requests: in its log, its samples and its metrics, and to its own client."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("ray.serve")

from PIL import Image  # noqa: E402
from ray import serve  # noqa: E402

from padt.errors import EndpointError  # noqa: E402
from padt.inference.events import ObjectFound, TextPiece  # noqa: E402
from padt.inference.requests import caption_request, refer_request  # noqa: E402
from padt.inference.results import Frame  # noqa: E402
from serve.client import AsyncClient, Client  # noqa: E402
from serve.ingress.deployment import Ingress  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402
from tests.serve.fake_engine import TEXT, FakeEngine  # noqa: E402
from tests.serve.test_http import free_port  # noqa: E402

pytestmark = pytest.mark.slow

KEY = "alice-0123456789abcdef"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


@pytest.fixture(scope="module")
def endpoint(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of an endpoint, and the folder of its log, ``requests.jsonl``, and of its samples, ``kept``."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "keys").write_text(f"alice:{KEY}\n")
    args = ServerArgs(
        keys_file=str(folder / "keys"),
        request_log=str(folder / "requests.jsonl"),
        sample_share=1.0,
        sample_folder=str(folder / "kept"),
        max_new_tokens=64,
    )
    port = free_port()
    serve.shutdown()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    engine = FakeEngine.options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=50)
    ingress = Ingress.options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=50, num_replicas=2)
    serve.run(ingress.bind(engine.bind(), args), name="told", route_prefix="/")
    yield f"http://127.0.0.1:{port}", folder
    serve.shutdown()


def logged(folder: Path, request_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        path = folder / "requests.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if found := [line for line in lines if line["request_id"] == request_id]:
            (line,) = found
            return line
        assert time.monotonic() < deadline, lines
        time.sleep(0.1)


def test_the_client_gets_the_whole_prediction(endpoint: tuple[str, Path]) -> None:
    url, _ = endpoint
    with Client(url, KEY) as client:
        assert client.ready() and client.models()[0].id == "padt"
        prediction = client.refer(PICTURE, "the red circle")
    assert prediction.images == (Frame(60, 40, (2, 3)),) and prediction.text == TEXT
    (found,) = prediction.objects
    assert (found.box, found.span, found.confidence) == ((0.0, 0.0, 60.0, 40.0), (3, 5), 0.8)
    assert found.mask == {"size": [40, 60], "counts": found.mask["counts"]}

    async def ask() -> Any:
        async with AsyncClient(url, KEY) as other:
            return await asyncio.gather(*(other.refer(PICTURE, "the red circle") for _ in range(4)))

    assert asyncio.run(ask()) == [prediction] * 4


def test_a_stream_ends_with_the_prediction_that_comes_without_one(endpoint: tuple[str, Path]) -> None:
    url, folder = endpoint
    with Client(url, KEY) as client:
        whole = client.caption(PICTURE, masks=False)
        client._http.headers["x-request-id"] = "streamed-1"
        *events, end = client.stream(PICTURE, caption_request(), masks=False)
    assert end == whole
    assert [event.object for event in events if isinstance(event, ObjectFound)] == list(whole.objects)
    said = "".join(event.text for event in events if isinstance(event, TextPiece))
    assert said == re.sub(r"<\|VRT_\d+\|>", "", whole.text)
    line = logged(folder, "streamed-1")
    assert (line["status"], line["code"], line["task"], line["answers"]) == (200, "", "caption", 1)

    async def heard() -> list[Any]:
        async with AsyncClient(url, KEY) as other:
            return [event async for event in other.stream(PICTURE, caption_request(), masks=False)]

    assert asyncio.run(heard()) == [*events, end]


def test_several_questions_and_several_pictures(endpoint: tuple[str, Path]) -> None:
    url, folder = endpoint
    with Client(url, KEY) as client:
        client._http.headers["x-request-id"] = "several-1"
        first, second = client.predict_all(PICTURE, [caption_request(), refer_request("the red circle")])
        assert (first, second) == (client.caption(PICTURE), client.refer(PICTURE, "the red circle"))
        both = client.ask([PICTURE, PICTURE.resize((90, 30))], "what is new?")
        assert [(frame.width, frame.height) for frame in both.images] == [(60, 40), (90, 30)]
        assert client.ask(None, "hello").images == ()
    lines = [each for each in (folder / "requests.jsonl").read_text().splitlines() if "several-1" in each]
    assert json.loads(lines[0])["task"] == "several" and json.loads(lines[0])["answers"] == 2


def test_a_batch_is_one_request_of_many_answers(endpoint: tuple[str, Path]) -> None:
    url, folder = endpoint
    with Client(url, KEY) as client:
        client._http.headers["x-request-id"] = "batch-1"
        items = [(PICTURE, caption_request()), (b"no picture", caption_request()), (PICTURE, refer_request("x"))]
        answers = dict(client.batch(items))
        assert answers[0] == client.caption(PICTURE) and answers[2] == client.refer(PICTURE, "x")
    assert isinstance(answers[1], EndpointError) and answers[1].code == "image_unreadable"
    lines = [json.loads(each) for each in (folder / "requests.jsonl").read_text().splitlines() if "/v1/batch" in each]
    assert [(line["status"], line["answers"], line["task"], line["code"]) for line in lines] == [
        (200, 2, "several", "")
    ]


def test_a_refusal_can_be_found_in_the_log_by_its_id(endpoint: tuple[str, Path]) -> None:
    url, folder = endpoint
    with Client(url, KEY) as client, pytest.raises(EndpointError) as caught:
        client.ask(PICTURE, "refuse")
    assert (caught.value.status, caught.value.code) == (422, "invalid_request")
    line = logged(folder, caught.value.request_id)
    assert (line["status"], line["code"], line["key"], line["task"]) == (422, "invalid_request", "alice", "chat")


def test_strangers_are_logged_without_being_answered(endpoint: tuple[str, Path]) -> None:
    url, folder = endpoint
    answer = httpx.post(f"{url}/v1/predict", headers={"x-request-id": "stranger-1"}, timeout=60)
    assert answer.status_code == 401
    line = logged(folder, "stranger-1")
    assert (line["status"], line["code"], line["key"], line["answers"]) == (401, "unauthorized", "", 0)


def test_a_request_is_logged_kept_and_counted(endpoint: tuple[str, Path]) -> None:
    url, folder = endpoint
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine-1"}
    with Client(url, KEY) as client:
        client._http.headers["x-request-id"] = "mine-1"
        client.predict(PICTURE, caption_request())
        client._http.headers["x-request-id"] = "mine-2"
        client.predict(PICTURE, refer_request("the red circle"))
    line = logged(folder, "mine-1")
    assert (line["status"], line["task"], line["objects"], line["path"]) == (200, "caption", 1, "/v1/predict")
    assert {"preprocess", "encode", "total", "queue", "engine"} == set(line["milliseconds"])
    assert "describe" not in (folder / "requests.jsonl").read_text()

    deadline = time.monotonic() + 60
    while True:
        kept = [
            json.loads(each)
            for path in (folder / "kept").glob("grounded-*.jsonl")
            for each in path.read_text().splitlines()
        ]
        if {"mine-1", "mine-2"} <= {each["id"] for each in kept}:
            break
        assert time.monotonic() < deadline, kept
        time.sleep(0.2)
    sample = next(each for each in kept if each["id"] == "mine-1")
    picture = Image.open(folder / "kept" / "images" / sample["image"])
    assert np.array_equal(np.asarray(picture), np.asarray(PICTURE))

    wanted = "ray_padt_requests_total{"
    deadline = time.monotonic() + 60
    while True:
        text = httpx.get(f"{url}/metrics", headers=headers, timeout=60).text
        if any(
            each.startswith(wanted) and 'task="caption"' in each and 'status="200"' in each
            for each in text.splitlines()
        ):
            break
        assert time.monotonic() < deadline, text
        time.sleep(1)
    assert 'deployment="Ingress"' in text and httpx.get(f"{url}/metrics", timeout=60).status_code == 401
