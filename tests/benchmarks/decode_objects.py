"""Decoding many objects of one image against one, from states to run-length masks of the picture's size.

    python -m tests.benchmarks.decode_objects

The decoder alone, at the released width of 1280, on a picture of 644x476 pixels (46x34 ViT patches), five VRTs an
object. One object is also compared with the plain formulation of the tests, which works on a map for every object.
Memory is the peak above the start, in a process of its own (on CPU its high-water mark, on a GPU the allocator's).
"""

import argparse
import multiprocessing
import resource
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from padt.inference.grounding import mask_rle
from padt.model.decoder import ObjectDecoder
from padt.model.vision import ImageFeatures
from padt.pretrained.config import VLDecoderConfig
from tests.benchmarks.common.measure import interleaved
from tests.padt.model.plain_decoder import decode_plainly

GRID, PICTURE = (34, 46), (476, 644)
STATES, VRTS = 2048, 5


def case(width: int, device: str, dtype: torch.dtype) -> tuple[ObjectDecoder, ImageFeatures, Tensor]:
    """A random decoder and random features of a picture."""
    torch.manual_seed(0)
    config = VLDecoderConfig(hidden_size=width, intermediate_size=width * 8 // 3, llm_hidden_state=STATES)
    decoder = ObjectDecoder(config, "raster").to(device, dtype).eval()
    items, head = GRID[0] * GRID[1], width // config.num_heads
    angles = torch.rand(items, head // 2).repeat(1, 2) * 40
    features = ImageFeatures(
        merged=torch.randn(items // 4, STATES).to(device, dtype),
        high_res=torch.randn(items, width).to(device, dtype),
        cos=angles.cos().to(device),
        sin=angles.sin().to(device),
        grids=[GRID],
    )
    return decoder, features, torch.randn(items // 4, STATES).to(device, dtype)


def work(decode: Callable, features: ImageFeatures, prototypes: Tensor, objects: int) -> Callable[[], list]:
    """A function that decodes some objects to run-length masks."""
    states = torch.randn(VRTS * objects, STATES).to(prototypes)

    def run() -> list:
        with torch.inference_mode():
            boxes, scores, masks = decode(states, [VRTS] * objects, [0] * objects, features, prototypes)
            return [boxes.tolist(), scores.tolist(), [mask_rle(mask, *PICTURE) for mask in masks]]

    return run


def extra_memory(objects: int, arguments: argparse.Namespace, result) -> None:
    """Peak memory of one run above the start, in MiB."""
    torch.set_num_threads(arguments.threads)
    decoder, features, prototypes = case(arguments.width, arguments.device, getattr(torch, arguments.dtype))
    run = work(decoder, features, prototypes, objects)
    if arguments.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        result.put((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    with open("/proc/self/statm") as handle:
        before = int(handle.read().split()[1]) * resource.getpagesize()
    high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # A start that was higher than the run says nothing.
    result.put((peak - before) / 2**20 if peak > high else 0.0)


def main() -> int:
    """Print times, memory and ratios; exit 1 above the limits."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decode_objects")
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--limit", type=float, default=6.0, help="largest ratio of many objects to one")
    parser.add_argument("--limit-memory", type=float, default=400, help="largest extra memory in MiB")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    context = multiprocessing.get_context("spawn")
    memory = {}
    for objects in (1, arguments.objects):
        result = context.Queue()
        process = context.Process(target=extra_memory, args=(objects, arguments, result))
        process.start()
        memory[objects] = result.get()
        process.join()
        print(f"{objects:3d} objects: {memory[objects]:.0f} MiB above the start", flush=True)
    decoder, features, prototypes = case(arguments.width, arguments.device, getattr(torch, arguments.dtype))
    one, many = (work(decoder, features, prototypes, objects) for objects in (1, arguments.objects))
    plain = work(lambda *inputs: decode_plainly(decoder, *inputs), features, prototypes, 1)
    ratio = interleaved(one, many, arguments.rounds, warm_up=1)
    print(f"1 and {arguments.objects} objects:        {ratio}", flush=True)
    if arguments.device == "cpu":
        print(f"1 object plain and shared: {interleaved(plain, one, arguments.rounds, warm_up=1)}", flush=True)
    return 0 if ratio.judged <= arguments.limit and max(memory.values()) < arguments.limit_memory else 1


if __name__ == "__main__":
    sys.exit(main())
