"""Several engines on a real Ray: which of them gets a job, and how many there are."""

import asyncio
import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ray.serve")

from PIL import Image  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve.config import RequestRouterConfig  # noqa: E402
from ray.serve.handle import DeploymentHandle  # noqa: E402

from jobs.inference.serve import serving  # noqa: E402
from padt import save_model  # noqa: E402
from padt.inference.requests import GenerationSettings, caption_request  # noqa: E402
from serve import control  # noqa: E402
from serve.messages import Job  # noqa: E402
from serve.replica.routing import PictureRouter, session  # noqa: E402
from tests.jobs.inference.test_serve import picture  # noqa: E402
from tests.padt.tiny import tiny_model  # noqa: E402
from tests.serve.test_change import SETTINGS  # noqa: E402

pytestmark = pytest.mark.slow
FULL = 4


@serve.deployment
class Slow:
    """Takes its time, and says who it is."""

    async def answer(self) -> str:
        await asyncio.sleep(0.4)
        return serve.get_replica_context().replica_id.unique_id


@serve.deployment
class Asker:
    """Asks several things at a time, as one request with several questions does."""

    def __init__(self, slow: DeploymentHandle) -> None:
        self._slow = slow

    async def ask(self, keys: list[str]) -> list[str]:
        calls = [self._slow.options(session_id=session(key)).answer.remote() for key in keys]
        return list(await asyncio.gather(*calls))


@pytest.fixture(scope="module")
def asker(ray_cluster: None) -> Iterator[DeploymentHandle]:
    serve.shutdown()
    router = RequestRouterConfig(request_router_class=PictureRouter, request_router_kwargs={"full": FULL})
    slow = Slow.options(
        num_replicas=2, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100, request_router_config=router
    )
    yield serve.run(
        Asker.options(ray_actor_options={"num_cpus": 0}).bind(slow.bind()), name="routing", route_prefix=None
    )
    serve.shutdown()


def asked(asker: DeploymentHandle, keys: list[str]) -> list[str]:
    return asker.ask.remote(keys).result(timeout_s=120)


def test_a_picture_stays_with_its_engine_and_pictures_spread(asker: DeploymentHandle) -> None:
    keys = [f"picture-{number}" for number in range(6)]
    # One at a time, and all in one request: the places are the same.
    alone = [asked(asker, [key])[0] for key in keys]
    assert len(set(alone)) == 2
    assert [asked(asker, [key, key]) for key in keys] == [[name, name] for name in alone]


def test_a_picture_that_all_ask_about_is_seen_by_more_engines_when_one_is_full(asker: DeploymentHandle) -> None:
    found = Counter(asked(asker, ["everybody's"] * 3 * FULL))
    assert len(found) == 2 and min(found.values()) >= FULL


def engines_become(number: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while (found := len(control.engine_states())) != number:
        assert time.monotonic() < deadline, f"{found} engines in place of {number} after {timeout_s:g} s"
        time.sleep(0.2)


def test_engines_follow_the_load_of_answers_and_of_streams(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("scaled") / "model"
    model = tiny_model()
    save_model(model, model.processor, folder)
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 1.0,
        "look_back_period_s": 2.0,
    }
    job = Job(
        (Image.open(io.BytesIO(picture(112, 112, 0))),), caption_request(), GenerationSettings(max_new_tokens=200)
    )
    serve.shutdown()
    with serving(str(folder), port=0, engine_replicas=scaling, **SETTINGS):
        handle = serve.get_deployment_handle("Engine", control.APP_NAME)

        def ask(stop: threading.Event, streaming: bool, results: list[Any]) -> None:
            while not stop.is_set():
                if streaming:
                    results.append(
                        [item for items in handle.options(stream=True).stream.remote(job) for item in items][-1]
                    )
                else:
                    results.append(handle.answer.remote(job).result(timeout_s=180))

        for streaming in (False, True):
            stop = threading.Event()
            results: list[Any] = []
            engines_become(1, 180)
            threads = [threading.Thread(target=ask, args=(stop, streaming, results)) for _ in range(6)]
            for thread in threads:
                thread.start()
            try:
                engines_become(2, 180)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            # Engines come and go without a loss.
            engines_become(1, 180)
            assert {outcome.trouble for outcome in results} == {None}
    serve.shutdown()
