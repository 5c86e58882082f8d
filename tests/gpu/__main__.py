"""Measure what only a GPU can show; print a table, and everything as JSON.

    python -m tests.gpu --size 3b --out figures.json
    python -m tests.gpu --size tiny --device cpu --compile eager      # does it run at all?

Needs torch and transformers, no Ray. A check that fails is told, the others go on, and the exit status is 1.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.gpu import inference
from tests.gpu.models import SIZES

CHECKS: dict[str, Callable[[inference.Plan], dict[str, Any]]] = {
    "precisions": inference.precisions,
    "throughput": inference.throughput,
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the checks."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="3b", help="of the model of random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rows", type=int, default=16, help="requests answered at a time")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--width", type=int, default=644)
    parser.add_argument("--height", type=int, default=476)
    parser.add_argument("--scenes", type=int, default=12, help="of the comparison of precisions")
    parser.add_argument("--compile", default="inductor", help="back end of the compiled step; empty = leave it out")
    parser.add_argument("--only", choices=tuple(CHECKS), action="append", help="repeatable; default: all")
    parser.add_argument("--out", type=Path, help="file for the JSON; none = printed after the table")
    arguments = parser.parse_args(words)
    plan = inference.Plan(
        device=torch.device(arguments.device),
        dtype=getattr(torch, arguments.dtype),
        size=arguments.size,
        requests=arguments.requests,
        rows=arguments.rows,
        tokens=arguments.tokens,
        side=(arguments.width, arguments.height),
        scenes=arguments.scenes,
        compile=arguments.compile,
    )
    results: dict[str, Any] = {"about": _about(plan, arguments)}
    failed = False
    for name in arguments.only or CHECKS:
        start = time.perf_counter()
        try:
            results[name] = CHECKS[name](plan)
        except Exception as error:
            # The other figures are worth having, and the machine is lent for minutes.
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
            failed = True
        results[name]["check_s"] = round(time.perf_counter() - start, 1)
        for key, value in _flat(results[name]):
            print(f"{name:12} {key:40} {value}", flush=True)
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()
    text = json.dumps(results, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    else:
        print(text)
    return int(failed)


def _about(plan: inference.Plan, arguments: argparse.Namespace) -> dict[str, Any]:
    cuda = plan.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(plan.device) if cuda else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "arguments": {key: str(value) for key, value in vars(arguments).items()},
    }


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


if __name__ == "__main__":
    sys.exit(main())
