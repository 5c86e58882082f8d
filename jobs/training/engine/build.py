"""The back end of a configuration, built around a model."""

import torch
from torch import nn

from jobs.training.config import TrainConfig
from jobs.training.engine.backend import Engine, engine_of


def build_engine(model: nn.Module, config: TrainConfig, device: torch.device, micro_batches: int = 1) -> Engine:
    """Wrap a model into the configuration's back end.

    Args:
        model: from ``jobs.training.worker.load_for_training``, on its device.
        config: the resolved configuration.
        device: of the model.
        micro_batches: of each rank in an optimiser step.
    """
    if engine_of(config) == "deepspeed":
        from jobs.training.engine.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(model, config, micro_batches)
    from jobs.training.engine.torch_engine import TorchEngine

    return TorchEngine(model, config, device, micro_batches)
