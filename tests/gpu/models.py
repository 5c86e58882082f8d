"""Models of random weights in the published sizes, which answer long and point at patches now and then."""

import numpy as np
import torch
from PIL import Image

from padt.data.image import ResizePolicy
from padt.data.processor import PaDTProcessor, image_processor
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import PaDTConfig
from tests.padt.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

VISION = {
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
}
TEXT = {
    "3b": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "7b": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
SIZES = ("tiny", *TEXT)
# Prototypes of this length have about as good a chance as the best of all words.
_PROTOTYPE_SCALE = 0.03


def sized_model(size: str, device: torch.device, dtype: torch.dtype) -> PaDTForConditionalGeneration:
    """A model of random weights with a small tokenizer; no answer of it ends by itself.

    Args:
        size: one of ``SIZES``.
        device: where it is made.
        dtype: of its weights.
    """
    model = tiny_model().to(device, dtype) if size == "tiny" else large_model(size, device, dtype)
    with torch.no_grad():
        model.lm_head.weight[model.processor.end_token_id] = 0
        model.lm_head.weight[model.processor.pad_token_id] = 0
    return model


def large_model(size: str, device: torch.device, dtype: torch.dtype) -> PaDTForConditionalGeneration:
    """A published size, with Qwen2.5-VL's vocabulary beside the small tokenizer."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.get_added_vocab()
    tied = size == "3b"
    text = {
        **TEXT[size],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": tied,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    config = PaDTConfig(
        text_config=text,
        vision_config={**VISION, "out_hidden_size": TEXT[size]["hidden_size"]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = PaDTForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    torch.nn.init.constant_(model.vis_norm.weight, _PROTOTYPE_SCALE)
    model.processor = PaDTProcessor(
        image_processor(policy=ResizePolicy()), tokenizer, CHAT_TEMPLATE, vrt_offset=config.text_config.vocab_size
    )
    return model


def noise(width: int, height: int, seed: int) -> Image.Image:
    """A picture of coarse noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)
