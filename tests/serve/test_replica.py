"""The engine's deployment: answers as the model gives them, leaves nothing running, and says when its model hangs."""

import asyncio
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ray.serve")

from PIL import Image  # noqa: E402

from padt.checkpoints.fingerprint import fingerprint  # noqa: E402
from padt.inference.events import ObjectFound, TextPiece  # noqa: E402
from padt.inference.predict import predict  # noqa: E402
from padt.inference.requests import GenerationSettings, caption_request, detect_request, text_request  # noqa: E402
from serve.messages import Job, Outcome  # noqa: E402
from serve.replica.deployment import events_of  # noqa: E402
from serve.replica.versions import Version  # noqa: E402
from serve.settings import ModelSource, ServerArgs  # noqa: E402
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
    loaded = Version(ModelSource(model=str(folder)), ARGS)
    yield loaded
    loaded.close()


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (112, 112, 3), dtype=np.uint8))


def test_compiled_steps_are_warm_before_the_first_request(folder: Path) -> None:
    # Torch's own compiler takes minutes; this back end runs the same padded shapes as they are.
    args = ARGS.model_copy(update={"compile_steps": "eager", "max_rows": 2, "max_length": 256})
    compiled = Version(ModelSource(model=str(folder)), args)
    try:
        request = caption_request()
        (expected,) = predict(compiled.engine._model, noise(), request, SETTINGS)
        (outcome,) = asyncio.run(collect(compiled, Job((noise(),), request, SETTINGS), pieces=False))
    finally:
        compiled.close()
    assert outcome.prediction["text"] == expected.text


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
        async with asyncio.timeout(120):
            events = events_of(version, Job((noise(),), caption_request(), replace(SETTINGS, max_new_tokens=400)))
            await anext(events)
            await events.aclose()
            while version.engine.running_rows:
                await asyncio.sleep(0.01)

    asyncio.run(leave())


async def until_lost(version: Version, jobs: list[Job]) -> list[Outcome]:
    """Outcomes of jobs whose version is checked as Serve does."""
    waiting = [asyncio.create_task(collect(version, job, pieces=False)) for job in jobs]
    async with asyncio.timeout(120):
        while not version.lost:
            await asyncio.sleep(0.02)
            with suppress(RuntimeError):
                version.check()
        return [(await one)[-1] for one in waiting]


def test_a_hung_model_gives_its_jobs_up_and_takes_no_more(folder: Path) -> None:
    version = Version(ModelSource(model=str(folder)), ARGS.model_copy(update={"hang_after_s": 0.3}))
    version.check()
    go_on = threading.Event()
    version.engine._passes.decode = lambda rows: go_on.wait()
    job = Job((noise(),), caption_request(), SETTINGS)
    try:
        outcomes = asyncio.run(until_lost(version, [job] * 3))
        (late,) = asyncio.run(collect(version, job))
        with pytest.raises(RuntimeError, match="no step for"):
            version.check()
    finally:
        go_on.set()
        for row in version.engine._passes.rows:
            row.ticket.cancel()
    assert [outcome.trouble for outcome in (*outcomes, late)] == ["lost"] * 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_has_died_gives_its_jobs_up(folder: Path) -> None:
    version = Version(ModelSource(model=str(folder)), ARGS)

    def die() -> None:
        raise SystemExit("the driver is gone")

    version.engine._settle = die
    job = Job((noise(),), caption_request(), SETTINGS)
    outcomes = asyncio.run(until_lost(version, [job] * 3))
    (late,) = asyncio.run(collect(version, job))
    assert [outcome.trouble for outcome in (*outcomes, late)] == ["lost"] * 4
    with pytest.raises(RuntimeError, match="the driver is gone"):
        version.check()


def test_too_little_memory_refuses_the_largest_and_answers_the_others(version: Version) -> None:
    (alone,) = asyncio.run(collect(version, Job((noise(9),), caption_request(), SETTINGS), pieces=False))
    # Two prompts together do not fit, nor does one with 64 patches in place of 16.
    limit, real = alone.prompt_tokens + 8, version.engine._model.model.language_model.forward
    seen = []

    def forward(*args: object, inputs_embeds: torch.Tensor, **others: object) -> object:
        seen.append(inputs_embeds.shape[0] * inputs_embeds.shape[1])
        if seen[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return real(*args, inputs_embeds=inputs_embeds, **others)

    large = noise(1).resize((224, 224))
    jobs = [Job((noise(seed),), caption_request(), SETTINGS) for seed in range(3)]
    jobs.append(Job((large,), caption_request(), SETTINGS))
    expected = [predict(version.engine._model, list(job.images), job.request, SETTINGS)[0].text for job in jobs[:3]]

    async def ask_all() -> list[Outcome]:
        return [items[-1] for items in await asyncio.gather(*(collect(version, job) for job in jobs))]

    version.engine._model.model.language_model.forward = forward
    try:
        outcomes = asyncio.run(ask_all())
    finally:
        del version.engine._model.model.language_model.forward
    assert [outcome.trouble for outcome in outcomes] == [None, None, None, "refused"]
    assert "more memory" in outcomes[3].message
    assert [outcome.prediction["text"] for outcome in outcomes[:3]] == expected
    assert max(seen) > limit, "the test has tried nothing"
    # The engine goes on, and the large one is answered when there is memory.
    assert asyncio.run(collect(version, jobs[3]))[-1].trouble is None
    version.check()


def test_a_fingerprint_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "renamed"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert fingerprint(other) == fingerprint(folder)
    weights = next(other.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert fingerprint(other) != fingerprint(folder)
