"""What a rank's batches ask of its device: operations (for MFU), memory, and which samples they were made of."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from padt.data.collate import Batch
from padt.data.tasks import TASKS
from padt.model.flops import BatchShape, forward_flops, peak_flops, training_flops
from padt.model.trainable import PARTS, is_adapter

GIB = 2**30


class WorkCounter:
    """Counts the operations and kinds of samples of a run's batches.

    Operations are those of forward and backward that the samples need, by what is trained (``padt.model.flops``):
    padding and recomputation are not among them.
    """

    def __init__(self, model: Any, sets: Sequence[str]) -> None:
        """Look at what is trained.

        Args:
            model: with adapters attached and parts frozen.
            sets: names of the data sets, with which the keys of their samples begin.
        """
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._parts = {part for part, prefixes in PARTS.items() if any(name.startswith(prefixes) for name in trained)}
        self._adapted = any(map(is_adapter, trained))
        self._config = model.config
        self._sets = tuple(dict.fromkeys(sets))
        self.kinds = (*TASKS, *(f"set_{name}" for name in self._sets))

    def flops(self, batch: Batch) -> int:
        """Operations of forward and backward of a batch."""
        return training_flops(forward_flops(self._config, BatchShape.of(batch)), self._parts, self._adapted)

    def shares(self, batch: Batch) -> dict[str, int]:
        """Samples of a batch by task and by set."""
        counts = dict.fromkeys(self.kinds, 0)
        for key, task in zip(batch.keys, batch.tasks, strict=True):
            if not key:
                # A placeholder for a sample that was left out.
                continue
            counts[task] += 1
            name = max((name for name in self._sets if key.startswith(f"{name}/")), key=len, default=None)
            if name is not None:
                counts[f"set_{name}"] += 1
        return counts


def utilisation(flops: float, seconds: float, device: torch.device, ranks: int) -> dict[str, float]:
    """Operations a second, and the share of what the devices could do at best.

    Args:
        flops: of all ranks in this time.
        seconds: of the clock.
        device: of a rank; all are taken to be alike.
        ranks: how many.
    """
    metrics = {"perf/model_tflops_per_s": flops / seconds / 1e12}
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if peak is not None:
        metrics["perf/mfu"] = flops / seconds / (peak * ranks)
    return metrics


def device_memory(device: torch.device, world_size: int) -> dict[str, float]:
    """Most memory of any rank's GPU since the last call, in GiB; all ranks call this together. Nothing on CPUs."""
    if device.type != "cuda":
        return {}
    most = torch.tensor(
        [torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)],
        dtype=torch.float64,
        device=device,
    )
    torch.cuda.reset_peak_memory_stats(device)
    if world_size > 1:
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
    peak, reserved = most.tolist()
    return {"perf/gpu_memory_peak_gib": peak / GIB, "perf/gpu_memory_reserved_gib": reserved / GIB}
