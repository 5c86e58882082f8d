"""The running application under load, on a real Ray: reload, canary and back, deaths of engines, the end."""

import base64
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray.serve")

import ray  # noqa: E402
from ray import serve  # noqa: E402

from jobs.inference.reload import next_release, release_before, source_of  # noqa: E402
from jobs.inference.serve import Served, serving  # noqa: E402
from padt import load_model, save_model  # noqa: E402
from padt.errors import UserError  # noqa: E402
from padt.inference.predict import predict  # noqa: E402
from padt.inference.requests import GenerationSettings, caption_request  # noqa: E402
from serve import control  # noqa: E402
from serve.messages import EngineState  # noqa: E402
from serve.settings import Release  # noqa: E402
from tests.jobs.inference.test_serve import picture  # noqa: E402
from tests.padt.tiny import tiny_model  # noqa: E402
from tests.serve.test_http_predict import settled  # noqa: E402

pytestmark = pytest.mark.slow
TOKENS = 12
PICTURES = [picture(112, 112, seed) for seed in range(4)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("versions")
    for number in (1, 2):
        model = tiny_model(seed=number)
        save_model(model, model.processor, root / f"v{number}")
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{}")
    return [str(root / name) for name in ("v1", "v2", "broken")]


@pytest.fixture(scope="module")
def expected(folders: list[str]) -> dict[str, list[str]]:
    """Texts of direct predictions about all pictures, by name of the version."""
    settings = GenerationSettings(max_new_tokens=TOKENS)
    texts = {}
    for folder in folders[:2]:
        model = load_model(folder)
        texts[Path(folder).name] = [predict(model, one, caption_request(), settings)[0].text for one in PICTURES]
    assert texts["v1"] != texts["v2"]
    return texts


SETTINGS: dict[str, Any] = {
    "engine_cpus": 0.5,
    "max_new_tokens": TOKENS,
    "max_rows": 4,
    "max_length": 512,
    "max_patches": 64,
    "request_timeout_s": 60.0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def served(ray_cluster: None, folders: list[str]) -> Iterator[Served]:
    serve.shutdown()
    with serving(folders[0], port=0, engine_replicas=2, **SETTINGS) as answering:
        yield answering
    # The next one wants its own port.
    serve.shutdown()


class Load:
    """Clients that ask all the time, and what they got."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[tuple[int, httpx.Response | Exception]] = []
        self._stop = threading.Event()

    def ask(self, place: int) -> httpx.Response:
        body = {"image": base64.b64encode(PICTURES[place]).decode(), "task": "caption", "max_new_tokens": TOKENS}
        return httpx.post(f"{self.url}/v1/predict", json=body, timeout=180)

    def _client(self, number: int) -> None:
        while not self._stop.is_set():
            place = number % len(PICTURES)
            number += 1
            try:
                self.answers.append((place, self.ask(place)))
            except httpx.HTTPError as error:
                self.answers.append((place, error))

    @contextmanager
    def running(self, clients: int = 4) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def go_on(self, more: int = 8) -> None:
        """Wait for more answers."""
        wanted = len(self.answers) + more
        assert settled(lambda: len(self.answers) >= wanted)

    def statuses(self) -> Counter:
        return Counter(one.status_code if isinstance(one, httpx.Response) else repr(one) for _, one in self.answers)


def known_engines() -> dict[str, EngineState]:
    """Engines that say how they are; one that has just died, or that a busy machine holds up, does not."""
    return {name: state for name, state in control.engine_states().items() if state is not None}


def engines(number: int = 2) -> dict[str, EngineState]:
    """All engines."""
    found: dict[str, EngineState] = {}

    def all_known() -> bool:
        nonlocal found
        found = known_engines()
        return len(found) == number

    assert settled(all_known), found
    return found


def texts_are_right(load: Load, expected: dict[str, list[str]]) -> None:
    allowed = [{texts[place] for texts in expected.values()} for place in range(len(PICTURES))]
    answers = [(place, one.json()) for place, one in load.answers if isinstance(one, httpx.Response) and one.is_success]
    assert answers
    for place, answer in answers:
        if "version" in answer:
            assert answer["text"] == expected[answer["version"]][place]
        else:
            assert answer["text"] in allowed[place]


def test_reload_canary_and_back_lose_no_request_and_restart_nothing(
    served: Served, folders: list[str], expected: dict[str, list[str]]
) -> None:
    before = set(engines())
    assert len(before) == 2
    load = Load(served.url)
    with load.running():
        load.go_on()
        now = control.release_of(control.deployed())
        canary = next_release(now, source_of(folders[1]), percent=50)
        control.change(canary)
        load.go_on()
        assert {share.version for state in engines().values() for share in state.versions} == {"v1", "v2"}
        control.change(next_release(canary, source_of(folders[1])))
        assert {state.version for state in engines().values()} == {"v2"}
        load.go_on()
        now = control.release_of(control.deployed())
        control.change(release_before(now))
        assert {state.version for state in engines().values()} == {"v1"}
        load.go_on()
    assert set(load.statuses()) == {200}, load.statuses()
    texts_are_right(load, expected)
    seen = {one.json()["text"] for _, one in load.answers if isinstance(one, httpx.Response)}
    assert seen & set(expected["v2"]) - set(expected["v1"]), "the new version has answered nothing"
    assert set(engines()) == before


def test_a_model_that_cannot_be_loaded_leaves_the_old_one_everywhere(served: Served, folders: list[str]) -> None:
    before = set(engines())
    now = control.release_of(control.deployed())
    with pytest.raises(UserError, match=r"broken cannot be loaded.* v1 answers as before"):
        control.change(next_release(now, source_of(folders[2])))
    assert control.release_of(control.deployed()) == now
    assert {state.version for state in engines().values()} == {"v1"} and set(engines()) == before
    assert Load(served.url).ask(0).status_code == 200


def test_engines_that_are_killed_cost_no_request(served: Served, expected: dict[str, list[str]]) -> None:
    load = Load(served.url)
    with load.running():
        for _ in range(2):
            load.go_on()
            name = sorted(engines())[0]
            actor = ray.get_actor(f"SERVE_REPLICA::{control.APP_NAME}#Engine#{name}", namespace="serve")
            ray.kill(actor)
            assert settled(lambda gone=name: len(known := known_engines()) == 2 and gone not in known, 180)  # type: ignore[misc]
    # One that was lost twice is told to come back; nothing else goes wrong.
    statuses = load.statuses()
    assert set(statuses) <= {200, 503} and statuses[503] <= 2, statuses
    assert statuses[200] > 10
    texts_are_right(load, expected)


def test_the_way_back_is_the_release_before() -> None:
    one = Release(model="/m/1")
    two = next_release(one, Release(model="/m/2").sources[0])
    assert release_before(two).model == "/m/1"
    assert release_before(release_before(two)).model == "/m/2"
    canary = next_release(two, Release(model="/m/3").sources[0], percent=5)
    assert release_before(canary) == two
    with pytest.raises(UserError, match="none to go back to"):
        release_before(one)


def test_the_end_refuses_and_finishes_what_runs(served: Served) -> None:
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(Load(served.url).ask(0)))
    asking.start()
    time.sleep(0.05)
    control.drain(120)
    refused = Load(served.url).ask(1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
    assert int(refused.headers["retry-after"]) >= 1
    assert httpx.get(f"{served.url}/readyz", timeout=60).status_code == 503
    asking.join()
    assert answers[0].status_code in (200, 503)
