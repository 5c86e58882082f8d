"""The head in training: supervised rows in chunks, against logits of all positions as transformers computes them.

    python -m tests.benchmarks.training_head

Same states, same weight, same targets, batch 4 of a picture of 644x476 pixels (391 patches) and its words. Time is of
forward and backward; memory is the peak above the start (on CPU the process's high-water mark, each in a process of
its own; on a GPU the allocator's).
"""

import argparse
import multiprocessing
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from padt.data.collate import SupervisedRows
from padt.model.head import DynamicVocabularyHead
from tests.benchmarks.common.models import VOCABULARY

PATCHES = 391


def case(hidden: int, batch: int, prompt: int, answer: int, device: str):
    """States, prototypes and targets: ``prompt`` positions without loss, then ``answer`` with."""
    generator = torch.Generator().manual_seed(0)
    head = DynamicVocabularyHead(hidden, VOCABULARY, bias=False)
    states = torch.randn(batch, prompt + answer, hidden, generator=generator) * 0.1
    prototypes = torch.randn(batch, PATCHES, hidden, generator=generator) * 0.1
    targets = torch.randint(0, VOCABULARY, (batch, answer), generator=generator)
    targets[:, ::3] = VOCABULARY + torch.randint(0, PATCHES, targets[:, ::3].shape, generator=generator)
    positions = torch.arange(prompt - 1, prompt + answer - 1).expand(batch, -1)
    rows = SupervisedRows(positions.to(device), targets.to(device), torch.full_like(targets, -1).to(device))
    return head.to(device), states.to(device).requires_grad_(), prototypes.to(device).requires_grad_(), rows


def supervised(head, states: Tensor, prototypes: Tensor, rows: SupervisedRows) -> Tensor:
    """PaDT's training loss of the tokens."""
    mask = torch.ones(prototypes.shape[:2], dtype=torch.bool, device=states.device)
    return head(states, prototypes, mask, rows).mean()


def everywhere(head, states: Tensor, prototypes: Tensor, rows: SupervisedRows) -> Tensor:
    """Logits at all positions in fp32, then cross-entropy; text targets only, as plain Qwen2.5-VL would have them."""
    logits = F.linear(states, head.weight).float()
    labels = torch.full(states.shape[:2], -100, device=states.device)
    labels.scatter_(1, rows.positions, rows.targets.clamp(max=VOCABULARY - 1))
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def measure(which: str, arguments: argparse.Namespace, result) -> None:
    """Time and peak memory of one way, in this process."""
    torch.set_num_threads(arguments.threads)
    head, *inputs = case(arguments.hidden, arguments.batch, arguments.prompt, arguments.answer, arguments.device)
    function = {"supervised rows": supervised, "all positions": everywhere}[which]
    head.weight.grad = torch.zeros_like(head.weight)
    on_gpu = arguments.device != "cpu"
    before = _resident()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    # Processor time, which a busy machine leaves alone; a GPU has none.
    clock = time.perf_counter if on_gpu else time.process_time
    times = []
    for _ in range(arguments.rounds):
        start = clock()
        function(head, *inputs).backward()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(clock() - start)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result.put((min(times), (peak - before) / 2**20))


def _resident() -> int:
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize()


def main() -> int:
    """Print both ways and their ratios."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training_head")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=431)
    parser.add_argument("--answer", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = {}
    for which in ("all positions", "supervised rows"):
        result = context.Queue()
        process = context.Process(target=measure, args=(which, arguments, result))
        process.start()
        found[which] = result.get()
        process.join()
        seconds, mebibytes = found[which]
        print(f"{which:16s} {seconds:7.2f} s  {mebibytes:8.0f} MiB above its start", flush=True)
    (slow, large), (fast, small) = found["all positions"], found["supervised rows"]
    print(f"ratio: time {fast / slow:.3f}, extra memory {small / large:.3f}")
    return 0 if fast <= slow and small <= 0.7 * large else 1


if __name__ == "__main__":
    sys.exit(main())
