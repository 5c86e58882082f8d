"""SAM 2 beside the engine: whole answers have its masks, its time is counted, its failures cost no answer."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray.serve")

from pydantic import ValidationError  # noqa: E402

from padt.errors import UserError  # noqa: E402
from padt.inference.events import ObjectFound  # noqa: E402
from padt.inference.predict import predict  # noqa: E402
from padt.inference.refine import Refinement, load_refiner  # noqa: E402
from padt.inference.requests import caption_request  # noqa: E402
from padt.inference.results import Prediction  # noqa: E402
from serve.messages import Job  # noqa: E402
from serve.replica.deployment import events_of  # noqa: E402
from serve.replica.refining import _FIRST, Refining  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402
from tests.padt.tiny_sam import write_tiny_sam  # noqa: E402
from tests.serve.test_replica import SETTINGS, folder, noise, version  # noqa: E402, F401

JOB = Job((noise(),), caption_request(), SETTINGS)


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_sam(tmp_path_factory.mktemp("sam") / "sam")


async def collect(version: Any, job: Job, refining: Refining, pieces: bool = True) -> list:  # noqa: F811
    return [item async for items in events_of(version, job, pieces, refining) for item in items]


def test_whole_answers_have_refined_masks_and_tell_their_time(version: Any, sam: str) -> None:  # noqa: F811
    refinement = ServerArgs(refine="sam2", refine_prompt="box", refine_model=sam).refinement
    refining = Refining.load(refinement, "cpu")
    (own,) = predict(version.engine._model, noise(), JOB.request, SETTINGS)
    ((expected),) = load_refiner(refinement, device="cpu").refine([noise()], [own])
    *pieces, outcome = asyncio.run(collect(version, JOB, refining))
    masks = [found["mask"] for found in outcome.prediction["objects"]]
    assert masks == [found.mask for found in expected.objects] != [found.mask for found in own.objects]
    assert outcome.times.refine > 0
    # What has come before the end is as the model made it.
    streamed = [piece.object.mask for piece in pieces if isinstance(piece, ObjectFound)]
    assert streamed == [found.mask for found in own.objects]
    without = replace(JOB, settings=replace(SETTINGS, masks=False))
    (outcome,) = asyncio.run(collect(version, without, refining, pieces=False))
    assert outcome.times.refine == 0 and outcome.prediction["objects"]


class Held:
    """A refiner that waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.refined: list[Prediction] = []

    def refine(self, pictures: Any, predictions: list[Prediction]) -> list[Prediction]:
        self.begun.set()
        assert self.go_on.wait(60)
        self.refined += predictions
        return predictions


def test_the_engine_goes_on_while_masks_are_refined(version: Any) -> None:  # noqa: F811
    held = Held()
    refining = Refining(held)  # type: ignore[arg-type]

    async def ask() -> None:
        first = asyncio.create_task(collect(version, JOB, refining, pieces=False))
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(held.begun.wait, 60)
            # Another question is answered by the engine meanwhile, and waits for its masks.
            steps, second = version.engine.steps, asyncio.create_task(collect(version, JOB, refining))
            while version.engine.steps == steps or version.engine.running_rows:
                await asyncio.sleep(0.01)
            assert not first.done() and not second.done()
            # A client that goes away leaves its place.
            second.cancel()
            await asyncio.wait([second])
            held.go_on.set()
            (outcome,) = await first
        assert outcome.prediction is not None and second.cancelled()

    asyncio.run(ask())
    refining._thread.shutdown(wait=True)
    assert len(held.refined) == 1


def test_a_failing_refiner_costs_no_answer() -> None:
    class Failing:
        def refine(self, pictures: Any, predictions: Any) -> Any:
            raise torch.OutOfMemoryError("none left")

    refined, seconds = asyncio.run(Refining(Failing()).refine([noise()], _FIRST))  # type: ignore[arg-type]
    assert refined.objects == _FIRST.objects and seconds > 0
    assert "masks are the model's own" in refined.warnings[0] and "none left" not in refined.warnings[0]


def test_settings_that_cannot_be_are_named(tmp_path: Path) -> None:
    from jobs.inference.serve import serving

    assert ServerArgs().refinement is None
    assert ServerArgs(refine="sam2").refinement == Refinement()
    with pytest.raises(ValidationError, match="refine_prompt 'boxes' is unknown: did you mean box"):
        ServerArgs(refine="sam2", refine_prompt="boxes")
    with pytest.raises(ValidationError, match="give refine=sam2 too"):
        ServerArgs(refine_model="somewhere")
    with pytest.raises(ValidationError, match="refine 'sam3' is unknown"):
        ServerArgs(refine="sam3")
    (tmp_path / "config.json").write_text("{}")
    with (
        pytest.raises(UserError, match="is no SAM 2"),
        serving(str(tmp_path), refine="sam2", refine_model=str(tmp_path)),
    ):
        pass
