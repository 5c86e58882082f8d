"""A tiny PaDT model folder for tests: the toy architecture, cut down, with weights from a seed."""

from pathlib import Path

import torch

from padt.config import PaDTConfig
from padt.image import ResizePolicy
from padt.loading import save_model
from padt.model.modeling import PaDTForConditionalGeneration
from padt.processor import PaDTProcessor, image_processor
from pipelines.toy.config import toy_config
from pipelines.toy.tokenizer import CHAT_TEMPLATE, build_tokenizer


def write_tiny_model(folder: Path, seed: int = 0) -> str:
    """Save a random model of about a million parameters and return its path."""
    values = {k: v for k, v in toy_config().to_dict().items() if k != "model_type"}
    values["text_config"] = {**values["text_config"], "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    values["vision_config"] = {**values["vision_config"], "depth": 2, "fullatt_block_indexes": [1]}
    torch.manual_seed(seed)
    config = PaDTConfig(**values)
    model = PaDTForConditionalGeneration(config)
    # Fresh prototypes are zero: with them a few steps would not show that gradients reach everything.
    torch.nn.init.constant_(model.vis_norm.weight, 0.2)
    processor = PaDTProcessor(
        image_processor(policy=ResizePolicy()),
        build_tokenizer(),
        chat_template=CHAT_TEMPLATE,
        vrt_offset=config.vrt_offset,
    )
    save_model(model, processor, folder)
    return str(folder)
