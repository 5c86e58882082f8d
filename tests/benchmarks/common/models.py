"""Models of the released vocabulary's size with few layers, and a plain Qwen2.5-VL of the very same weights."""

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import PaDTConfig

VOCABULARY = 151_936
IMAGE_TOKEN = 151_655
IMAGE_START, IMAGE_END, END = 151_652, 151_653, 151_645


def bench_config(hidden: int, layers: int) -> PaDTConfig:
    """Qwen2.5-VL's shape at a width, with few layers and a small vision tower."""
    heads = hidden // 128
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True,
        "bos_token_id": 151_643,
        "eos_token_id": END,
        "pad_token_id": 151_643,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": [1],
    }
    return PaDTConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE_TOKEN,
        vision_start_token_id=IMAGE_START,
        vision_end_token_id=IMAGE_END,
        tie_word_embeddings=True,
    )


def twin_models(
    hidden: int, layers: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Qwen2_5_VLForConditionalGeneration, PaDTForConditionalGeneration]:
    """Plain Qwen2.5-VL and PaDT that share every weight they have in common, so that both read the same memory."""
    config = bench_config(hidden, layers)
    torch.manual_seed(0)
    with torch.device(device):
        padt = PaDTForConditionalGeneration(config)
    padt = padt.to(dtype).eval()
    torch.nn.init.constant_(padt.vis_norm.weight, 0.5)
    with torch.device("meta"):
        plain = Qwen2_5_VLForConditionalGeneration(config)
    plain.model = padt.model
    plain.lm_head.weight = padt.lm_head.weight
    return plain.eval(), padt


def prompt(config: PaDTConfig, grid: tuple[int, int], words: int, batch: int = 1) -> dict[str, Tensor]:
    """Inputs of a prompt with one image of ``grid`` patches and some words, for each row of a batch."""
    patches = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, 100_000, (batch, words), generator=generator)
    middle = torch.full((batch, patches), config.image_token_id)
    edges = [torch.full((batch, 1), token) for token in (IMAGE_START, IMAGE_END)]
    ids = torch.cat([edges[0], middle, edges[1], text], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
        "pixel_values": torch.randn(batch * patches * 4, 1176, generator=generator),
        "image_grid_thw": torch.tensor([[1, 2 * grid[0], 2 * grid[1]]] * batch),
    }
