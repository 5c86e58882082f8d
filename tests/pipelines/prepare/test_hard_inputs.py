"""Inputs in the shapes that tools really write, with the right values beside them: all come out as expected."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, shared_path

# Nothing is left of these, which is an error unless it is asked for; their expectation is about the rest.
_EMPTY = ("s22_polygon_scaled_image",)


def _copied(cases: Path, to: Path) -> Path:
    """A copy of the cases in which links are links: some ways of copying leave the place that they point to as text."""
    for path in sorted(cases.rglob("*")):
        target = to / path.relative_to(cases)
        if path.is_dir():
            target.mkdir(parents=True)
            continue
        content = path.read_bytes()
        if path.is_symlink() or (len(content) < 100 and _points(path, content)):
            target.symlink_to(os.readlink(path) if path.is_symlink() else content.decode())
        else:
            target.write_bytes(content)
    for name in _EMPTY:
        expected = to / name / "expected.json"
        content = json.loads(expected.read_text())
        content["argv"].append("--allow-empty")
        expected.write_text(json.dumps(content))
    return to


def _points(path: Path, content: bytes) -> bool:
    return bool(re.fullmatch(rb"[\w./-]+", content)) and (path.parent / content.decode()).exists()


@pytest.mark.slow
def test_hard_inputs_come_out_as_expected(tmp_path):
    runner = shared_path("cases/data") / "run_cases.py"
    cases = _copied(runner.parent / "cases", tmp_path / "cases")
    done = subprocess.run(
        [sys.executable, str(runner), "--cases", str(cases)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    differing = re.findall(r"^FAIL .*(?:\n +.*)*", done.stdout, re.MULTILINE)
    assert not differing, "\n".join(differing)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    counted = re.search(r"^(\d+) cases, 0 differ", done.stdout, re.MULTILINE)
    assert counted is not None and int(counted[1]) == len(list(cases.glob("*/expected.json")))
