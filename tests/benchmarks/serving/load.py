"""The endpoint under load: throughput, latency, fairness, shared pictures, overload.

    python -m tests.benchmarks.serving.load                      all cases, about six minutes
    python -m tests.benchmarks.serving.load throughput latency   some of them

On the CPU with the shipped toy model and drawn scenes. The load comes from a second process. What a case compares runs
in turn within one run; where the machine has other work, the processor time of the engine's process is the judge, and
latencies and times of the clock are told beside it.
"""

import argparse
import logging
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jobs.inference.serve import serving
from tests.benchmarks.serving import clients
from tests.benchmarks.serving.clients import LoadProcess, Reply, load_process
from tests.benchmarks.serving.processes import cpu_seconds, memory_mb, replicas
from tests.benchmarks.serving.questions import LONG, TOY_MODEL, Asked, drawn, mixed

APP_NAME, OLD_APP = "padt", "batches"
ROWS, QUEUED = 16, 16


@dataclass
class World:
    """The endpoint, the load, and what was found: lines that say whether a limit was kept."""

    url: str
    load: LoadProcess
    rounds: int
    seconds: float
    failures: list[str] = field(default_factory=list)
    seed: int = 100

    def questions(self, count: int, **options: int) -> list[Asked]:
        """Questions about pictures that nobody has asked about before."""
        self.seed += 1
        return mixed(count, self.seed, **options)

    def check(self, what: str, value: float, limit: float, at_least: bool = False) -> None:
        """Print a figure beside its limit, and keep it where it is beyond."""
        kept = value >= limit if at_least else value <= limit
        print(f"  {what}: {value:.2f}, {'at least' if at_least else 'at most'} {limit:g}{'' if kept else '  MISSED'}")
        if not kept:
            self.failures.append(what)


def all_well(replies: list[Reply]) -> list[Reply]:
    """The same replies, if every one of them is an answer."""
    codes = Counter(reply.code for reply in replies)
    if set(codes) != {"ok"}:
        raise RuntimeError(f"not every request was answered: {dict(codes)}")
    return replies


def timed(world: World, application: str, url: str, asked: list[Asked], count: int) -> tuple[float, float]:
    """Seconds of the clock, and of the engine's processor, for one request of a number of clients."""
    (pid,) = replicas(application, "Engine" if application == APP_NAME else "BatchEngine")
    before = cpu_seconds(pid)
    replies = all_well(world.load.run(clients.closed, url, [one.body for one in asked], count))
    processor = cpu_seconds(pid) - before
    clock = max(one.start + one.seconds for one in replies) - min(one.start for one in replies)
    return clock / len(asked), processor / len(asked)


@contextmanager
def old_serving(world: World) -> Iterator[str]:
    """The serving by batches, beside the other, behind an ingress of the same kind."""
    from ray import serve

    from serve.ingress.deployment import Ingress
    from serve.settings import ServerArgs
    from tests.benchmarks.serving.batches import BatchEngine

    engine = BatchEngine.options(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})  # type: ignore[attr-defined]
    ingress = Ingress.options(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})  # type: ignore[attr-defined]
    serve.run(ingress.bind(engine.bind(TOY_MODEL), ServerArgs()), name=OLD_APP, route_prefix=f"/{OLD_APP}")
    try:
        yield f"{world.url}/{OLD_APP}"
    finally:
        serve.delete(OLD_APP)


def throughput(world: World) -> None:
    """16 clients with mixed tasks, against one client, and against serving by batches."""
    found: dict[str, list[tuple[float, float]]] = {"16 clients": [], "1 client": [], "16 clients, by batches": []}
    with old_serving(world) as old:
        for number in range(world.rounds + 1):
            results = {
                "16 clients": timed(world, APP_NAME, world.url, world.questions(64), 16),
                "1 client": timed(world, APP_NAME, world.url, world.questions(24), 1),
                "16 clients, by batches": timed(world, OLD_APP, old, world.questions(64), 16),
            }
            for name, times in results.items() if number else ():
                found[name].append(times)
    medians = {name: [statistics.median(each) for each in zip(*times, strict=True)] for name, times in found.items()}
    for name, (clock, processor) in medians.items():
        print(f"  {name}: {1 / clock:.1f} requests/s, {processor * 1e3:.1f} ms of the engine's processor each")
    (_, ours), (_, alone), (_, batches) = medians.values()
    world.check("throughput over one at a time", alone / ours, 3.0, at_least=True)
    world.check("throughput over serving by batches", batches / ours, 2.0, at_least=True)


def latency(world: World) -> None:
    """One client, against ``predict`` in the client's process."""
    found = []
    for _ in range(world.rounds):
        asked = world.questions(16)
        bodies, pictures = [one.body for one in asked], [one.picture for one in asked]
        found.append(world.load.run(clients.alternately, world.url, TOY_MODEL, bodies, pictures, len(asked)))
    served, direct = (statistics.median(each) * 1e3 for each in zip(*found, strict=True))
    print(f"  p50 of one client {served:.1f} ms, of predict {direct:.1f} ms")
    world.check("beyond 1.1 times predict, ms", served - 1.1 * direct, 10.0)


def fairness(world: World) -> None:
    """A short question while eight clients have long answers written, against the same kind of question alone."""
    alone, beside, longest = [], [], []
    talk = {"task": "chat", "prompt": LONG, "max_new_tokens": 512}
    for number in range(world.rounds + 1):
        for found, count in ((alone, 0), (beside, 8)):
            world.seed += 1
            asked = [drawn(world.seed, each) for each in range(8)]
            others = [Asked(drawn(world.seed, 8 + each)[0], talk).body for each in range(count)]
            questions = [
                Asked(picture, {"task": "refer", "sentence": sentence, "max_new_tokens": 12}).body
                for picture, sentence in asked
            ]
            replies, busy = world.load.run(clients.beside, world.url, questions, others)
            all_well([*replies, *busy])
            found += [reply.seconds for reply in replies] if number else []
            longest += [reply.seconds for reply in busy]
    before, after = statistics.median(alone), statistics.median(beside)
    most = statistics.median(longest)
    print(f"  alone {before * 1e3:.0f} ms, beside long ones {after * 1e3:.0f} ms, which take {most * 1e3:.0f} ms each")
    world.check("time beside long answers over time alone", after / before, 2.0)


def pictures(world: World) -> None:
    """Ten questions about one picture, against ten pictures with a question each."""
    found: list[tuple[float, float]] = []
    for number in range(world.rounds + 1):
        scenes = [drawn(20 + number, each, 644) for each in range(11)]
        # Only the object's tokens: the toy model knows no pictures of this size, and would ramble on.
        about = [{"task": "refer", "sentence": sentence, "max_new_tokens": 16} for _, sentence in scenes]
        many = [Asked(scenes[each][0], about[each]) for each in range(10)]
        one = [Asked(scenes[10][0], about[each]) for each in range(10)]
        times = [timed(world, APP_NAME, world.url, asked, 1) for asked in (many, one)]
        found += [(times[1][0] / times[0][0], times[1][1] / times[0][1])] if number else []
    clock, processor = (statistics.median(each) for each in zip(*found, strict=True))
    print(f"  ten questions about one picture over ten pictures: {clock:.2f} by the clock")
    world.check("the same in the engine's processor time", processor, 0.5)


def overload(world: World) -> None:
    """Three times what can be answered: what is accepted has a bounded time, the rest is refused at once."""
    bodies = [one.body for one in world.questions(64)]
    replies = all_well(world.load.run(clients.until, world.url, bodies, ROWS, 10.0))
    capacity = len(replies) / 10.0
    pids = {name: replicas(APP_NAME, name)[0] for name in ("Engine", "Ingress")}
    before = {name: memory_mb(pid) for name, pid in pids.items()}
    replies = world.load.run(clients.arriving, world.url, bodies, 3 * capacity, world.seconds)
    codes = Counter(reply.code for reply in replies)
    answered = sorted(reply.seconds for reply in replies if reply.code == "ok")
    refused = sorted(reply.seconds for reply in replies if reply.status in (429, 503))
    print(
        f"  {capacity:.1f} requests/s can be answered; {3 * capacity:.1f} came for {world.seconds:.0f} s: {dict(codes)}"
    )
    print(f"  answered: {quantiles(answered)}; refused: {quantiles(refused)}")
    other = [code for code in codes if code != "ok" and code.split()[0] not in ("429", "503")]
    world.check(f"replies that are neither answer nor refusal {other}", sum(codes[code] for code in other), 0)
    # Whoever gets a place waits for those before him; the queue holds so many.
    bound = 2 * (ROWS + QUEUED) / capacity
    world.check("p99 of what is answered, s (bound: twice the places over the rate)", at(answered, 0.99), bound)
    world.check("p50 of a refusal over p50 of an answer", at(refused, 0.5) / at(answered, 0.5), 0.1)
    for name, pid in pids.items():
        # What Python's and torch's allocators keep of the first minutes is no leak.
        world.check(f"memory of the {name} after / before", memory_mb(pid) / before[name], 1.15)


def at(values: list[float], share: float) -> float:
    """The value below which a share of sorted values lies."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def quantiles(values: list[float]) -> str:
    """Number, p50, p99 and the longest of sorted times."""
    return f"{len(values)}, p50 {at(values, 0.5):.3f} s, p99 {at(values, 0.99):.3f} s, longest {at(values, 1):.3f} s"


CASES: dict[str, Callable[[World], None]] = {
    case.__name__: case for case in (throughput, latency, fairness, pictures, overload)
}


def main() -> int:
    """Print the figures of the cases; exit 1 if a limit was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving.load")
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="all where none is named")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    settings = {
        "max_rows": ROWS,
        "max_queued_requests": QUEUED,
        "max_new_tokens": 512,
        "max_length": 2048,
        "max_patches": 1024,
    }
    with load_process() as load, serving(TOY_MODEL, port=0, device="cpu", **settings) as served:
        world = World(served.url, load, arguments.rounds, arguments.seconds)
        for name in arguments.cases or CASES:
            start = time.monotonic()
            print(f"{name}: {(CASES[name].__doc__ or '').splitlines()[0]}", flush=True)
            CASES[name](world)
            print(f"  ({time.monotonic() - start:.0f} s)", flush=True)
    print("all limits kept" if not world.failures else f"missed: {'; '.join(world.failures)}")
    return 1 if world.failures else 0


if __name__ == "__main__":
    sys.exit(main())
