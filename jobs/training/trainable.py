"""What of a model is trained, and in which type: adapters, frozen parts, gradient checkpointing."""

from typing import TYPE_CHECKING, Any

import torch

from jobs.training.config import LoraConfig, TrainConfig

if TYPE_CHECKING:
    from padt.checkpoints.lora import LoraSettings


def training_dtype(config: TrainConfig) -> torch.dtype:
    """Type of the weights in forward and backward; in bf16 DeepSpeed keeps fp32 copies for the optimiser."""
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def prepare_for_training(model: Any, config: TrainConfig, *, empty_adapters: bool = False) -> None:
    """Attach adapters, freeze what is not trained, and switch gradient checkpointing, as a configuration says."""
    from padt.checkpoints.lora import attach, reset, set_trainable
    from padt.model.checkpointing import set_checkpointing

    if config.lora is not None:
        attach(model, lora_settings(config.lora), empty=empty_adapters)
        if not empty_adapters:
            # Drawn from the seed alone, as the partitioned way does: a run starts alike at every ZeRO stage.
            torch.manual_seed(config.seed)
            reset(model)
    set_trainable(model, **config.trained_parts())
    # Fitted to the scores of the weights as they were.
    model.config.score_calibration = None
    set_checkpointing(model, **config.gradient_checkpointing.model_dump())


def lora_settings(config: LoraConfig) -> "LoraSettings":
    """The model library's settings of a ``lora`` section."""
    from padt.checkpoints.lora import LINEAR_TARGETS, LoraSettings

    targets = tuple(config.targets or LINEAR_TARGETS)
    return LoraSettings(rank=config.rank, alpha=config.alpha, dropout=config.dropout, targets=targets)
