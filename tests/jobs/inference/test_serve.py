"""`padt serve` with a real (tiny, random) model: it starts, answers like the library, and lets go of what it took."""

import base64
import io
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.serve")

from jobs.inference.serve import Served, serving  # noqa: E402
from padt import load_model  # noqa: E402
from padt.checkpoints.loading import save_model  # noqa: E402
from padt.errors import UserError  # noqa: E402
from padt.inference.predict import GenerationSettings, caption_request, predict, refer_request  # noqa: E402
from serve.client import Client  # noqa: E402
from tests.padt.tiny import tiny_model  # noqa: E402

TOKENS = 24
SENTENCE = "the large red circle"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("served") / "model"
    made = tiny_model()
    save_model(made, made.processor, folder)
    return str(folder)


@pytest.fixture(scope="module")
def served(ray_cluster: None, model: str) -> Iterator[Served]:
    with serving(model, port=0, max_new_tokens=TOKENS, max_rows=4, device="cpu") as answering:
        yield answering


def picture(width: int, height: int, seed: int) -> bytes:
    """Noise: on a plain colour all patches are alike, and which one is named is left to rounding."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.slow
def test_a_batch_of_requests_gets_the_answers_of_the_library(served: Served, model: str) -> None:
    pictures = [picture(112, 112, 1), picture(140, 112, 2), picture(112, 140, 3), picture(60, 50, 4)]

    def ask(data: bytes) -> dict:
        body = {"image": base64.b64encode(data).decode(), "task": "refer", "sentence": SENTENCE}
        answer = httpx.post(f"{served.url}/v1/predict", json=body, timeout=180)
        assert answer.status_code == 200, answer.text
        return answer.json()

    with ThreadPoolExecutor(len(pictures)) as pool:
        answers = list(pool.map(ask, pictures))
    loaded = load_model(model)
    for data, answer in zip(pictures, answers, strict=True):
        (expected,) = predict(loaded, [data], [refer_request(SENTENCE)], GenerationSettings(max_new_tokens=TOKENS))
        assert answer["text"] == expected.text
        assert (answer["width"], answer["height"]) == (expected.width, expected.height)
        assert len(answer["objects"]) == len(expected.objects)
        for got, wanted in zip(answer["objects"], expected.objects, strict=True):
            assert got["box"] == pytest.approx(wanted.box, abs=1e-2)
            assert got["patches"] == list(wanted.patches)


@pytest.mark.slow
def test_the_client_gets_what_predict_gives(served: Served, model: str) -> None:
    data, requests = picture(112, 140, 5), [refer_request(SENTENCE), caption_request()]
    expected = predict(load_model(model), [data] * 2, requests, GenerationSettings(max_new_tokens=TOKENS))
    with Client(served.url) as client:
        answers = [client.predict(data, request) for request in requests]
    for got, wanted in zip(answers, expected, strict=True):
        # The engine sums in another order than predict, so scores and boxes are equal but for rounding.
        assert (got.text, got.images, got.truncated) == (wanted.text, wanted.images, wanted.truncated)
        for one, other in zip(got.objects, wanted.objects, strict=True):
            assert (one.label, one.patches, one.span, one.complete) == (
                other.label,
                other.patches,
                other.span,
                other.complete,
            )
            assert one.box == pytest.approx(other.box, abs=1e-2) and one.score == pytest.approx(other.score, abs=1e-3)
    assert any(answer.objects for answer in answers)


@pytest.mark.slow
def test_it_counts_the_steps_of_its_engine_and_what_was_answered(served: Served) -> None:
    with Client(served.url) as client:
        client.caption(picture(112, 112, 6))
    wanted = {"ray_padt_step_rows_count", "ray_padt_cache_misses_total", "ray_padt_completion_tokens_total"}
    deadline = time.monotonic() + 180
    while True:
        text = httpx.get(f"{served.url}/metrics", timeout=120).text
        if wanted <= {line.partition("{")[0] for line in text.splitlines()}:
            break
        assert time.monotonic() < deadline, text
        time.sleep(1)
    assert 'deployment="Engine"' in text and 'deployment="Ingress"' in text


@pytest.mark.slow
def test_it_says_what_it_serves(served: Served, model: str) -> None:
    (card,) = httpx.get(f"{served.url}/v1/models", timeout=120).json()["data"]
    assert Path(card["source"]) == Path(model).resolve()


def test_a_port_that_is_taken_is_named(model: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} of 127.0.0.1 is not free"), serving(model, port=port):
            pass


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 99999, "There is no port 99999"),
        ("nobody.invalid", 0, "Host nobody.invalid is no interface of this machine"),
        ("203.0.113.1", 0, "Host 203.0.113.1 is no interface of this machine"),
    ],
)
def test_a_port_or_host_that_cannot_be_is_named(model: str, host: str, port: int, message: str) -> None:
    with pytest.raises(UserError, match=message), serving(model, host, port):
        pass


def test_a_model_is_not_opened_to_a_network_without_keys(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PADT_API_KEYS", raising=False)
    with pytest.raises(UserError, match="--allow-anyone"), serving(model, "0.0.0.0", 0):
        pass
    with pytest.raises(UserError, match="cannot be read"), serving(model, port=0, keys_file="/nothing/keys"):
        pass


def test_a_wrong_setting_and_a_missing_model_are_named(model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="raise max_length"), serving(model, port=0, max_length=1024):
        pass
    with pytest.raises(UserError, match="nothing-here"), serving(str(tmp_path / "nothing-here")):
        pass
