"""Preparation under fire: killed at random moments, again and again, it must end with the very same bytes.

Every round starts afresh, kills the driver (with all that it started) or one of its workers at a random moment of the
run, starts the same command again until it ends, and compares every file with those of an undisturbed run.

    python -m tests.benchmarks.kill_preparation --annotations instances.json --images train2017 --kills 20
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipelines.prepare.worker import __name__ as WORKER
from tests.pipelines.coco_files import content_of

_RUN = """
import sys
from jobs.data.prepare import run_prepare
from pipelines.prepare.run import PrepareOptions
options = PrepareOptions(annotations=sys.argv[1], images=sys.argv[2], out=sys.argv[3], rows_per_shard=int(sys.argv[4]))
run_prepare(options)
"""


def start(annotations: str, images: str, out: Path, rows: int) -> subprocess.Popen:
    """The preparation in a process of its own."""
    command = [sys.executable, "-c", _RUN, annotations, images, str(out), str(rows)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def workers(driver: int) -> list[psutil.Process]:
    """Processes that write a driver's shards: its own, or those of a Ray that it started (``RAY_ADDRESS=local``)."""
    try:
        family = psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [each for each in family if _title(each).startswith("ray::") or WORKER in _title(each)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def kill_all(driver: int) -> None:
    """Kill a driver as a lost machine would: with all that it started."""
    try:
        family = [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        try:
            os.kill(each.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def main() -> None:
    """Print what was killed when, and whether the result is identical; exit with 1 if it ever is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows-per-shard", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    work = Path(tempfile.mkdtemp(prefix="padt-kills-"))
    arguments = (options.annotations, options.images)
    begun = time.monotonic()
    process = start(*arguments, work / "undisturbed", options.rows_per_shard)
    if process.wait():
        raise SystemExit("the undisturbed preparation failed")
    length = time.monotonic() - begun
    wanted = content_of(work / "undisturbed")
    print(f"undisturbed: {length:.1f} s, {len(wanted)} files", flush=True)
    kills = {"driver": 0, "worker": 0}
    different = 0
    while sum(kills.values()) < options.kills:
        out = work / "set"
        shutil.rmtree(out, ignore_errors=True)
        what = rng.choice(("driver", "worker"))
        # Programs take a while to start; from then on every moment is as good as another.
        moment = rng.uniform(0.15, 1.0) * length
        process = start(*arguments, out, options.rows_per_shard)
        time.sleep(moment)
        victims = workers(process.pid)
        if process.poll() is not None or (what == "worker" and not victims):
            kill_all(process.pid)
            process.wait()
            continue
        killed = what
        if what == "worker":
            victim = rng.choice(victims)
            killed = f"worker {_title(victim)}"
            os.kill(victim.pid, signal.SIGKILL)
        else:
            kill_all(process.pid)
        kills[what] += 1
        had_manifest = (out / "manifest.json").exists()
        code = process.wait()
        again = 0
        while code:
            again += 1
            code = start(*arguments, out, options.rows_per_shard).wait()
            if again > 3:
                raise SystemExit("the preparation does not end any more")
        same = content_of(out) == wanted
        different += not same
        verdict = "identical" if same else "DIFFERENT"
        note = ", was already complete" if had_manifest else ""
        print(f"{killed} killed after {moment:.1f} s, started {again} times again{note}: {verdict}", flush=True)
    shutil.rmtree(work)
    print(f"{kills['driver']} drivers and {kills['worker']} workers killed; {different} results differ")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
