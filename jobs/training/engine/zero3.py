"""ZeRO 3: a model that no rank ever holds whole while it is loaded, and its weights at the end.

transformers' own way (``HfDeepSpeedConfig`` and ``from_pretrained``) gathers the whole checkpoint in one dictionary on
rank 0 and reports no unexpected or mis-shaped keys. Here the model is built without memory, then filled and partitioned
block by block (a layer, a table): beside its own share a rank holds one block at a time.
"""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig

from jobs.training.config import TrainConfig
from jobs.training.engine.deepspeed_engine import deepspeed_config, prepare_deepspeed
from jobs.training.trainable import skeleton
from padt.checkpoints.lora import is_adapter_folder, reset
from padt.errors import UserError
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.weights import StoredTensor, check_weights, read_tensor, read_tensors, stored_name

logger = logging.getLogger(__name__)


def load_partitioned(config: TrainConfig, device: torch.device) -> PaDTForConditionalGeneration:
    """Load a model partitioned over the ranks; all of them must call this together.

    Rank 0 reads the files and draws what starts fresh; every rank checks all names and shapes first.

    Raises:
        UserError: as ``padt.load_model``, on every rank; or the folder holds an adapter.
    """
    import deepspeed

    from padt.pretrained.config import load_config

    if is_adapter_folder(config.model):
        raise UserError(
            f"{config.model} holds an adapter, which ZeRO 3 does not merge while loading: start from the model/ folder "
            "beside it, or set zero_stage to 2."
        )
    stored = read_tensors(config.model)
    fresh = check_weights(PaDTForConditionalGeneration, config.model, *load_config(config.model), stored)
    reads = torch.distributed.get_rank() == 0
    if fresh and reads:
        logger.warning(
            "%s is plain Qwen2.5-VL: %d tensors of prototypes and decoder start fresh", config.model, len(fresh)
        )
    prepare_deepspeed()
    model = skeleton(config, device)
    settings = deepspeed_config(config)
    _make_buffers(model, device)
    for name, block in _blocks(model):
        _fill(model, name, block, stored if reads else None, device)
        # Broadcasts rank 0's values and leaves each rank its share.
        deepspeed.zero.Init(module=block, config_dict_or_path=settings)
    return model


def gather_weights(module: nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """Whole weights of a ZeRO-3 module on rank 0 (empty elsewhere), one tensor at a time; all ranks must call it."""
    import deepspeed

    weights: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        whole = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter]) if whole else nullcontext():
            if rank == 0:
                weights[name] = parameter.detach().cpu().clone()
    if rank == 0:
        kept = set(module.state_dict().keys())
        weights.update({name: b.detach().cpu().clone() for name, b in module.named_buffers() if name in kept})
    return weights


def whole_model(config: TrainConfig, weights: dict[str, torch.Tensor]) -> PaDTForConditionalGeneration:
    """A model of gathered weights, to be saved (its rotary tables, which no file holds, stay empty)."""
    model = skeleton(config, torch.device("cpu"))
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    if (Path(config.model) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(config.model)
    return model


def _blocks(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts that are filled at a time: layers, the object decoder, and single modules outside of these."""
    layer = type(module).__name__ in PaDTForConditionalGeneration._no_split_modules
    if layer or next(module.parameters(recurse=False), None) is not None:
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _blocks(child, f"{name}.{child_name}" if name else child_name)


def _make_buffers(model: PaDTForConditionalGeneration, device: torch.device) -> None:
    for module in model.modules():
        names = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in names:
            setattr(module, name, torch.empty_like(getattr(module, name), device=device))
        if names:
            model._init_weights(module)


def _fill(
    model: PaDTForConditionalGeneration,
    prefix: str,
    block: nn.Module,
    stored: dict[str, StoredTensor] | None,
    device: torch.device,
) -> None:
    """Give a block's parameters memory, and on the rank that reads (``stored`` given) their values."""
    for name, module in block.named_modules(prefix=prefix):
        fresh = False
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                continue  # a tied table that was filled before
            values = torch.empty_like(parameter, device=device, dtype=model.dtype)
            source = (stored or {}).get(stored_name(f"{name}.{leaf}".replace(".base_layer.", ".")))
            if source is not None:
                values.copy_(read_tensor(source))
            fresh |= source is None
            # In place: other modules (a tied head) and PEFT hold the same parameter.
            torch.utils.swap_tensors(parameter, nn.Parameter(values, requires_grad=parameter.requires_grad))
        # Adapters draw their own values below, and nothing else from the generator: as where ZeRO does not partition.
        if fresh and stored is not None and ".lora_" not in name:
            model._init_weights(module)
    if stored is not None:
        reset(block)
