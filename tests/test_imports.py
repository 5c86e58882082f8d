"""What `import padt` costs; who may import whom is in the contracts of pyproject.toml."""

import json
import subprocess
import sys

from tests.conftest import REPOSITORY

HEAVY = ("ray", "deepspeed", "mlflow", "torchvision", "flash_attn", "pycocotools")


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
    code = "import sys, padt; padt.Prediction; print('torch' in sys.modules or 'transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert run.stdout.strip() == "False"
