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

from jobs.recipes.submit import EXCLUDES, _token, check_size, environment, submission_name
from padt.errors import UserError
from tests.conftest import REPOSITORY

# As a user's shell is: nothing says whether Ray asks for tokens, and `ray start` does so where it finds one.
# The job's entry point says `python`, which on a cluster is the environment that the head was started in.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")},
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
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with Ray's token."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("a" * 64)
    return folder


@pytest.fixture(scope="module")
def head(home: Path) -> Iterator[str]:
    """Address of a Ray head with two logical CPUs, which asks for the token of its home folder."""
    pytest.importorskip("ray")
    # Ray gives a node 30 seconds to start, which a machine busy with other work may not keep.
    for _ in range(3):
        with head_process(home) as (process, log, address):
            if not has_started(process, log):
                continue
            yield address
            return
    pytest.fail("the Ray head did not start in three tries")


@contextmanager
def head_process(home: Path) -> Iterator[tuple[subprocess.Popen, Path, str]]:
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
        environment = {**ENVIRONMENT, "HOME": str(home)}
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink, start_new_session=True)
    try:
        yield process, log, f"http://127.0.0.1:{ports['dashboard-port']}"
    finally:
        # A head that is asked to end waits half a minute for workers that nobody needs any more.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def has_started(process: subprocess.Popen, log: Path, seconds: float = 180) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if "Ray runtime started" in log.read_text():
            return True
        time.sleep(0.5)
    return False


def submit(address: str, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    options = ("--address", address, "--working-dir", str(folder))
    command = [sys.executable, "-m", "jobs.cli.main", "submit", *options, *words]
    environment = ENVIRONMENT | variables
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_recipe_runs_as_a_job_once(head: str, home: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "code", tmp_path / "run"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY)
    words = (str(folder / "tiny.yaml"), "--output", str(output))

    # Without `http://`, as people write it.
    first = submit(head.removeprefix("http://"), folder, *words, HOME=str(home))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "prepare: done" in first.stdout
    assert set(json.loads((output / "summary.json").read_text())["stages"]) == {"prepare"}
    assert (output / "mlflow.db").exists()

    second = submit(head, folder, *words, HOME=str(home))
    assert second.returncode == 0
    assert "has already succeeded" in second.stderr

    # The job's own exit status comes back, with its message in the log.
    third = submit(head, folder, *words, "prepare.scenes=9", RAY_AUTH_TOKEN="a" * 64)
    assert third.returncode == 2, third.stdout + third.stderr
    assert "'prepare' was done under other options (scenes: 8 -> 9)" in third.stdout


@pytest.mark.slow
def test_a_token_that_is_missing_or_wrong_is_one_sentence(head: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = (str(tmp_path / "tiny.yaml"), "-o", str(tmp_path / "run"))
    empty = {"HOME": str(tmp_path)}
    for variables, message in (
        (empty, "wants a token, and there is none here"),
        (empty | {"RAY_AUTH_MODE": "disabled"}, "wants a token, and there is none here"),
        (empty | {"RAY_AUTH_TOKEN": "b" * 64}, "refuses the token of RAY_AUTH_TOKEN"),
    ):
        run = submit(head, tmp_path, *words, **variables)
        assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
        last = run.stderr.splitlines()[-1]
        assert last.startswith(f"error: The Ray cluster at {head} {message}") and "RAY_AUTH_TOKEN_PATH" in last


def test_the_token_is_looked_for_where_ray_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _token()[0] is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("mine\n")
    assert _token() == ("mine", str(tmp_path / ".ray" / "auth_token"))
    (tmp_path / "other").write_text("named")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert _token() == ("named", str(tmp_path / "other"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert _token() == ("given", "RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert _token()[0] is None
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="nothing, which is not there"):
        _token()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "127.0.0.1:9", "nobody.invalid:8265", "http://"])
def test_no_cluster_is_said_in_one_sentence(address: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = submit(address, tmp_path, str(tmp_path / "tiny.yaml"), "-o", str(tmp_path / "run"))
    assert run.returncode == 2 and "Traceback" not in run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith(f"error: No Ray cluster answers at http://{address.removeprefix('http://')} (")


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
