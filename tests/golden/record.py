"""The golden record: every number that the first steps of the toy stages log, by which a refactoring is judged.

``losses.json`` beside this file holds them. A change of the code that changes a number on purpose writes the file anew
(about a minute on two quiet cores) and says so in its commit::

    python -m tests.golden.record
"""

import json
import logging
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.common.ray_session import ray_session
from jobs.data.prepare import run_prepare_toy

# All that is imported of the project: modules move, and then only these lines change.
from jobs.training.config import load_config
from jobs.training.train import run_train

RECORD = Path(__file__).with_name("losses.json")
REPOSITORY = Path(__file__).resolve().parents[2]
BASE_MODEL = REPOSITORY / "pipelines" / "toy" / "base"
# Each stage starts from the model that the stage before it left; these are names of packaged configurations.
STAGES = {"pretrain": "toy_pretrain", "finetune": "toy_finetune"}
WORKERS = (1, 2)
STEPS = 8
# A set that is seen several times in these steps: the record covers the ends of epochs as well.
SCENES = 20
SCENES_SEED = 11
# Everything else is as the configurations have it.
OVERRIDES = (
    f"steps={STEPS}",
    # In place of 16, which would take three times as long and see no more of the code.
    "batch_size=4",
    "log_every=1",
    "tracking.enabled=false",
    # A thread of the worker makes the same batches as Ray Data does, and starts at once.
    "reader.ray=false",
    # A failure must be seen; a second attempt would hide it.
    "max_failures=0",
)
# What computes the numbers: pictures are drawn with NumPy and decoded by Pillow.
PACKAGES = ("torch", "transformers", "deepspeed", "numpy", "pillow")

Row = dict[str, float]
Runs = dict[str, list[Row]]


def make_record(folder: Path) -> dict[str, Any]:
    """Prepare the toy set in ``folder``, train all stages with each number of workers, and return the record.

    Returns:
        ``machine``, see ``describe_machine``, and ``runs``: for each stage and number of workers the rows of its steps,
        as JSON values, which keep every bit of a float.
    """
    run_prepare_toy(str(folder / "data"), scenes=SCENES, heldout=1, seed=SCENES_SEED)
    runs: Runs = {}
    for workers in WORKERS:
        model = str(BASE_MODEL)
        for stage, configuration in STAGES.items():
            output = folder / f"{stage}-{workers}"
            changes = (
                f"model={model}",
                f"output={output}",
                f"data.sets.0.url={folder / 'data' / 'train'}",
                f"workers={workers}",
                f"launcher={'ray' if workers > 1 else 'local'}",
            )
            result = run_train(load_config(configuration, (*OVERRIDES, *changes)))
            runs[f"{stage}, {workers} worker{'s' if workers > 1 else ''}"] = _logged(output)
            model = result.model_path
    return {"machine": describe_machine(), "runs": runs}


def describe_machine() -> dict[str, str]:
    """What decides the last bits of a sum: versions of the libraries, and the processor they choose their code by."""
    import torch

    found = {package: version(package) for package in PACKAGES}
    return found | {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        # Not every processor has these lines, nor every system the file.
        "cpu_vendor": _cpu_line("vendor_id") or platform.processor() or platform.machine(),
        "cpu_model": " ".join(_cpu_line(name) for name in ("model name", "cpu family", "model")).strip(),
    }


def read_record() -> dict[str, Any]:
    """The committed record."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def write_record(record: dict[str, Any], path: Path = RECORD) -> None:
    """Write a record with one line a step, so that a diff shows from which step on numbers have changed."""
    lines = [f'{{"machine": {json.dumps(record["machine"])},', '"runs": {']
    for number, (name, rows) in enumerate(record["runs"].items(), start=1):
        lines.append(f" {json.dumps(name)}: [")
        lines += [f"  {json.dumps(row)}," for row in rows[:-1]] + [f"  {json.dumps(row)}" for row in rows[-1:]]
        lines.append(" ]," if number < len(record["runs"]) else " ]")
    lines.append("}}\n")
    path.write_text("\n".join(lines), encoding="utf-8")


def _logged(output: Path) -> list[Row]:
    """Step and ``train/*`` of a run: no two runs share ``perf/*``, and ``data/*`` says nothing of the weights."""
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {
            name.removeprefix("train/"): value
            for name, value in json.loads(line).items()
            if name.startswith("train/") or name == "step"
        }
        for line in lines
    ]


def _cpu_line(name: str) -> str:
    """What Linux says of the first processor under a name, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = [line.partition(":")[::2] for line in lines]
    return next((value.strip() for key, value in pairs if key.strip() == name), "")


def main() -> None:
    """Write ``losses.json`` anew."""
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, ray_session():
        write_record(make_record(Path(folder)))
    print(f"wrote {RECORD}")


if __name__ == "__main__":
    main()
