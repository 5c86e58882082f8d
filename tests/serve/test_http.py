"""The HTTP side on a real Serve, with an engine that needs no model."""

import base64
import json
import re
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("ray.serve")

from ray import serve  # noqa: E402

from padt.inference.results import Frame, Prediction  # noqa: E402
from serve.ingress.deployment import Ingress, api  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402
from tests.serve.fake_engine import FakeEngine  # noqa: E402
from tests.serve.test_http_predict import read_events, settled  # noqa: E402
from tests.serve.test_reading import encoded  # noqa: E402

PHASES = {"decode", "queue", "prefill", "steps", "objects", "encode", "total"}
ARGS = ServerArgs(
    max_body_mb=0.2,
    max_image_pixels=50_000,
    max_new_tokens=64,
    max_patches=16,
    max_rows=1,
    max_queued_requests=1,
    max_bodies=4,
    body_timeout_s=120.0,
    hang_after_s=5.0,
    retry_after_s=3,
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def client(ray_cluster: None) -> Iterator[httpx.Client]:
    port = free_port()
    # A Serve that an earlier test left running would keep its own port.
    serve.shutdown()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    engine = FakeEngine.options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=50)
    ingress = Ingress.options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=50)
    serve.run(ingress.bind(engine.bind(), ARGS), name="http-test", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        yield http
    serve.shutdown()


def ask(client: httpx.Client, **fields: object) -> httpx.Response:
    image = base64.b64encode(encoded()).decode()
    return client.post("/v1/predict", json={"image": image, "task": "caption", **fields})


def test_json_and_form_get_the_same_answer(client: httpx.Client) -> None:
    first = ask(client, task="detect", names=["circle", "square"]).json()
    form = {"task": "detect", "names": "circle,square"}
    second = client.post("/v1/predict", files={"image": ("a.png", encoded())}, data=form).json()
    for answer in (first, second):
        assert set(answer.pop("milliseconds")) == PHASES
    assert first == second
    assert first["objects"][0]["box"] == [0.0, 0.0, 60.0, 40.0]
    assert first["objects"][0]["mask"]["size"] == [40, 60]
    assert (first["width"], first["height"], first["grid"], first["model"]) == (60, 40, [2, 3], "padt")


def test_an_answer_holds_the_whole_prediction(client: httpx.Client) -> None:
    prediction = Prediction.from_dict(ask(client).json())
    assert prediction.images == (Frame(60, 40, (2, 3)),)
    (found,) = prediction.objects
    assert (found.span, found.confidence, found.complete, found.image) == ((3, 5), 0.8, True, 0)


def test_every_answer_names_its_request(client: httpx.Client) -> None:
    assert client.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    # Serve's proxy gives one where there is none, and names it too.
    (given,) = ask(client, task="nothing").headers.get_list("x-request-id")
    assert len(given) >= 32


def test_masks_can_be_left_out(client: httpx.Client) -> None:
    assert ask(client, mask="none").json()["objects"][0]["mask"] is None


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"task": "detect"}, 422, "invalid_request"),
        ({"task": "refer", "sentence": "  "}, 422, "invalid_request"),
        ({"max_new_tokens": 65}, 422, "invalid_request"),
        ({"task": "detect", "names": ["ä" * 100] * 50}, 422, "prompt_too_long"),
        ({"task": "chat", "prompt": "refuse"}, 422, "invalid_request"),
        ({"image": base64.b64encode(b"no picture").decode()}, 422, "image_unreadable"),
        ({"image": base64.b64encode(encoded(300, 300)).decode()}, 413, "image_too_large"),
        ({"image": "A" * 300_000}, 413, "body_too_large"),
    ],
)
def test_refusals_have_a_code_and_a_message(client: httpx.Client, fields: dict, status: int, code: str) -> None:
    answer = ask(client, **fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert len(answer.json()["error"]["message"]) > 10


def test_an_unknown_content_type_and_a_form_without_picture_are_refused(client: httpx.Client) -> None:
    assert client.post("/v1/predict", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    answer = client.post("/v1/predict", files={"picture": ("a.png", encoded())}, data={"task": "caption"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_form")
    answer = client.post("/v1/predict", files={"task": (None, "caption")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "missing_image")


def test_a_body_without_length_is_cut_off_too(client: httpx.Client) -> None:
    pieces = (b"A" * 10_000 for _ in range(100))
    answer = client.post("/v1/predict", content=pieces, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_crash_tells_no_secrets(client: httpx.Client) -> None:
    answer = ask(client, task="chat", prompt="crash")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["code"] == "internal_error"


def counted(client: httpx.Client) -> tuple[int, int]:
    """How many questions the engine answers, and how many were given up."""
    running, cancelled = re.findall(r"\d+", ask(client, task="chat", prompt="count").json()["error"]["message"])
    return int(running), int(cancelled)


@contextmanager
def all_places_held(client: httpx.Client) -> Iterator[None]:
    """Streams without an end hold the engine's place and the one that waits for it."""
    body = {"task": "chat", "prompt": "endless", "stream": True}
    with client.stream("POST", "/v1/predict", json=body), client.stream("POST", "/v1/predict", json=body):
        yield


def free_again(client: httpx.Client) -> bool:
    return settled(lambda: ask(client).status_code == 200)


def test_overload_is_answered_with_retry_after_and_before_the_picture_is_decoded(client: httpx.Client) -> None:
    with all_places_held(client):
        # This picture would be refused with 422.
        refused = ask(client, image=base64.b64encode(b"no picture").decode())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "3"
        # The engine's queue is full, and it is ready all the same.
        assert settled(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/v1/models").status_code == 200
    assert free_again(client)


def test_a_large_picture_is_scaled_down_and_its_boxes_are_not(client: httpx.Client) -> None:
    answer = ask(client, image=base64.b64encode(encoded(240, 160)).decode()).json()
    assert (answer["width"], answer["height"]) == (240, 160)
    (found,) = answer["objects"]
    assert found["box"] == pytest.approx([0, 0, 240, 160])
    assert found["mask"]["size"] == [160, 240]


def send_part(client: httpx.Client) -> socket.socket:
    """A connection whose body never comes."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)
    head = "POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
    connection.sendall(head.encode())
    return connection


def test_bodies_that_never_come_hold_up_nobody(client: httpx.Client) -> None:
    with ExitStack() as stack:
        waiting = {stack.enter_context(send_part(client)) for _ in range(60)}
        heads = []
        while len(waiting) > ARGS.max_bodies:
            for connection in select.select(list(waiting), [], [], 60)[0]:
                heads.append(connection.recv(4096).decode())
                waiting.remove(connection)
        assert client.get("/healthz").status_code == 200
        assert {head.split()[1] for head in heads} == {"503"}
        assert select.select(list(waiting), [], [], 0)[0] == []
    # Who holds the places has gone.
    assert free_again(client)


def test_what_nobody_waits_for_is_cancelled(client: httpx.Client) -> None:
    running, before = counted(client)
    assert running == 0
    body = json.dumps({"task": "chat", "prompt": "endless"}).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        assert settled(lambda: counted(client) == (1, before))
    assert settled(lambda: counted(client) == (0, before + 1))


def test_streams_pass_serve_as_they_are_made_and_end_when_their_client_leaves(client: httpx.Client) -> None:
    _, before = counted(client)
    image = base64.b64encode(encoded()).decode()
    body = {"image": image, "task": "chat", "prompt": "endless", "stream": True}
    with client.stream("POST", "/v1/predict", json=body) as response:
        # The answer has no end, so whatever comes, comes before it.
        parts = response.iter_text()
        text = next(parts)
        while text.count("event: text") < 3:
            text += next(parts)
        assert text.index("event: object") < text.rindex("event: text") and "event: done" not in text
    assert settled(lambda: counted(client) == (0, before + 1))


def test_lines_of_a_batch_pass_serve_both_ways_while_others_are_still_sent(client: httpx.Client) -> None:
    line = json.dumps({"body": {"task": "chat", "prompt": "hello"}}).encode() + b"\n"
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as connection:
        head = "POST /v1/batch HTTP/1.1\r\nhost: a\r\ncontent-type: application/jsonl\r\n"
        connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        received = b""
        for number in range(1, 4):
            connection.sendall(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            while f'"line": {number}, "status": 200'.encode() not in received:
                received += connection.recv(65536)
        connection.sendall(b"0\r\n\r\n")
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)


def test_an_engine_that_hangs_is_not_ready(client: httpx.Client) -> None:
    assert ask(client, task="chat", prompt="hang 6").status_code == 200
    assert settled(lambda: client.get("/readyz").status_code == 503)
    assert client.get("/readyz").json()["error"]["code"] == "not_ready"
    assert ask(client, task="chat", prompt="hang 0").status_code == 200
    assert settled(lambda: client.get("/readyz").status_code == 200)


def test_paths_and_methods_that_are_not_there_get_the_one_error_shape(client: httpx.Client) -> None:
    for answer, status, code in [
        (client.get("/nothing"), 404, "not_found"),
        (client.get("/redoc"), 404, "not_found"),
        (client.get("/v1/predict"), 405, "method_not_allowed"),
    ]:
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.fixture(scope="module")
def mortal(client: httpx.Client) -> Iterator[httpx.Client]:
    """Three engines, which can be told to die."""
    engine = FakeEngine.options(num_replicas=3, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=50)
    ingress = Ingress.options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=50)
    serve.run(ingress.bind(engine.bind(), ARGS), name="mortal", route_prefix="/mortal")
    with httpx.Client(base_url=f"{client.base_url}/mortal", timeout=90) as http:
        yield http
    serve.delete("mortal")


@pytest.mark.parametrize(("deaths", "status"), [(1, 200), (2, 503)])
def test_a_question_over_which_an_engine_dies_is_asked_once_more(
    mortal: httpx.Client, tmp_path: Path, deaths: int, status: int
) -> None:
    flag = tmp_path / "lives"
    flag.write_text("\n".join(["die"] * deaths))
    answer = ask(mortal, task="chat", prompt=f"die {flag}")
    assert answer.status_code == status, answer.text
    assert flag.read_text() == ""
    if status == 503:
        assert answer.json()["error"]["code"] == "engine_lost"


def test_a_stream_whose_engine_dies_ends_with_an_error_and_is_not_begun_again(mortal: httpx.Client) -> None:
    found = read_events(ask(mortal, task="chat", prompt="break off", stream=True).text)
    assert [name for name, _ in found] == ["text", "object", "error"]
    assert found[-1][1]["error"]["code"] == "engine_lost"
    assert free_again(mortal)


def test_health_readiness_and_models(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    page = client.get("/docs")
    assert "max_new_tokens" in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    assert settled(lambda: client.get("/readyz").status_code == 200)
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["source"], card["device"]) == ("padt", "/models/fake", "cpu")


def test_the_description_names_both_content_types_and_the_errors() -> None:
    operation = api.openapi()["paths"]["/v1/predict"]["post"]
    assert set(operation["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert {"200", "413", "422", "503"} <= set(operation["responses"])
    json.dumps(api.openapi())
