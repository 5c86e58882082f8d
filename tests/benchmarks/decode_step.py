"""A decoding step over a vocabulary with the image's patches, against plain Qwen2.5-VL's with the same weights.

    python -m tests.benchmarks.decode_step --hidden 1024 2048

Both read the same tables; PaDT adds the products with the prototypes and the look-up of a VRT. The embedding and the
prototypes are never concatenated. Three figures: one step as the model runs it, the same for a batch, and a whole
``generate`` of some tokens with its processors and bookkeeping.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from tests.benchmarks.common.measure import Ratio, interleaved
from tests.benchmarks.common.models import prompt, twin_models

GRID = (17, 23)
WORDS = 40


def step_of(model, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    """A function that decodes one more token on top of a prompt, always the same one."""
    # Position ids are given, so that both models do the same: plain Qwen2.5-VL keeps its offset on the module.
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    output = model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    length = inputs["input_ids"].shape[1]
    batch = len(inputs["input_ids"])
    following = positions[:, :, -1:] + 1
    mask = torch.ones(batch, length + 1, dtype=torch.long, device=positions.device)
    extra = {}
    if getattr(output, "prototypes", None) is not None:
        extra = {"prototypes": output.prototypes, "prototype_mask": output.prototype_mask}
    token = torch.full((batch, 1), 1000, device=positions.device)

    def step() -> Tensor:
        result = model(
            input_ids=token,
            attention_mask=mask,
            position_ids=following,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        )
        cache.crop(-1)
        return result.logits[:, -1].argmax(-1)

    return step


def generation_of(model, inputs: dict[str, Tensor], tokens: int) -> Callable[[], object]:
    """A function that generates exactly ``tokens`` tokens."""
    return lambda: model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


@torch.inference_mode()
def measure(
    hidden: int, layers: int, rounds: int, device: str, dtype: torch.dtype, generate: bool = True
) -> dict[str, Ratio]:
    """Ratios PaDT / plain at one width."""
    plain, padt = twin_models(hidden, layers, device, dtype)
    found: dict[str, Ratio] = {}
    for batch in (1, 4):
        inputs = {name: value.to(device) for name, value in prompt(padt.config, GRID, WORDS, batch).items()}
        found[f"step, batch {batch}"] = interleaved(step_of(plain, inputs), step_of(padt, inputs), rounds)
        if batch == 1 and generate:
            pair = generation_of(plain, inputs, 16), generation_of(padt, inputs, 16)
            found["generate, 16 tokens"] = interleaved(*pair, rounds=max(4, rounds // 8), warm_up=1)
    return found


def main() -> int:
    """Print the ratios; exit 1 if a step is above the limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decode_step")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps-only", action="store_true", help="leave out whole generations")
    parser.add_argument("--limit", type=float, default=1.05, help="largest ratio of one step at batch 1")
    arguments = parser.parse_args()
    worst = 0.0
    for hidden in arguments.hidden:
        dtype = getattr(torch, arguments.dtype)
        steps_only = arguments.steps_only
        found = measure(hidden, arguments.layers, arguments.rounds, arguments.device, dtype, not steps_only)
        for name, ratio in found.items():
            print(f"hidden {hidden}, {arguments.layers} layers, {name:20s} plain, PaDT: {ratio}", flush=True)
        worst = max(worst, found["step, batch 1"].judged)
    print(f"worst step ratio {worst:.3f}, limit {arguments.limit}")
    return 0 if worst <= arguments.limit else 1


if __name__ == "__main__":
    sys.exit(main())
