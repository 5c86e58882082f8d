"""A recipe as a Ray Job on a cluster of its own, started on this machine: the log arrives, the exit status counts."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.recipes.submit import EXCLUDES, check_size, environment, submission_name
from padt.errors import UserError
from tests.conftest import REPOSITORY

# A local Ray turns token authentication on for itself; both sides of this one must agree that there is none.
# The job's entry point says `python`, which on a cluster is the environment that the head was started in.
ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
}
TINY = "name: tiny\nstages:\n  prepare: {do: prepare-toy, scenes: 8, heldout: 4}\n"


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Address of a Ray head with two logical CPUs."""
    pytest.importorskip("ray")
    # Ray gives a node 30 seconds to start, which a machine busy with other work may not keep.
    for _ in range(3):
        with head_process() as (process, log, address):
            if not has_started(process, log):
                continue
            yield address
            return
    pytest.fail("the Ray head did not start in three tries")


@contextmanager
def head_process() -> Iterator[tuple[subprocess.Popen, Path, str]]:
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    # Short: sockets live below it, and their paths must stay under 108 letters.
    folder = tempfile.mkdtemp(prefix="ray-")
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"),
        *(f"--{name}={port}" for name, port in ports.items()),
        *("--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}", "--object-store-memory=100000000"),
    ]
    log = Path(folder, "head.log")
    with log.open("w") as sink:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=sink, stderr=sink)
    try:
        yield process, log, f"http://127.0.0.1:{ports['dashboard-port']}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def has_started(process: subprocess.Popen, log: Path, seconds: float = 180) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if "Ray runtime started" in log.read_text():
            return True
        time.sleep(0.5)
    return False


def submit(address: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "jobs.cli.main",
        "submit",
        "--address",
        address,
        "--working-dir",
        str(folder),
        *words,
    ]
    return subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_recipe_runs_as_a_job_once(head: str, tmp_path: Path) -> None:
    folder, output = tmp_path / "code", tmp_path / "run"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY)
    words = (str(folder / "tiny.yaml"), "--output", str(output))

    first = submit(head, folder, *words)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "prepare: done" in first.stdout
    assert set(json.loads((output / "summary.json").read_text())["stages"]) == {"prepare"}
    assert (output / "mlflow.db").exists()

    second = submit(head, folder, *words)
    assert second.returncode == 0
    assert "has already succeeded" in second.stderr

    # The job's own exit status comes back, with its message in the log.
    third = submit(head, folder, *words, "prepare.scenes=9")
    assert third.returncode == 2, third.stdout + third.stderr
    assert "'prepare' was done under other options (scenes: 8 -> 9)" in third.stdout


def test_no_cluster_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = submit("http://127.0.0.1:9", tmp_path, str(tmp_path / "tiny.yaml"), "-o", str(tmp_path / "run"))
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("error: No Ray cluster answers at http://127.0.0.1:9")


def test_what_is_sent_is_bounded_and_leaves_data_out(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "cli.py").write_bytes(b"x" * 1000)
    for name in ("runs", ".git", ".venv"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "large.bin").write_bytes(b"x" * 3_000_000)
    assert check_size(tmp_path, limit_mb=1) == pytest.approx(0.001)
    (tmp_path / "weights.bin").write_bytes(b"x" * 3_000_000)
    with pytest.raises(UserError, match=r"3 MB, more than the 1 MB .* weights.bin \(3 MB\)"):
        check_size(tmp_path, limit_mb=1)


def test_this_repository_is_small_enough_to_be_sent() -> None:
    assert check_size(REPOSITORY) < 30
    assert ".git" in EXCLUDES


def test_the_id_is_the_same_for_the_same_submission() -> None:
    words = ["run", "toy", "--output", "/x"]
    assert submission_name("toy", words) == submission_name("toy", list(words))
    assert submission_name("toy", words) != submission_name("toy", [*words, "finetune.steps=1"])


def test_a_remote_output_needs_a_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert environment("/data/run")["MLFLOW_TRACKING_URI"] == "sqlite:////data/run/mlflow.db"
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        environment("s3://bucket/run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert environment("s3://bucket/run")["MLFLOW_TRACKING_URI"] == "http://tracking:5000"
