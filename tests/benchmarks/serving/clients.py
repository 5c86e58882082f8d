"""Load on an endpoint, made in a process of its own: what it costs is not counted as the server's.

Everything here is called through ``load_process``: arguments and results are plain values.
"""

import http.client
import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar
from urllib.parse import urlsplit

Result = TypeVar("Result")


@dataclass(frozen=True)
class Reply:
    """What came of one request.

    Attributes:
        number: of its body.
        status: HTTP status; 0 = the connection broke.
        start, seconds: when it was sent (``time.monotonic``), and how long it took.
        body: the answer, read as JSON; None where it is none.
    """

    number: int
    status: int
    start: float
    seconds: float
    body: Any

    @property
    def code(self) -> str:
        """``ok``, the code of the error, or what is wrong with an answer that has none."""
        if self.status == 200 and isinstance(self.body, dict):
            return "ok"
        try:
            return f"{self.status} {self.body['error']['code']}"
        except (TypeError, KeyError):
            return f"{self.status} without the error shape: {str(self.body)[:200]}"


class Client:
    """One connection that is kept."""

    def __init__(self, url: str, timeout_s: float = 150.0) -> None:
        """Connect at the first request; ``url`` may have a path, before ``/v1/predict``."""
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
        self._path = f"{parts.path.rstrip('/')}/v1/predict"

    def ask(self, number: int, body: bytes) -> Reply:
        """Send one request and wait for its answer."""
        start = time.monotonic()
        try:
            self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            status, content = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Reply(number, 0, start, time.monotonic() - start, repr(error))
        seconds = time.monotonic() - start
        try:
            return Reply(number, status, start, seconds, json.loads(content))
        except ValueError:
            return Reply(number, status, start, seconds, content[:500].decode(errors="replace"))


def closed(url: str, bodies: Sequence[bytes], clients: int) -> list[Reply]:
    """All bodies, each once, by so many clients, of which each asks again when it has its answer."""
    numbers = iter(range(len(bodies)))
    return _clients(url, clients, lambda: next(numbers, None), bodies)


def until(url: str, bodies: Sequence[bytes], clients: int, seconds: float) -> list[Reply]:
    """The bodies over and over, by so many clients, for a time."""
    numbers, end = itertools.cycle(range(len(bodies))), time.monotonic() + seconds
    return _clients(url, clients, lambda: next(numbers) if time.monotonic() < end else None, bodies)


def arriving(url: str, bodies: Sequence[bytes], rate: float, seconds: float, most: int = 256) -> list[Reply]:
    """The bodies over and over, so many a second whatever becomes of them, for a time; ``most`` wait at once."""
    local = threading.local()
    begin = time.monotonic()

    def ask(number: int) -> Reply:
        if not hasattr(local, "client"):
            local.client = Client(url)
        return local.client.ask(number, bodies[number])

    with ThreadPoolExecutor(most) as pool:
        waiting = []
        for count in range(int(rate * seconds)):
            time.sleep(max(0.0, begin + count / rate - time.monotonic()))
            waiting.append(pool.submit(ask, count % len(bodies)))
        return [each.result() for each in waiting]


def beside(url: str, questions: Sequence[bytes], others: Sequence[bytes]) -> tuple[list[Reply], list[Reply]]:
    """Questions one after the other, while a client for each of the others asks it over and over; all answers."""
    done = threading.Event()

    def keep_asking(number: int) -> list[Reply]:
        client, replies = Client(url), []
        while not done.is_set():
            replies.append(client.ask(number, others[number]))
        return replies

    with ThreadPoolExecutor(max(1, len(others))) as pool:
        waiting = [pool.submit(keep_asking, number) for number in range(len(others))]
        try:
            time.sleep(1.0 if others else 0.0)
            client = Client(url)
            answers = [client.ask(number, body) for number, body in enumerate(questions)]
        finally:
            done.set()
        return answers, [reply for each in waiting for reply in each.result()]


def alternately(url: str, model: str, bodies: Sequence[bytes], pictures: Sequence[bytes], rounds: int) -> list[float]:
    """Medians in seconds of one client's requests and of ``predict`` in this process, about the same pictures."""
    import torch

    from padt.checkpoints.loading import load_model
    from padt.inference.predict import GenerationSettings, predict
    from padt.inference.requests import ask

    torch.set_num_threads(1)
    loaded, client = load_model(model, device="cpu"), Client(url)
    times: tuple[list[float], list[float]] = ([], [])
    for count in range(-2, rounds):
        number = count % len(bodies)
        question = json.loads(bodies[number])
        request = ask(question["task"], question.get("names") or question.get("sentence") or question.get("prompt"))
        settings = GenerationSettings(max_new_tokens=question["max_new_tokens"])
        reply = client.ask(number, bodies[number])
        if reply.code != "ok":
            raise RuntimeError(reply.code)
        start = time.perf_counter()
        predict(loaded, pictures[number], request, settings)
        # The first ones warm up.
        if count >= 0:
            times[0].append(reply.seconds)
            times[1].append(time.perf_counter() - start)
    return [statistics.median(each) for each in times]


def _clients(url: str, clients: int, draw: Callable[[], int | None], bodies: Sequence[bytes]) -> list[Reply]:
    lock = threading.Lock()

    def ask_on(_: int) -> list[Reply]:
        client, replies = Client(url), []
        while True:
            with lock:
                number = draw()
            if number is None:
                return replies
            replies.append(client.ask(number, bodies[number]))

    with ThreadPoolExecutor(clients) as pool:
        return [reply for replies in pool.map(ask_on, range(clients)) for reply in replies]


class LoadProcess:
    """Runs functions of this module in another process."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def start(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Begin one, so that something else can be done meanwhile."""
        return self._pool.submit(function, *arguments)

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Wait for one."""
        return self.start(function, *arguments).result()


@contextmanager
def load_process() -> Iterator[LoadProcess]:
    """A process for load, for the length of a block."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield LoadProcess(pool)
