"""What of a model is trained, and in which type: adapters, frozen parts, gradient checkpointing."""

from typing import TYPE_CHECKING, Any

import torch

from jobs.training.config import TrainConfig

if TYPE_CHECKING:
    from padt.pretrained.config import PaDTConfig


def training_dtype(config: TrainConfig) -> torch.dtype:
    """Type of the weights in forward and backward; in bf16 DeepSpeed keeps fp32 copies for the optimiser."""
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def skeleton(config: TrainConfig, device: torch.device, model_config: "PaDTConfig | None" = None) -> Any:
    """The model of a configuration with adapters attached and parts frozen, all of it on the meta device.

    Args:
        config: the resolved configuration.
        device: where it will be trained, which decides about its attention.
        model_config: in place of what lies at ``config.model``.

    Raises:
        UserError: a name in ``freeze`` fits nothing, or nothing is left to train.
    """
    from transformers.initialization import no_init_weights

    from padt.checkpoints.loading import resolve_attention
    from padt.model.modeling import PaDTForConditionalGeneration
    from padt.pretrained.config import load_config

    if model_config is None:
        model_config, _ = load_config(config.model)
    attention = resolve_attention(config.attn_implementation, device)
    with torch.device("meta"), no_init_weights():
        model = PaDTForConditionalGeneration._from_config(
            model_config, dtype=training_dtype(config), attn_implementation=attention
        )
    model.tie_weights()
    prepare_for_training(model, config, empty_adapters=True)
    return model


def check_parameter_names(config: TrainConfig) -> None:
    """Make sure that ``freeze`` and ``optimizer.lr_scale`` name parts or parameters of the model, without its weights.

    Raises:
        UserError: one fits nothing (names the nearest), or nothing is left to train.
    """
    from padt.model.trainable import PARTS, check_names

    if set(config.freeze) | set(config.optimizer.lr_scale) <= set(PARTS):
        return
    model = skeleton(config, torch.device("cpu"))
    check_names(config.optimizer.lr_scale, [name for name, _ in model.named_parameters()])


def prepare_for_training(model: Any, config: TrainConfig, *, empty_adapters: bool = False) -> None:
    """Set the architecture's switches, attach adapters, freeze, and switch checkpointing and packing, as configured."""
    from padt.checkpoints.lora import attach, reset
    from padt.model.checkpointing import set_checkpointing
    from padt.model.trainable import freeze

    for name, value in config.architecture.given().items():
        setattr(model.config, name, value)
    model.vl_decoder.feature_order = model.config.feature_order
    if config.lora is not None:
        attach(model, config.lora, empty=empty_adapters)
        if not empty_adapters:
            # Drawn from the seed alone, as the partitioned way does: a run starts alike at every ZeRO stage.
            torch.manual_seed(config.seed)
            reset(model)
    freeze(model, config.freeze)
    # Fitted to the scores of the weights as they were.
    model.config.score_calibration = model.config.score_thresholds = None
    set_checkpointing(model, **config.gradient_checkpointing.model_dump())
    attention = str(model.config.text_config._attn_implementation)
    model.packing = "flash" in attention if config.packing == "auto" else config.packing
