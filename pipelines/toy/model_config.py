"""The toy model: Qwen2.5-VL's architecture at about two million parameters."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase, Qwen2_5_VLConfig

from pipelines.toy.tokenizer import build_tokenizer

_ROW_MULTIPLE = 64


def toy_config(
    tokenizer: PreTrainedTokenizerBase | None = None,
    vision: Mapping[str, Any] | None = None,
    language: Mapping[str, Any] | None = None,
) -> Qwen2_5_VLConfig:
    """Configuration of the toy model for a tokenizer (built anew when none is given), or of one of another size.

    ``vision`` and ``language`` hold values in place of the toy's, by their names in Qwen2.5-VL's configuration. As in
    the released models, the embedding has more rows than the tokenizer has tokens.
    """
    tokenizer = tokenizer or build_tokenizer()
    ids = tokenizer.get_added_vocab()
    text = {
        "vocab_size": (len(tokenizer) // _ROW_MULTIPLE + 1) * _ROW_MULTIPLE,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        # Sections are halves of a head's 32 channels, for time, height and width.
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        **(language or {}),
    }
    vision = {
        "depth": 4,
        "hidden_size": 96,
        "num_heads": 3,
        "intermediate_size": 256,
        "out_hidden_size": text["hidden_size"],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
        # Grids of 8 to 10 ViT patches: with Qwen's 10,000 most channels of the position code would hardly turn.
        "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
        **(vision or {}),
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
