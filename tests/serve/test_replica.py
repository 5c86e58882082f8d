"""The engine's deployment: answers as the model gives them, leaves nothing running, and says when its model hangs."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray.serve")

from PIL import Image  # noqa: E402

from padt.inference.events import ObjectFound, TextPiece  # noqa: E402
from padt.inference.predict import predict  # noqa: E402
from padt.inference.requests import GenerationSettings, caption_request, detect_request, text_request  # noqa: E402
from serve.messages import Job, Outcome  # noqa: E402
from serve.replica.deployment import events_of  # noqa: E402
from serve.replica.versions import Heartbeat, Version, weights_fingerprint  # noqa: E402
from serve.settings import Release, ServerArgs  # noqa: E402
from tests.padt.tiny import tiny_model  # noqa: E402

ARGS = ServerArgs(max_rows=4, max_length=512, max_patches=64, max_queued_requests=1, device="cpu")
SETTINGS = GenerationSettings(max_new_tokens=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from padt import save_model

    path = tmp_path_factory.mktemp("model") / "tiny"
    model = tiny_model()
    save_model(model, model.processor, path)
    return path


@pytest.fixture(scope="module")
def version(folder: Path):
    loaded = Version(Release(model=str(folder)), ARGS)
    yield loaded
    loaded.close()


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (112, 112, 3), dtype=np.uint8))


async def collect(version: Version, job: Job, pieces: bool = True) -> list:
    return [item async for items in events_of(version, job, pieces) for item in items]


def test_a_stream_and_an_answer_are_what_predict_gives(version: Version) -> None:
    image, request = noise(), caption_request()
    (expected,) = predict(version.engine._model, image, request, SETTINGS)
    *pieces, streamed = asyncio.run(collect(version, Job((image,), request, SETTINGS)))
    (alone,) = asyncio.run(collect(version, Job((image,), request, SETTINGS), pieces=False))
    assert isinstance(streamed, Outcome) and isinstance(alone, Outcome)
    assert streamed.prediction["text"] == alone.prediction["text"] == expected.text
    assert streamed.completion_tokens == len(expected.token_ids) and streamed.prompt_tokens > 16
    found = [piece for piece in pieces if isinstance(piece, ObjectFound)]
    assert [one.number for one in found] == list(range(len(expected.objects)))
    assert all(isinstance(piece, TextPiece | ObjectFound) for piece in pieces)
    assert (streamed.version, len(streamed.fingerprint)) == ("tiny", 12)


def test_only_the_classes_asked_for_are_answered(version: Version) -> None:
    # The random model sees something, and calls it by no such name.
    request = detect_request(["circle"])
    (free,) = asyncio.run(collect(version, Job((noise(),), text_request(request.prompt), SETTINGS), pieces=False))
    *pieces, listed = asyncio.run(collect(version, Job((noise(),), request, SETTINGS)))
    assert free.prediction["objects"] and not listed.prediction["objects"]
    assert not any(isinstance(piece, ObjectFound) for piece in pieces)
    assert "not asked for and left out" in listed.prediction["warnings"][-1]


def test_what_the_engine_refuses_is_an_outcome(version: Version) -> None:
    beams = replace(SETTINGS, num_beams=2)
    (outcome,) = asyncio.run(collect(version, Job((noise(),), caption_request(), beams)))
    assert (outcome.trouble, outcome.prediction) == ("refused", None)
    long = replace(SETTINGS, max_new_tokens=10_000)
    (outcome,) = asyncio.run(collect(version, Job((noise(),), caption_request(), long)))
    assert outcome.trouble == "refused" and "max_new_tokens" in outcome.message


def test_a_reader_that_goes_away_ends_the_answer(version: Version) -> None:
    async def leave() -> None:
        async with asyncio.timeout(20):
            events = events_of(version, Job((noise(),), caption_request(), replace(SETTINGS, max_new_tokens=400)))
            await anext(events)
            await events.aclose()
            while version.engine.running_rows:
                await asyncio.sleep(0.01)

    asyncio.run(leave())


def test_only_rows_that_wait_can_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    class Standing:
        steps, running_rows, waiting_rows = 3, 0, 0

    now, engine, heart = 100.0, Standing(), Heartbeat()
    monkeypatch.setattr("serve.replica.versions.time.monotonic", lambda: now)
    assert heart.stalled_s(engine) == 0
    now = 200.0
    assert heart.stalled_s(engine) == 0
    engine.running_rows = 1
    now = 207.0
    assert heart.stalled_s(engine) == 7
    engine.steps += 1
    assert heart.stalled_s(engine) == 0


def test_a_fingerprint_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "renamed"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert weights_fingerprint(other) == weights_fingerprint(folder)
    weights = next(other.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert weights_fingerprint(other) != weights_fingerprint(folder)
