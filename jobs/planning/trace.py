"""Bytes that autograd keeps and that a pass takes at most, from the model's own code run on the meta device.

There tensors have shapes and no content, so that a 7B model's pass costs no memory and takes milliseconds. Attention is
taken as a fused kernel (FlashAttention, SDPA), which keeps its inputs, its output and one number a row.
"""

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ATTENTION = "padt_planned"


@dataclass(frozen=True)
class Traced:
    """Bytes of one module's pass.

    Attributes:
        kept: that autograd keeps from forward to backward, parameters left out.
        peak: most that exist at a time in forward and backward, with the kept ones, without gradients of parameters.
    """

    kept: int
    peak: int


def trace(module: nn.Module, forward: Callable[[], Any], shared: Iterable[Tensor] = ()) -> Traced:
    """Run a module forward and backward.

    Args:
        module: whose parameters and their gradients are counted elsewhere.
        forward: calls the module; returns a tensor, or nested ones.
        shared: tensors that many modules keep together, counted elsewhere.
    """
    known = {each.untyped_storage()._cdata for each in (*module.parameters(), *module.buffers(), *shared)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with _LiveBytes() as live, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = _tensors_in(forward())
        held = sum(kept.values())
        differentiable = [each for each in outputs if each.requires_grad]
        if differentiable:
            torch.autograd.backward(differentiable, [torch.empty_like(each) for each in differentiable])
    own = sum(each.grad.nbytes for each in module.parameters() if each.grad is not None)
    for each in module.parameters():
        each.grad = None
    return Traced(held, max(held, live.peak - own))


@contextmanager
def checkpoint_inputs(module: Any) -> Iterator[list[int]]:
    """Bytes of what a module that recomputes hands to its checkpoint: they are kept, but by no graph."""
    found: list[int] = []
    seen: set[int] = set()
    before = module._gradient_checkpointing_func

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        for tensor in _tensors_in(arguments):
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                found.append(storage.nbytes())
        return before(function, *arguments)

    module._gradient_checkpointing_func = call
    try:
        yield found
    finally:
        module._gradient_checkpointing_func = before


def fused_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    """An attention function of transformers that computes nothing: ``(batch, positions, heads, width)``."""
    return _Fused.apply(query, key, value), None


class _Fused(torch.autograd.Function):
    """What a fused kernel keeps: its inputs, its output, and the logarithm of each row's sum."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        rows = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, rows)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, result)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [each for entry in value.values() for each in _tensors_in(entry)]
    if isinstance(value, list | tuple):
        return [each for entry in value for each in _tensors_in(entry)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [each for field in dataclasses.fields(value) for each in _tensors_in(getattr(value, field.name))]
    return []
