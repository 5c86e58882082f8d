"""The GPU's script runs at toy size on a CPU, on the packages that a lent machine has."""

import json
import subprocess
import sys

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.gpu.__main__ import CHECKS, main
from tests.gpu.models import large_model
from tests.padt.model.test_full_size import PARAMETERS

SMALL = ["--size=tiny", "--device=cpu", "--requests=5", "--rows=4", "--tokens=12", "--width=120", "--height=90"]
SMALL += ["--scenes=1"]
ABSENT = (
    "ray",
    "pyarrow",
    "pydantic",
    "mlflow",
    "pycocotools",
    "faster_coco_eval",
    "deepspeed",
    "pytest",
    "torchvision",
)


def test_it_measures_everything_on_torch_and_transformers_alone(tmp_path):
    out = tmp_path / "figures.json"
    words = [*SMALL, "--dtype", "float32", "--compile", "eager", "--out", str(out)]
    code = f"""
import sys
# Importing any of them raises ImportError.
sys.modules.update(dict.fromkeys({ABSENT!r}))
from tests.gpu.__main__ import main
sys.exit(main({words!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert set(figures) == {"about", *CHECKS}
    assert figures["precisions"]["float16"]["not_finite"] == figures["precisions"]["bfloat16"]["not_finite"] == 0
    assert figures["precisions"]["float16"]["same_text"] == figures["precisions"]["float16"]["answers"] > 0
    found = figures["throughput"]
    for name in ("engine", "engine_compiled"):
        assert found[name]["same_as_predict"] == 5 and found[name]["same_first_tokens"] == 12
        assert found[name]["objects"] > 0 == found[name]["not_finite"]
        assert found[name]["full_step_ms"] > 0 and found[name]["seconds"] > 0
    for line in ("precisions   float16.box_px", "throughput   engine_compiled.tokens_per_s"):
        assert line in done.stdout


def test_a_check_that_fails_leaves_the_others(tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main([*SMALL, "--dtype", "float32", "--compile", "no such back end", "--out", str(out)]) == 1
    figures = json.loads(out.read_text())
    assert "leave compile out" in figures["throughput"]["error"] and figures["precisions"]["float16"]["answers"]


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_large_models_have_the_published_sizes(size):
    model = large_model(size, torch.device("meta"), torch.bfloat16)
    ours = ("vis_norm.", "vis_proj.", "vl_decoder.")
    counted = sum(value.numel() for name, value in model.named_parameters() if not name.startswith(ours))
    assert counted == PARAMETERS[size.upper()]
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
