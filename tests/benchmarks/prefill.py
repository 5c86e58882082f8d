"""Prefill of a prompt with an image, against plain Qwen2.5-VL's with the same weights.

    python -m tests.benchmarks.prefill --hidden 1024 2048

PaDT adds the prototypes (one low-rank map of the image's patches), the look-up of VRTs among the embeddings, and the
products with the prototypes at the last position. The vision tower is small here, so that it does not hide them.
"""

import argparse
import sys
from functools import partial

import torch

from tests.benchmarks.common.measure import interleaved
from tests.benchmarks.common.models import prompt, twin_models

GRID = (17, 23)
WORDS = 40


def main() -> int:
    """Print the ratios; exit 1 above the limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prefill")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--limit", type=float, default=1.10, help="largest ratio")
    arguments = parser.parse_args()
    worst = 0.0
    for hidden in arguments.hidden:
        plain, padt = twin_models(hidden, arguments.layers, arguments.device, getattr(torch, arguments.dtype))
        inputs = prompt(padt.config, GRID, WORDS, arguments.batch)
        inputs = {name: value.to(arguments.device) for name, value in inputs.items()}
        with torch.inference_mode():
            first = partial(plain, **inputs, use_cache=True, logits_to_keep=1)
            ratio = interleaved(first, partial(padt.prefill, **inputs), arguments.rounds, warm_up=1)
        print(f"hidden {hidden}, {arguments.layers} layers, batch {arguments.batch}: plain, PaDT: {ratio}", flush=True)
        worst = max(worst, ratio.judged)
    print(f"worst ratio {worst:.3f}, limit {arguments.limit}")
    return 0 if worst <= arguments.limit else 1


if __name__ == "__main__":
    sys.exit(main())
