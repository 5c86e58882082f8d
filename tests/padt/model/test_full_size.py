"""The published sizes, checked without memory: parameter counts, and every name and shape of the Hub's layout.

Counts as published for Qwen2.5-VL-3B-Instruct (824 tensors) and 7B-Instruct: safetensors totals of their repositories;
shapes of the 7B as listed from its checkpoint by third parties that convert it.
"""

from functools import partial
from math import prod
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import no_init_weights

from padt.errors import UserError
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import PaDTConfig
from padt.pretrained.weights import (
    FRESH_PREFIXES,
    HEAD,
    StoredTensor,
    check_weights,
    expected_shapes,
    module_name,
    stored_name,
)

shapes_of = partial(expected_shapes, PaDTForConditionalGeneration)
check = partial(check_weights, PaDTForConditionalGeneration)
VISION = {
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_act": "silu",
    "hidden_size": 1280,
    "in_chans": 3,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
}
COMMON = {
    "model_type": "qwen2_5_vl",
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
}
HUB = {
    "3B": {
        **COMMON,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
        "vision_config": {**VISION, "out_hidden_size": 2048},
    },
    "7B": {
        **COMMON,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
        "vision_config": {**VISION, "out_hidden_size": 3584},
    },
}
PARAMETERS = {"3B": 3_754_622_976, "7B": 8_292_166_656}
VISION_PARAMETERS = {"3B": 668_684_288, "7B": 676_550_144}
EMBEDDING = {"3B": 311_164_928, "7B": 544_997_376}
PUBLISHED_7B = {
    "lm_head.weight": (152064, 3584),
    "model.embed_tokens.weight": (152064, 3584),
    "model.layers.0.input_layernorm.weight": (3584,),
    "model.layers.0.mlp.down_proj.weight": (3584, 18944),
    "model.layers.0.mlp.gate_proj.weight": (18944, 3584),
    "model.layers.0.mlp.up_proj.weight": (18944, 3584),
    "model.layers.0.post_attention_layernorm.weight": (3584,),
    "model.layers.0.self_attn.k_proj.bias": (512,),
    "model.layers.0.self_attn.k_proj.weight": (512, 3584),
    "model.layers.0.self_attn.o_proj.weight": (3584, 3584),
    "model.layers.0.self_attn.q_proj.bias": (3584,),
    "model.layers.0.self_attn.q_proj.weight": (3584, 3584),
    "model.layers.0.self_attn.v_proj.bias": (512,),
    "model.layers.0.self_attn.v_proj.weight": (512, 3584),
    "model.norm.weight": (3584,),
    "visual.blocks.0.attn.proj.bias": (1280,),
    "visual.blocks.0.attn.proj.weight": (1280, 1280),
    "visual.blocks.0.attn.qkv.bias": (3840,),
    "visual.blocks.0.attn.qkv.weight": (3840, 1280),
    "visual.blocks.0.mlp.down_proj.bias": (1280,),
    "visual.blocks.0.mlp.down_proj.weight": (1280, 3420),
    "visual.blocks.0.mlp.gate_proj.bias": (3420,),
    "visual.blocks.0.mlp.gate_proj.weight": (3420, 1280),
    "visual.blocks.0.mlp.up_proj.bias": (3420,),
    "visual.blocks.0.mlp.up_proj.weight": (3420, 1280),
    "visual.blocks.0.norm1.weight": (1280,),
    "visual.blocks.0.norm2.weight": (1280,),
    "visual.merger.ln_q.weight": (1280,),
    "visual.merger.mlp.0.bias": (5120,),
    "visual.merger.mlp.0.weight": (5120, 5120),
    "visual.merger.mlp.2.bias": (3584,),
    "visual.merger.mlp.2.weight": (3584, 5120),
    "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
}
sizes = pytest.mark.parametrize("size", ["3B", "7B"])


def config_of(size: str) -> PaDTConfig:
    return PaDTConfig.from_dict(HUB[size])


def plain_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Stored names and shapes of transformers' own Qwen2.5-VL, renamed by transformers itself."""
    config = Qwen2_5_VLConfig(**{key: value for key, value in HUB[size].items() if key != "model_type"})
    with torch.device("meta"), no_init_weights():
        plain = Qwen2_5_VLForConditionalGeneration(config)
    names = revert_weight_conversion(plain, dict(plain.state_dict()))
    shapes = {name: tuple(value.shape) for name, value in names.items()}
    if config.tie_word_embeddings:
        shapes.pop(HEAD)
    return shapes


def stored(shapes: dict[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    return {name: StoredTensor(name, Path("model.safetensors"), shape, "BF16") for name, shape in shapes.items()}


def count(shapes: dict[str, tuple[int, ...]], *prefixes: str) -> int:
    return sum(prod(shape) for name, shape in shapes.items() if not prefixes or name.startswith(prefixes))


@sizes
def test_the_base_has_the_published_number_of_parameters(size):
    everything = shapes_of(config_of(size))
    shapes = {name: shape for name, shape in everything.items() if not name.startswith(FRESH_PREFIXES)}
    assert count(shapes) == PARAMETERS[size]
    assert count(shapes, "visual.") == VISION_PARAMETERS[size]
    assert count(shapes, "model.embed_tokens.") == EMBEDDING[size]
    assert count(shapes, "visual.blocks.0.") == 19_702_200
    assert (HEAD in shapes) == (size == "7B")
    if size == "3B":
        assert len(shapes) == 824


@sizes
def test_every_name_of_the_hub_means_exactly_one_parameter_of_ours(size):
    hub = plain_shapes(size)
    ours = shapes_of(config_of(size))
    assert {name: shape for name, shape in ours.items() if not name.startswith(FRESH_PREFIXES)} == hub
    in_memory = [module_name(name) for name in ours]
    assert len(set(in_memory)) == len(in_memory)
    assert [stored_name(name) for name in in_memory] == list(ours)
    assert all(module_name(name) == name for name in in_memory), "names of newer transformers mean themselves"


def test_published_shapes_of_the_7b():
    ours = shapes_of(config_of("7B"))
    assert {name: ours[name] for name in PUBLISHED_7B} == PUBLISHED_7B
    first = ("visual.blocks.0.", "model.layers.0.")
    kinds = {name for name in ours if not name.startswith(FRESH_PREFIXES)}
    repeated = {name for name in kinds if name.startswith(("visual.blocks.", "model.layers."))}
    assert {name for name in repeated if name.startswith(first)} | (kinds - repeated) == set(PUBLISHED_7B)


@sizes
def test_prototypes_and_decoder_have_the_size_that_their_layers_add_up_to(size):
    shapes = shapes_of(config_of(size))
    d, w, m = HUB[size]["hidden_size"], 1280, 3420
    square = w * w + w
    block = 3 * 4 * square + (w * m + m) + (m * w + w) + 6 * w
    inputs = d + (d * w + w) + square + 3 * w + w
    box, score = 2 * square + 4 * w + 4, w + 1
    mask = 2 * square + (w * w // 16 + w // 16) + square + w + (w // 4) ** 2 + w // 4
    assert count(shapes, "vl_decoder.") == 3 * block + w + inputs + box + score + mask
    assert count(shapes, "vis_norm.", "vis_proj.") == 2 * d + 2 * 64 * d


def test_released_names_are_ours(reference_fixture):
    from tests.parity.fixture import Fixture

    names = {name for name in Fixture(reference_fixture).tensors("model") if name.startswith(FRESH_PREFIXES)}
    for size in HUB:
        assert {name for name in shapes_of(config_of(size)) if name.startswith(FRESH_PREFIXES)} == names


@sizes
def test_a_full_size_base_fits_and_lacks_only_what_starts_fresh(size):
    config = config_of(size)
    fresh = check("somewhere", config, "hub", stored(plain_shapes(size)))
    assert fresh and all(name.startswith(FRESH_PREFIXES) for name in fresh)
    assert (
        check_weights(
            PaDTForConditionalGeneration,
            "somewhere",
            config,
            "padt",
            stored(shapes_of(config)),
        )
        == []
    )
    assert config.feature_order == "raster"
    assert config.vrt_offset == HUB[size]["vocab_size"]
    assert config.vl_decoder.hidden_size == 1280 and config.vl_decoder.num_heads == 16


def test_weights_of_one_size_do_not_pass_for_another():
    with pytest.raises(UserError, match=r"missing lm_head\.weight"):
        check("somewhere", config_of("7B"), "hub", stored(plain_shapes("3B")))
    shapes = {**plain_shapes("7B"), "model.norm.weight": (2048,)}
    with pytest.raises(UserError, match=r"other shape model\.norm\.weight \(2048, the configuration says 3584\)"):
        check("somewhere", config_of("7B"), "hub", stored(shapes))
