"""Who writes the shards: Ray's workers where there is a cluster, processes of this machine where there is none.

A Ray of one machine takes five seconds of processor time to start and to end, as much as 1,500 photographs do, and
gives nothing that processes do not; those take a third of a second each. Either calls the same function for each shard,
and its bytes do not depend on who does.
"""

import json
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from padt.errors import UserError
from pipelines.prepare import worker
from pipelines.prepare.shards import ShardResult, ShardTask

log = logging.getLogger(__name__)

Execute = Callable[[Sequence[ShardTask]], Iterable[ShardResult]]

TRIES = 4
"""Workers that may end over one shard (killed, or out of memory) before it is given up."""
_MOST_IN_FLIGHT = 1000


def on_cluster() -> bool:
    """Whether shards are Ray's to write: ``RAY_ADDRESS`` names a cluster, or this program has connected to one."""
    return bool(os.environ.get("RAY_ADDRESS")) or ("ray" in sys.modules and sys.modules["ray"].is_initialized())


def execute_tasks(tasks: Sequence[ShardTask], num_cpus: int | None = None) -> Iterator[ShardResult]:
    """Run the tasks where they run best, and yield results as they come.

    Args:
        tasks: shards to write.
        num_cpus: most shards at work at once; as many as there are cores if not given.

    Raises:
        UserError: an image or group file could not be read, or the result could not be written.
    """
    yield from execute_on_ray(tasks, num_cpus) if on_cluster() else execute_in_processes(tasks, num_cpus)


def execute_here(tasks: Sequence[ShardTask]) -> Iterator[ShardResult]:
    """Run the tasks one after the other in this process; errors are those of ``execute_tasks``."""
    for task in tasks:
        yield _result(worker.attempt(task))


def execute_in_processes(tasks: Sequence[ShardTask], num_cpus: int | None = None) -> Iterator[ShardResult]:
    """Run the tasks in processes of this machine; in this one where there is work or room for no other.

    A process that dies is replaced and its shard begun again. Arguments and errors are those of ``execute_tasks``.
    """
    count = min(len(tasks), num_cpus or usable_cores())
    if count <= 1:
        yield from execute_here(tasks)
        return
    workers = [_Worker() for _ in range(count)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for each in workers:
        idle.put(each)

    def write(task: ShardTask) -> dict[str, str]:
        one = idle.get()
        try:
            return one.write(task)
        finally:
            idle.put(one)

    pool = ThreadPoolExecutor(count)
    try:
        for future in as_completed([pool.submit(write, task) for task in tasks]):
            yield _result(future.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for each in workers:
            each.end()
        pool.shutdown()


def execute_on_ray(tasks: Sequence[ShardTask], num_cpus: int | None = None) -> Iterator[ShardResult]:
    """Run each task as a task of Ray. Arguments and errors are those of ``execute_tasks``.

    Connects to the cluster of ``RAY_ADDRESS``, or starts Ray on this machine, where the program has not done so.
    """
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
    # Once for all: what is left out may be a list of a million images.
    held = ray.put(list(tasks))
    write = ray.remote(_write_one).options(num_cpus=1, max_retries=TRIES - 1)
    left = list(reversed(range(len(tasks))))
    under_way: dict[ray.ObjectRef, int] = {}
    try:
        while left or under_way:
            while left and len(under_way) < (num_cpus or _MOST_IN_FLIGHT):
                place = left.pop()
                under_way[write.remote(held, place)] = place
            done, _ = ray.wait(list(under_way))
            for each in done:
                place = under_way.pop(each)
                try:
                    answer = ray.get(each)
                except ray.exceptions.RayTaskError:
                    raise
                except ray.exceptions.RayError as error:
                    raise _given_up(tasks[place], str(error).strip().partition("\n")[0]) from error
                yield _result(answer)
    finally:
        for each in under_way:
            ray.cancel(each, force=True)


def _write_one(tasks: Sequence[ShardTask], place: int) -> dict[str, str]:
    return worker.attempt(tasks[place])


def usable_cores() -> int:
    """Cores that this process may use: those of the machine, less what its affinity and its container leave out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us"):
        limit = Path("/sys/fs/cgroup", name)
        try:
            quota, *period = limit.read_text().split()
            period = period or [limit.with_name("cpu.cfs_period_us").read_text()]
            if int(quota) > 0:
                cores = min(cores, max(1, -(-int(quota) // int(period[0]))))
        except (OSError, ValueError):
            # Another version of control groups, or no limit ("max").
            continue
    return cores


def _result(answer: dict[str, str]) -> ShardResult:
    if "crash" in answer:
        raise RuntimeError(f"A worker failed:\n{answer['crash']}")
    if "error" in answer:
        raise UserError(answer["error"])
    return ShardResult.from_json(answer["result"])


def _given_up(task: ShardTask, why: str) -> UserError:
    return UserError(
        f"{task.path} was given up ({why}): see that there is memory enough, or give a smaller --num-cpus or "
        "--shard-mb, and run the command again; what is complete stays."
    )


class _Worker:
    """A process (``pipelines.prepare.worker``) that writes one shard at a time; it starts with its first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._lock = threading.Lock()

    def write(self, task: ShardTask) -> dict[str, str]:
        """The worker's answer.

        Raises:
            UserError: the process died over this shard again and again.
        """
        status = 0
        for _ in range(TRIES):
            process = self._running()
            if process is None:
                break
            if line := _asked(process, task):
                return json.loads(line)
            status = process.wait()
            log.info("a worker died (status %d) over %s: another one takes it", status, task.path)
        raise _given_up(task, f"{TRIES} processes died over it, the last with status {status}")

    def _running(self) -> "subprocess.Popen[bytes] | None":
        with self._lock:
            if not self._ended and (self._process is None or self._process.poll() is not None):
                self._process = _start()
            return None if self._ended else self._process

    def end(self) -> None:
        """End the process, whatever it is at."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()


def _start() -> "subprocess.Popen[bytes]":
    # There are as many processes as cores: none needs threads of its own.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", worker.__name__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _asked(process: "subprocess.Popen[bytes]", task: ShardTask) -> bytes:
    """The line that a worker answers with; empty where it dies over the task."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(pickle.dumps(task))
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    line = process.stdout.readline()
    return line if line.endswith(b"\n") else b""
