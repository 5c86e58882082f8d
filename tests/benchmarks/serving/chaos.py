"""The endpoint under load while things happen to it: engines are killed, models change, replicas come and go.

    python -m tests.benchmarks.serving.chaos                   all cases, about five minutes
    python -m tests.benchmarks.serving.chaos kills --seconds 60

On the CPU with the shipped toy model and drawn scenes; the load comes from a second process. Every answer is compared
with ``predict`` of the model that it names: equal text, the same objects, boxes within 1e-3 px.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jobs.inference.reload import next_release, release_before, source_of
from jobs.inference.serve import serving
from padt.checkpoints.loading import load_model, save_model
from padt.inference.predict import GenerationSettings, predict
from padt.inference.requests import ask, class_names
from padt.inference.results import Prediction
from tests.benchmarks.serving import clients
from tests.benchmarks.serving.clients import LoadProcess, Reply, load_process
from tests.benchmarks.serving.processes import replicas
from tests.benchmarks.serving.questions import TOY_MODEL, Asked, mixed

APP_NAME = "padt"
CLIENTS, QUESTIONS = 8, 24
KILL_EVERY_S = 5.0
BOX_TOLERANCE = 1e-3
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "engine_cpus": 0.5,
    "max_rows": 8,
    "max_queued_requests": 16,
    "max_new_tokens": 512,
    "max_length": 2048,
    "max_patches": 1024,
}


@dataclass
class World:
    """The load, the models and what they answer, and what was found wrong."""

    load: LoadProcess
    models: dict[str, str]
    asked: list[Asked]
    expected: dict[str, list[Prediction]]
    seconds: float
    failures: list[str] = field(default_factory=list)

    @property
    def bodies(self) -> list[bytes]:
        """The questions as they are sent."""
        return [one.body for one in self.asked]

    def check(self, what: str, held: bool) -> None:
        """Print whether something held, and keep what did not."""
        print(f"  {what}: {'yes' if held else 'NO'}")
        if not held:
            self.failures.append(what)

    def judge(self, replies: list[Reply], clean: tuple[str, ...] = ()) -> None:
        """Every reply is an answer or a clean error of those named, and every answer is right."""
        codes = Counter(reply.code for reply in replies)
        times = sorted(reply.seconds for reply in replies if reply.code == "ok")
        print(f"  {dict(codes)}; p50 {times[len(times) // 2]:.2f} s, longest {times[-1]:.2f} s")
        self.check(f"nothing but answers{' and ' + ', '.join(clean) if clean else ''}", set(codes) <= {"ok", *clean})
        wrong = [found for reply in replies if reply.code == "ok" and (found := self.difference(reply))]
        for one in wrong[:5]:
            print(f"    {one}")
        self.check("every answer is that of a direct prediction", not wrong)

    def difference(self, reply: Reply) -> str | None:
        """What an answer has that ``predict`` of its model has not."""
        answer, wanted = reply.body, self.expected[reply.body["version"]][reply.number]
        if answer["text"] != wanted.text:
            return f"question {reply.number}: {answer['text']!r} in place of {wanted.text!r}"
        if [one["label"] for one in answer["objects"]] != [one.label for one in wanted.objects]:
            return f"question {reply.number}: other objects than predict's"
        for one, other in zip(answer["objects"], wanted.objects, strict=True):
            worst = max(abs(a - b) for a, b in zip(one["box"], other.box, strict=True))
            if worst > BOX_TOLERANCE:
                return f"question {reply.number}: a box is {worst:.2g} px off"
        return None


def direct(model: str, asked: list[Asked]) -> list[Prediction]:
    """What ``predict`` answers."""
    loaded, found = load_model(model, device="cpu"), []
    for one in asked:
        words = one.fields.get("names") or one.fields.get("sentence") or one.fields.get("prompt")
        request = ask(one.fields["task"], words)
        settings = GenerationSettings(max_new_tokens=one.fields["max_new_tokens"])
        found.append(predict(loaded, one.picture, request, settings)[0].of_classes(class_names(request)))
    return found


def kills(world: World) -> None:
    """One of two engines is killed every 5 s, under load."""
    with serving(world.models["first"], port=0, engine_replicas=2, **SETTINGS) as served:
        loading = world.load.start(clients.until, served.url, world.bodies, CLIENTS, world.seconds)
        killed = 0
        while not loading.done():
            time.sleep(KILL_EVERY_S)
            running = replicas(APP_NAME, "Engine")
            if running and not loading.done():
                os.kill(running[killed % len(running)], signal.SIGKILL)
                killed += 1
        replies = loading.result()
    print(f"  {killed} engines killed in {world.seconds:.0f} s")
    world.check("engines were killed", killed >= 2)
    world.judge(replies, ("503 engine_lost", "503 not_ready", "503 overloaded"))


def changes(world: World) -> None:
    """Another model as a canary, then for all, then back, again and again under load: no request fails."""
    from serve import control

    with serving(world.models["first"], port=0, engine_replicas=1, **SETTINGS) as served:
        loading = world.load.start(clients.until, served.url, world.bodies, CLIENTS, world.seconds)
        rounds = 0
        while not loading.done():
            second = source_of(world.models["second"])
            now = control.release_of(control.deployed())
            canary = next_release(now, second, percent=30)
            control.change(canary)
            time.sleep(2)
            promoted = next_release(canary, second)
            control.change(promoted)
            time.sleep(2)
            control.change(release_before(promoted))
            rounds += 1
        replies = loading.result()
    print(f"  {rounds} rounds: {dict(Counter(reply.body['version'] for reply in replies if reply.code == 'ok'))}")
    world.check(
        "both models have answered", {one.body["version"] for one in replies if one.code == "ok"} == set(world.models)
    )
    world.judge(replies)


def scaling(world: World) -> None:
    """Replicas follow the load from 1 to 2 and back to 1: no request fails."""
    follow = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 4, "look_back_period_s": 4.0}
    follow |= {"upscale_delay_s": 2.0, "downscale_delay_s": 4.0}
    with serving(world.models["first"], port=0, engine_replicas=follow, **SETTINGS) as served:
        seen = [len(replicas(APP_NAME, "Engine"))]

        def look() -> None:
            count = len(replicas(APP_NAME, "Engine"))
            if count and count != seen[-1]:
                seen.append(count)
            time.sleep(0.5)

        replies = []
        # Many, then one, who must not notice that a replica goes.
        for count in (CLIENTS, 1):
            loading = world.load.start(clients.until, served.url, world.bodies, count, world.seconds)
            while not loading.done():
                look()
            replies += loading.result()
    print(f"  replicas: {seen}")
    world.check("from 1 to 2 and back to 1", seen == [1, 2, 1])
    world.judge(replies)


CASES: dict[str, Callable[[World], None]] = {case.__name__: case for case in (kills, changes, scaling)}


def two_models(folder: Path) -> dict[str, str]:
    """The toy model, and one of other weights that draws other boxes; by the names that answers give them."""
    models = {name: str(folder / name) for name in ("first", "second")}
    loaded = load_model(TOY_MODEL, device="cpu")
    save_model(loaded, loaded.processor, models["first"])
    with torch.no_grad():
        for weight in loaded.vl_decoder.parameters():
            weight.mul_(1.01)
    save_model(loaded, loaded.processor, models["second"])
    return models


def main() -> int:
    """Print what happened; exit 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving.chaos")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="all where none is named")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, load_process() as load:
        models, asked = two_models(Path(folder)), mixed(QUESTIONS, 50)
        expected = {name: direct(model, asked) for name, model in models.items()}
        world = World(load, models, asked, expected, arguments.seconds)
        for name in arguments.cases or CASES:
            print(f"{name}: {(CASES[name].__doc__ or '').splitlines()[0]}", flush=True)
            CASES[name](world)
            sys.stdout.flush()
    print("all held" if not world.failures else f"did not hold: {'; '.join(world.failures)}")
    return 1 if world.failures else 0


if __name__ == "__main__":
    sys.exit(main())
