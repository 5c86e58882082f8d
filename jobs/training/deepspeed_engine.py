"""DeepSpeed: its configuration from ours, and the engine."""

import logging
from typing import Any

import torch
from torch import nn

from jobs.training.config import TrainConfig
from jobs.training.optimizer import make_adamw, parameter_groups

logger = logging.getLogger(__name__)


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's JSON for a run.

    ``gradient_clipping`` is always written: DeepSpeed clips at 1.0 where it is missing.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        # Small models and CPU runs: parameters below this many elements stay whole on every rank.
        zero["stage3_param_persistence_threshold"] = 10_000
    return {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def prepare_deepspeed() -> None:
    """Settle what DeepSpeed decides when it is first used: quiet logs, and no compiling on CPU."""
    import deepspeed.ops
    from deepspeed.utils import logger as deepspeed_logger

    deepspeed_logger.setLevel(logging.WARNING)
    # The shared-memory op serves inference only; building it would take 45 s and a compiler at the first run on CPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def build_engine(model: nn.Module, config: TrainConfig) -> tuple[Any, list[float]]:
    """Wrap a model into a DeepSpeed engine; torch.distributed must be up already (Ray Train does that).

    Returns:
        The engine, and the learning-rate factor of each parameter group.
    """
    import deepspeed
    from deepspeed.utils import set_z3_leaf_modules

    prepare_deepspeed()
    decoders = _object_decoders(model) if config.zero_stage == 3 else []
    for decoder in decoders:
        set_z3_leaf_modules(decoder, [type(decoder)])
        decoder.register_forward_hook(_pack_masks)
    groups, scales = parameter_groups(model, config.optimizer)
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=make_adamw(groups, config.optimizer),
        config=deepspeed_config(config),
        dist_init_required=False,
    )
    for decoder in decoders:
        decoder.register_forward_hook(_unpack_masks)
    engine.train()
    return engine, scales


# ZeRO 3 records the order of module calls, forwards and backwards, and stops when ranks differ. What the object decoder
# does follows the data twice over: it calls its parts once a chunk of objects, and it returns one mask an object, each
# of which counts as a call when gradients come back. So it is fetched whole (a leaf), and its masks cross DeepSpeed's
# hooks as one tensor: hooks run in the order in which they were registered.


def _object_decoders(model: nn.Module) -> list[nn.Module]:
    from padt.model.decoder import ObjectDecoder

    return [module for module in model.modules() if isinstance(module, ObjectDecoder)]


def _pack_masks(module: nn.Module, inputs: Any, output: Any) -> Any:
    boxes, scores, masks = output
    shapes = [mask.shape for mask in masks]
    return boxes, scores, torch.cat([mask.flatten() for mask in masks]), shapes


def _unpack_masks(module: nn.Module, inputs: Any, output: Any) -> Any:
    boxes, scores, packed, shapes = output
    parts = packed.split([shape.numel() for shape in shapes])
    return boxes, scores, [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
