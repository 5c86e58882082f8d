"""The rules that keep the rooms apart: what may import what, and what `import padt` costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ALLOWED = {
    "padt": {"padt"},
    "pipelines": {"padt", "pipelines"},
    "serve": {"padt", "serve"},
    "jobs": {"padt", "pipelines", "jobs"},
}
# `padt serve` is the one verb whose work lies in the room that jobs does not know.
EXCEPTIONS = {("jobs/inference/serve.py", "serve")}
HEAVY = ("ray", "deepspeed", "mlflow", "torchvision", "flash_attn", "pycocotools")


def imported_rooms(path: Path) -> set[str]:
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            rooms.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            rooms.add(node.module.partition(".")[0])
    return rooms & set(ALLOWED)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_go_down_only(room: str) -> None:
    offences = []
    for path in sorted((REPOSITORY / room).rglob("*.py")):
        name = path.relative_to(REPOSITORY).as_posix()
        extra = imported_rooms(path) - ALLOWED[room]
        offences += [f"{name} imports {other}" for other in sorted(extra) if (name, other) not in EXCEPTIONS]
    assert not offences, "; ".join(offences)


def test_the_model_library_needs_no_cluster_software() -> None:
    """Every module of padt is imported in a fresh process; none of the heavy packages may have come along."""
    modules = [
        path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        for path in sorted((REPOSITORY / "padt").rglob("*.py"))
    ]
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}
    assert not loaded & set(HEAVY)


def test_import_padt_is_light() -> None:
    """`import padt` alone must not even load torch: the command line's help depends on it."""
    code = "import sys, padt; print('torch' in sys.modules or 'transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert run.stdout.strip() == "False"
