"""A training step of PaDT, against plain Qwen2.5-VL's fine-tuning step on the same images and as many tokens.

    python -m tests.benchmarks.training_step

Batch 4 of pictures of 644x476 pixels with 3 objects each, 151,936 rows, forward and backward. Plain Qwen2.5-VL is
trained as transformers does it: logits and cross-entropy at all positions. PaDT asks its head at supervised positions
only, and adds prototypes, the object decoder and the losses of boxes, masks and scores. Widths are those of the 3B
model divided by ``--divide``, so that the decoder keeps its size beside the rest; depths are small, which makes both
the head's share and the decoder's larger than in the full model. Memory is the peak above the weights and gradients
(on CPU the process's high-water mark, each in a process of its own; on a GPU the allocator's).
"""

import argparse
import gc
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from padt.data.collate import Batch, EncodedGroup, EncodedSample, collate, normalize_pixels
from padt.model.checkpointing import set_checkpointing
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import PaDTConfig
from tests.benchmarks.common.models import END, IMAGE_END, IMAGE_START, IMAGE_TOKEN, VOCABULARY
from tests.benchmarks.training_head import _resident

VIT_GRID = (34, 46)
PATCHES = VIT_GRID[0] * VIT_GRID[1] // 4
WAYS = ("plain Qwen2.5-VL", "PaDT")


def scaled_config(divide: int, layers: int, depth: int) -> PaDTConfig:
    """Qwen2.5-VL 3B's widths divided by ``divide``, with few layers and the full vocabulary."""
    width, vision = 2048 // divide, 1280 // divide
    heads = max(2, 16 // divide)
    section = width // heads // 2
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 11008 // divide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, 2 // divide),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [section // 4, 3 * section // 8, 3 * section // 8],
        },
        "tie_word_embeddings": True,
        "bos_token_id": 151_643,
        "eos_token_id": END,
        "pad_token_id": 151_643,
    }
    tower = {
        "depth": depth,
        "hidden_size": vision,
        "num_heads": 16 // divide,
        "intermediate_size": 3420 // divide,
        "out_hidden_size": width,
        "fullatt_block_indexes": [depth - 1],
    }
    return PaDTConfig(
        text_config=text,
        vision_config=tower,
        image_token_id=IMAGE_TOKEN,
        vision_start_token_id=IMAGE_START,
        vision_end_token_id=IMAGE_END,
        tie_word_embeddings=True,
    )


def make_batch(size: int, objects: int, words: int) -> Batch:
    """Samples with one picture, ``words`` words of prompt, and an answer of ``objects`` groups of five VRTs."""
    rng = np.random.default_rng(0)
    return collate([_sample(rng, objects, words) for _ in range(size)], pad_token_id=151_643)


def _sample(rng: np.random.Generator, objects: int, words: int) -> EncodedSample:
    prompt = [IMAGE_START, *[IMAGE_TOKEN] * PATCHES, IMAGE_END, *rng.integers(0, 100_000, words)]
    ids = [int(token) for token in prompt]
    groups = []
    for _ in range(objects):
        ids += [int(token) for token in rng.integers(0, 100_000, 6)]
        top, left = (int(rng.integers(0, side // 4)) for side in VIT_GRID)
        rows, columns = range(top, top + 5), range(left, left + 6)
        foreground = np.array([r * (VIT_GRID[1] // 2) + c for r in rows for c in columns])
        vrts = tuple(int(patch) for patch in sorted(rng.choice(foreground, 5, replace=False)))
        mask = np.zeros((4 * VIT_GRID[0], 4 * VIT_GRID[1]), bool)
        mask[8 * top : 8 * (top + 5), 8 * left : 8 * (left + 6)] = True
        groups.append(EncodedGroup(len(ids), vrts, 0, foreground, (0.1, 0.1, 0.6, 0.6), mask))
        ids += [VOCABULARY + patch for patch in vrts]
    ids += [151_644, END]
    input_ids = np.array(ids)
    return EncodedSample(
        key="x",
        task="detect",
        input_ids=input_ids,
        supervised=np.arange(len(ids)) >= len(prompt),
        is_image=input_ids == IMAGE_TOKEN,
        pixels=rng.integers(0, 255, (4 * PATCHES, 3, 14, 14), dtype=np.uint8),
        grids=(VIT_GRID,),
        groups=tuple(groups),
    )


def step_of(which: str, arguments: argparse.Namespace) -> Callable[[], Tensor]:
    """A function that runs forward and backward of one way; gradients exist before."""
    torch.manual_seed(0)
    config = scaled_config(arguments.divide, arguments.layers, arguments.depth)
    batch = make_batch(arguments.batch, arguments.objects, arguments.words)
    dtype = getattr(torch, arguments.dtype)
    with torch.device(arguments.device):
        kind = PaDTForConditionalGeneration if which == "PaDT" else Qwen2_5_VLForConditionalGeneration
        model = kind(config).to(dtype).train()
    if arguments.recompute and isinstance(model, PaDTForConditionalGeneration):
        set_checkpointing(model, vision=True, language=True, decoder=True)
    elif arguments.recompute:
        model.activation_checkpointing_enable()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = batch.to(arguments.device)
    if isinstance(model, PaDTForConditionalGeneration):
        return lambda: model(batch=batch).total
    text = torch.where(batch.input_ids >= VOCABULARY, batch.input_ids - VOCABULARY, batch.input_ids)
    labels = torch.full_like(text, -100)
    positions = batch.supervised.positions + 1
    labels.scatter_(1, positions, text.gather(1, positions))
    inputs = {
        "input_ids": text,
        "attention_mask": batch.attention_mask,
        "mm_token_type_ids": batch.mm_token_type_ids,
        "image_grid_thw": batch.grid_thw,
        "labels": labels,
        "use_cache": False,
    }
    return lambda: model(**inputs, pixel_values=normalize_pixels(batch.pixels, dtype)).loss


def measure(which: str, arguments: argparse.Namespace, result) -> None:
    """Seconds of a step and peak memory above the start of one way, in this process."""
    torch.set_num_threads(arguments.threads)
    loss_of = step_of(which, arguments)
    gc.collect()
    on_gpu = arguments.device != "cpu"
    before = torch.cuda.memory_allocated() if on_gpu else _resident()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times, shares = [], []
    for _ in range(arguments.rounds):
        start, start_cpu = time.perf_counter(), time.process_time()
        loss_of().backward()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        shares.append(time.process_time() - start_cpu)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result.put((min(times[1:] or times), min(shares[1:] or shares), (peak - before) / 2**20))


def main() -> int:
    """Print both ways and their ratios; exit 1 above the limits."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training_step")
    parser.add_argument("--divide", type=int, default=4, help="widths of the 3B model are divided by this")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--depth", type=int, default=4, help="blocks of the vision tower")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--words", type=int, default=38)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing of all layers, in both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = {}
    for which in WAYS:
        result = context.Queue()
        process = context.Process(target=measure, args=(which, arguments, result))
        process.start()
        found[which] = result.get()
        process.join()
        seconds, processor, mebibytes = found[which]
        print(
            f"{which:16s} {seconds:7.2f} s ({processor:.2f} s of processor)  {mebibytes:8.0f} MiB above its start",
            flush=True,
        )
    (slow, slow_cpu, large), (fast, fast_cpu, small) = (found[way] for way in WAYS)
    print(f"ratio: time {fast / slow:.3f} (of processor {fast_cpu / slow_cpu:.3f}), extra memory {small / large:.3f}")
    # A busy machine leaves processor time alone; a GPU's work is none of it.
    quicker = fast_cpu <= slow_cpu if arguments.device == "cpu" else fast <= slow
    return 0 if quicker and small <= 0.7 * large else 1


if __name__ == "__main__":
    sys.exit(main())
