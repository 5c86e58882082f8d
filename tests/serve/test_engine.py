"""The engine stops for nobody's sake, and says when its model hangs."""

import numpy as np
import pytest

pytest.importorskip("ray.serve")

from PIL import Image  # noqa: E402

from padt.inference.requests import caption_request, detect_request, text_request  # noqa: E402
from serve.engine import AbandonedError, Job, Progress, answer_jobs  # noqa: E402
from tests.padt.tiny import tiny_model  # noqa: E402


def test_a_batch_goes_on_while_one_client_waits_and_stops_with_the_last() -> None:
    progress, first, second = Progress(), object(), object()
    progress.wanted |= {first, second}
    with progress.batch([first, second]):
        progress.wanted.discard(first)
        progress.step()
        progress.wanted.discard(second)
        with pytest.raises(AbandonedError):
            progress.step()
    progress.step()


def test_only_a_running_batch_can_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("serve.engine.time.monotonic", lambda: now)
    progress, token = Progress(), object()
    progress.wanted.add(token)
    now = 200.0
    assert progress.stalled_s == 0
    with progress.batch([token]):
        now = 207.0
        assert progress.stalled_s == 7
        progress.step()
        assert progress.stalled_s == 0
    assert progress.stalled_s == 0


def test_the_model_tells_of_its_steps_and_can_be_stopped_at_each() -> None:
    model, steps = tiny_model(), []

    def step(*_: object) -> None:
        steps.append(1)
        if len(steps) == 3:
            raise AbandonedError

    model.register_forward_pre_hook(step)
    with pytest.raises(AbandonedError):
        answer_jobs(model, [Job(Image.new("RGB", (112, 112), "grey"), caption_request(), 8)])
    assert len(steps) == 3


def test_only_the_classes_asked_for_are_answered():
    # The random model sees something, and calls it by no such name.
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    model, image = tiny_model(), Image.fromarray(noise)
    request = detect_request(["circle"])
    (free,) = answer_jobs(model, [Job(image, text_request(request.prompt), 24)])
    (listed,) = answer_jobs(model, [Job(image, request, 24)])
    assert free.prediction["objects"] and not listed.prediction["objects"]
    assert "not asked for and left out" in listed.prediction["warnings"][-1]
