"""DeepSpeed: its configuration from ours, and the engine."""

import logging
from typing import Any

from torch import nn

from jobs.config import TrainConfig
from jobs.optimizer import make_adamw, parameter_groups

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
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.optimizer.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def build_engine(model: nn.Module, config: TrainConfig) -> tuple[Any, list[float]]:
    """Wrap a model into a DeepSpeed engine; torch.distributed must be up already (Ray Train does that).

    Returns:
        The engine, and the learning-rate factor of each parameter group.
    """
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger as deepspeed_logger

    deepspeed_logger.setLevel(logging.WARNING)
    # The shared-memory op serves inference only; building it would take 45 s and a compiler at the first run on CPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    groups, scales = parameter_groups(model, config.optimizer)
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=make_adamw(groups, config.optimizer),
        config=deepspeed_config(config),
        dist_init_required=False,
    )
    engine.train()
    return engine, scales
