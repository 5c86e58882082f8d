"""Change without loss in one replica: new versions take over beside the old, a part of the requests, or not at all."""

import asyncio
import gc
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve")

from padt.errors import UserError  # noqa: E402
from padt.inference.predict import predict  # noqa: E402
from padt.inference.requests import GenerationSettings, caption_request  # noqa: E402
from serve.messages import Job, Outcome  # noqa: E402
from serve.replica.deployment import events_of  # noqa: E402
from serve.replica.lineup import Lineup, percent_of  # noqa: E402
from serve.replica.versions import Version  # noqa: E402
from serve.settings import Canary, ModelSource, Release, ServerArgs  # noqa: E402
from tests.padt.tiny import tiny_model  # noqa: E402
from tests.serve.test_replica import noise  # noqa: E402

OLD, NEW = Release(model="/m/1", version="padt/1"), Release(model="/m/2", version="padt/2")


class Loaded:
    """A version without a model."""

    def __init__(self, source: ModelSource) -> None:
        self.source, self.name, self.fingerprint = source, source.label, "f" * 12
        self.lost, self.stalled_s, self.closed = "", 0.0, False

    def check(self) -> None:
        if self.lost:
            raise RuntimeError(self.lost)

    def close(self) -> None:
        self.closed = True


class Models:
    """Loads versions when it is let; remembers them by name."""

    def __init__(self) -> None:
        self.loaded: dict[str, Loaded] = {}
        self.loads: list[str] = []
        self.held: set[str] = set()
        self.broken: set[str] = set()

    def __call__(self, source: ModelSource) -> Any:
        self.loads.append(source.label)
        while source.label in self.held:
            time.sleep(0.001)
        if source.label in self.broken:
            raise UserError(f"{source.model} has no weights.")
        self.loaded[source.label] = Loaded(source)
        return self.loaded[source.label]


async def settled(lineup: Lineup) -> None:
    while lineup._following is not None and not lineup._following.done():
        await asyncio.sleep(0.005)
    while lineup._tasks:
        await asyncio.sleep(0.005)


def test_a_new_version_takes_over_when_it_is_warm_and_the_old_one_ends_when_nobody_waits_for_it() -> None:
    async def run() -> None:
        models = Models()
        lineup = Lineup(models)
        await lineup.change(OLD)
        models.held = {"padt/2"}
        with lineup.using("waits long") as version:
            async with asyncio.timeout(60):
                await lineup.change(NEW)
            while not models.loads[1:]:
                await asyncio.sleep(0.005)
            assert (lineup.main.name, lineup.loading) == ("padt/1", "padt/2")
            models.held = set()
            while lineup.main.name != "padt/2":
                await asyncio.sleep(0.005)
            assert version.name == "padt/1" and not models.loaded["padt/1"].closed
        await settled(lineup)
        assert models.loaded["padt/1"].closed and not models.loaded["padt/2"].closed
        assert (lineup.release, lineup.loading, lineup.problem) == (NEW, "", "")

    asyncio.run(run())


def test_what_cannot_be_loaded_changes_nothing_and_is_told() -> None:
    async def run() -> None:
        models = Models()
        models.broken = {"padt/2"}
        lineup = Lineup(models)
        await lineup.change(OLD)
        await lineup.change(NEW)
        await settled(lineup)
        assert (lineup.main.name, lineup.release) == ("padt/1", OLD)
        assert lineup.problem == "padt/2 cannot be loaded: /m/2 has no weights."
        # Back to what answers anyway: nothing is loaded, and there is no problem any more.
        await lineup.change(OLD)
        await settled(lineup)
        assert (lineup.problem, models.loads) == ("", ["padt/1", "padt/2"])
        # It is tried again when it is wanted again.
        models.broken = set()
        await lineup.change(NEW)
        await settled(lineup)
        assert lineup.main.name == "padt/2"

    asyncio.run(run())


def test_a_first_version_that_cannot_be_loaded_is_an_error() -> None:
    models = Models()
    models.broken = {"padt/1"}
    with pytest.raises(UserError, match="no weights"):
        asyncio.run(Lineup(models).change(OLD))


def test_a_change_during_a_change_ends_at_the_last_one_wanted() -> None:
    async def run() -> None:
        models = Models()
        lineup = Lineup(models)
        await lineup.change(OLD)
        models.held = {"padt/2"}
        await lineup.change(NEW)
        while not models.loads[1:]:
            await asyncio.sleep(0.005)
        last = Release(model="/m/3", version="padt/3")
        await lineup.change(last)
        models.held = set()
        await settled(lineup)
        assert lineup.release == last and models.loaded["padt/2"].closed
        assert not models.loaded["padt/3"].closed

    asyncio.run(run())


def test_a_canary_gets_its_share_and_the_same_requests_again() -> None:
    async def run() -> None:
        models = Models()
        lineup = Lineup(models)
        await lineup.change(OLD.model_copy(update={"canary": Canary(model="/m/2", version="padt/2", percent=20)}))
        await settled(lineup)
        assert [(share.version, share.percent) for share in lineup.shares] == [("padt/1", 80), ("padt/2", 20)]

        def who(request_id: str) -> str:
            with lineup.using(request_id) as version:
                return version.name

        ids = [f"request-{number}" for number in range(2000)]
        chosen = [who(one) for one in ids]
        assert 300 < Counter(chosen)["padt/2"] < 500
        assert chosen == [who(one) for one in ids]
        # It takes over whole: nothing is loaded again. And the way back from a canary is to name none.
        await lineup.change(NEW)
        await settled(lineup)
        assert models.loads == ["padt/1", "padt/2"] and models.loaded["padt/1"].closed
        assert [share.version for share in lineup.shares] == ["padt/2"]

    asyncio.run(run())


def test_the_same_folder_with_other_content_is_another_model() -> None:
    async def run() -> None:
        models = Models()
        lineup = Lineup(models)
        await lineup.change(OLD)
        await lineup.change(OLD.model_copy(update={"revision": "written anew"}))
        await settled(lineup)
        assert models.loads == ["padt/1", "padt/1"]

    asyncio.run(run())


def test_health_is_of_every_version_that_answers() -> None:
    async def run() -> None:
        models = Models()
        lineup = Lineup(models)
        with pytest.raises(RuntimeError, match="user_config"):
            lineup.check()
        await lineup.change(OLD.model_copy(update={"canary": Canary(model="/m/2", version="padt/2", percent=20)}))
        await settled(lineup)
        lineup.check()
        models.loaded["padt/2"].lost = "it hangs"
        with pytest.raises(RuntimeError, match="it hangs"):
            lineup.check()

    asyncio.run(run())


def test_percents_are_even() -> None:
    found = Counter(int(percent_of(str(number)) // 10) for number in range(5000))
    assert set(found) == set(range(10)) and all(400 < count < 600 for count in found.values())


@pytest.mark.slow
def test_under_load_every_answer_is_that_of_the_version_it_names_and_old_memory_is_freed(tmp_path: Path) -> None:
    from padt import save_model

    args = ServerArgs(max_rows=4, max_length=512, max_patches=64, max_queued_requests=64, device="cpu")
    settings = GenerationSettings(max_new_tokens=12)
    pictures = [noise(seed) for seed in range(4)]
    expected: dict[tuple[str, int], str] = {}
    for number in (1, 2):
        model = tiny_model(seed=number)
        save_model(model, model.processor, tmp_path / str(number))
        for place, picture in enumerate(pictures):
            (answer,) = predict(model, picture, caption_request(), settings)
            expected[f"padt/{number}", place] = answer.text
    assert len(set(expected.values())) > 1
    one, two = (Release(model=str(tmp_path / str(number)), version=f"padt/{number}") for number in (1, 2))
    lineup = Lineup(lambda source: Version(source, args))
    outcomes: list[tuple[int, Outcome]] = []
    stop = False

    async def client(number: int) -> None:
        asked = 0
        while not stop:
            place = (number + asked) % len(pictures)
            job = Job((pictures[place],), caption_request(), settings, request_id=f"{number}-{asked}")
            asked += 1
            with lineup.using(job.request_id) as version:
                async for items in events_of(version, replace(job), pieces=False):
                    outcomes.append((place, items[-1]))

    async def answers_of(version: str) -> None:
        """Wait until it has given some more."""
        before = len(outcomes)
        while sum(outcome.version == version for _, outcome in outcomes[before:]) < 4:
            await asyncio.sleep(0.02)

    async def run() -> "weakref.ref[Any]":
        nonlocal stop
        await lineup.change(one)
        old = weakref.ref(lineup.main.engine._model)
        clients = [asyncio.create_task(client(number)) for number in range(6)]
        await answers_of("padt/1")
        await lineup.change(one.model_copy(update={"canary": Canary(**two.sources[0].model_dump(), percent=50)}))
        while lineup.release == one:
            await asyncio.sleep(0.02)
        await answers_of("padt/1")
        await answers_of("padt/2")
        await lineup.change(two)
        await settled(lineup)
        await answers_of("padt/2")
        stop = True
        await asyncio.gather(*clients)
        return old

    old = asyncio.run(run())
    assert Counter(outcome.trouble for _, outcome in outcomes) == {None: len(outcomes)}
    assert {outcome.version for _, outcome in outcomes} == {"padt/1", "padt/2"}
    wrong = [outcome for place, outcome in outcomes if outcome.prediction["text"] != expected[outcome.version, place]]
    assert not wrong, f"{len(wrong)} of {len(outcomes)}"
    gc.collect()
    assert old() is None, "the old model is still in memory"
    lineup.main.close()
