"""`padt serve` and `padt reload` as processes of their own: a change from outside, and an end that loses nothing."""

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

pytest.importorskip("ray.serve")

from padt import save_model  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402
from tests.jobs.inference.test_serve import picture  # noqa: E402
from tests.padt.tiny import tiny_model  # noqa: E402

PADT = [sys.executable, "-m", "jobs.cli.main"]
BODY = {"image": base64.b64encode(picture(112, 112, 1)).decode(), "task": "caption"}


def line_with(process: subprocess.Popen, pattern: str) -> re.Match:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError("".join(seen))


@pytest.mark.slow
def test_a_model_is_changed_from_outside_and_the_end_finishes_what_runs(tmp_path: Path) -> None:
    for number in (1, 2):
        model = tiny_model(seed=number)
        save_model(model, model.processor, tmp_path / f"v{number}")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
    environment.pop("RAY_ADDRESS", None)
    server = subprocess.Popen(
        [*PADT, "serve", str(tmp_path / "v1"), "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    answers: list[tuple[int, str, str]] = []
    gone = threading.Event()

    def client(url: str) -> None:
        while not gone.is_set():
            try:
                answer = httpx.post(f"{url}/v1/predict", json=BODY, timeout=180)
            except httpx.TransportError as error:
                answers.append((0, "", repr(error)))
                return
            body = answer.json()
            answers.append((answer.status_code, body.get("version", ""), body.get("error", {}).get("code", "")))
            time.sleep(0.02)

    try:
        url = line_with(server, r"answers at (http://[0-9.:]+)/")[1]
        address = line_with(server, r"--address ([0-9.:]+)")[1]
        clients = [threading.Thread(target=client, args=(url,)) for _ in range(3)]
        for thread in clients:
            thread.start()
        words = [*PADT, "reload", str(tmp_path / "v2"), "--address", address]
        reload = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
        assert reload.returncode == 0 and reload.stdout.strip() == "v2 answers", reload.stderr
        assert httpx.get(f"{url}/v1/models", timeout=120).json()["data"][0]["version"] == "v2"
        deadline = time.monotonic() + 120
        while not any(version == "v2" for _, version, _ in answers):
            assert time.monotonic() < deadline, answers[-5:]
            time.sleep(0.1)
        before = len(answers)
        assert {(status, code) for status, _, code in answers[:before]} == {(200, "")}
        server.send_signal(signal.SIGTERM)
        assert server.wait(240) == 0
        gone.set()
        for thread in clients:
            thread.join()
    finally:
        gone.set()
        if server.poll() is None:
            server.kill()
            server.wait()
    refusals = [answer for answer in answers[before:] if answer[0] != 200]
    assert refusals[0] == (503, "", "stopping")
    # At last the process is gone, and each client notices once.
    told = [answer for answer in refusals if answer[0]]
    assert {(status, code) for status, _, code in told} <= {(503, "stopping"), (503, "not_served")}
    assert len(refusals) - len(told) <= len(clients)
