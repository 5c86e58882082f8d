"""A small random SAM 2 of 64 x 64 pixels, whose masks are 16 x 16, for tests that need no trained one."""

from pathlib import Path
from typing import Any

import torch
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

SIZE = 64
_PARTS: dict[str, Any] = {
    "vision_config": {
        "model_type": "sam2_vision_model",
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [SIZE, SIZE],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 4],
            "window_size_per_stage": [4, 2, 2, 1],
            "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [2, 2],
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": SIZE, "patch_size": 16},
    "mask_decoder_config": {
        "hidden_size": 32,
        "mlp_dim": 32,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    },
}
_MEMORY = {
    "image_size": SIZE,
    "memory_attention_hidden_size": 32,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 16,
    "mask_downsampler_embed_dim": 32,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 32,
}


def write_tiny_sam(folder: Path, video: bool = False) -> str:
    """Save one and return its path; ``video`` = as the Hub's repositories have it, with a memory for videos."""
    torch.manual_seed(0)
    model = Sam2VideoModel(Sam2VideoConfig(**_PARTS, **_MEMORY)) if video else Sam2Model(Sam2Config(**_PARTS))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "embedding" not in name:
                torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return str(folder)
