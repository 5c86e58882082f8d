"""A tiny PaDT model folder for tests: the toy architecture, cut down, with weights from a seed."""

from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from padt.checkpoints.loading import save_model
from padt.data.image import ResizePolicy
from padt.data.processor import PaDTProcessor, image_processor
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import PaDTConfig
from pipelines.toy.model_config import toy_config
from pipelines.toy.tokenizer import CHAT_TEMPLATE, build_tokenizer


def write_tiny_model(folder: Path, seed: int = 0) -> str:
    """Save a random model of about a million parameters and return its path."""
    torch.manual_seed(seed)
    config = _config()
    model = PaDTForConditionalGeneration(config)
    # Fresh prototypes are zero: with them a few steps would not show that gradients reach everything.
    torch.nn.init.constant_(model.vis_norm.weight, 0.2)
    save_model(model, _processor(config), folder)
    return str(folder)


def write_hub_model(folder: Path, tied: bool = True, seed: int = 0) -> str:
    """Save a random plain Qwen2.5-VL of that size in several files, as on the Hub, and return its path."""
    torch.manual_seed(seed)
    values = {k: v for k, v in _config(tied).to_dict().items() if k not in ("model_type", "vl_decoder")}
    plain = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**values))
    plain.save_pretrained(folder, max_shard_size="500KB")
    _processor(_config(tied)).save_pretrained(folder)
    return str(folder)


def _config(tied: bool = True) -> PaDTConfig:
    values = {k: v for k, v in toy_config().to_dict().items() if k != "model_type"}
    values["text_config"] = {
        **values["text_config"],
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "tie_word_embeddings": tied,
    }
    values["vision_config"] = {**values["vision_config"], "depth": 2, "fullatt_block_indexes": [1]}
    return PaDTConfig(**{**values, "tie_word_embeddings": tied})


def _processor(config: PaDTConfig) -> PaDTProcessor:
    return PaDTProcessor(
        image_processor(policy=ResizePolicy()),
        build_tokenizer(),
        chat_template=CHAT_TEMPLATE,
        vrt_offset=config.vrt_offset,
    )
