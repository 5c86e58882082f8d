"""Time and memory of a piece of work on a device."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cost:
    """What a piece of work has cost.

    Attributes:
        seconds: of the clock, the device's work included.
        peak_gib: most memory that tensors held meanwhile; None on a CPU.
    """

    seconds: float
    peak_gib: float | None


def cost_of(work: Callable[[], object], device: torch.device) -> Cost:
    """Do a piece of work and wait for the device."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return Cost(seconds, torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None)
