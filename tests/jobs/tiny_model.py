"""A tiny PaDT model folder for tests: the toy architecture, cut down, with weights from a seed."""

from pathlib import Path

import torch

from jobs.toy_base import initialise, toy_processor
from padt.config import PaDTConfig
from padt.loading import save_model
from padt.model.modeling import PaDTForConditionalGeneration
from pipelines.toy.config import toy_config


def write_tiny_model(folder: Path, seed: int = 0) -> str:
    """Save a random model of about a million parameters and return its path."""
    values = {k: v for k, v in toy_config().to_dict().items() if k != "model_type"}
    values["text_config"] = {**values["text_config"], "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    values["vision_config"] = {**values["vision_config"], "depth": 2, "fullatt_block_indexes": [1]}
    torch.manual_seed(seed)
    config = PaDTConfig(**values)
    model = PaDTForConditionalGeneration(config)
    initialise(model, seed)
    torch.nn.init.constant_(model.vis_norm.weight, 0.2)
    save_model(model, toy_processor(config.vrt_offset), folder)
    return str(folder)
