"""``config.json`` and tokenizer files as other code reads them: Qwen2.5-VL's on the Hub, and released PaDT's.

Both are flat: the language model's fields stand at the top level, as transformers before version 5 wrote them; newer
versions read them too.
"""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, Qwen2_5_VLConfig

from padt.data.processor import PaDTProcessor
from padt.pretrained.config import Layout, PaDTConfig, VLDecoderConfig
from padt.pretrained.hub import read_json

ARCHITECTURES = {"hub": "Qwen2_5_VLForConditionalGeneration", "released": "PaDTForConditionalGeneration"}
# Fields of the decoder's section that the released code knows; others would stop it.
_RELEASED_DECODER = (
    *("hidden_size", "intermediate_size", "num_heads", "llm_hidden_state", "spatial_merge_size", "use_mask_loss"),
)
_ALWAYS = ("feature_order", "use_visual_prototype_projection")
_COMMON = {each.name for each in fields(PreTrainedConfig)}
# Computed from other fields, or written in the former way below.
_REWRITTEN = {"layer_types", "rope_parameters"}


def config_values(config: PaDTConfig, layout: Layout, dtype: str) -> dict[str, Any]:
    """Values of the ``config.json`` of a ``hub`` or ``released`` folder.

    Args:
        config: of the model.
        layout: ``hub`` leaves PaDT's own fields out.
        dtype: of the weights, such as ``bfloat16``.
    """
    values: dict[str, Any] = {"architectures": [ARCHITECTURES[layout]], "model_type": "qwen2_5_vl"}
    values.update(_own_fields(config.text_config))
    rope = dict(config.text_config.rope_parameters)
    values["rope_theta"] = rope.pop("rope_theta")
    kind = rope.get("rope_type", "default")
    # "mrope" is what the Hub calls the default kind with three sections.
    values["rope_scaling"] = {**rope, "type": "mrope" if kind == "default" else kind}
    values["vision_config"] = {**_own_fields(config.vision_config), "model_type": "qwen2_5_vl"}
    if usual_vision_rotary(config) != config.vision_config.rope_parameters:
        values["vision_config"]["rope_parameters"] = dict(config.vision_config.rope_parameters)
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        values[name] = getattr(config, name)
    values["tie_word_embeddings"] = bool(config.tie_word_embeddings)
    values["torch_dtype"] = dtype
    if layout == "released":
        values.update(_padt_fields(config))
    return values


def usual_vision_rotary(config: PaDTConfig) -> dict[str, Any]:
    """Rotary parameters of the vision tower that code takes for granted which has no field for them."""
    return type(config.vision_config)().rope_parameters


def lost_fields(config: PaDTConfig, values: dict[str, Any], layout: Layout) -> list[str]:
    """Fields of a configuration that do not come back from the values written for it."""
    again = PaDTConfig.from_dict(copy.deepcopy(values))
    sections = {"": (config, again)}
    for name in ("text_config", "vision_config", *(("vl_decoder",) if layout == "released" else ())):
        sections[f"{name}."] = (getattr(config, name), getattr(again, name))
    top = {each.name for each in fields(PaDTConfig if layout == "released" else Qwen2_5_VLConfig)}
    lost = []
    for prefix, (before, after) in sections.items():
        names = top if not prefix else {each.name for each in fields(before)}
        for name in sorted(names - _COMMON - set(PaDTConfig.sub_configs_defaults)):
            if _plain(getattr(before, name)) != _plain(getattr(after, name)):
                lost.append(prefix + name)
    return lost


def _plain(value: Any) -> Any:
    # "type" is the former word for "rope_type".
    return {key: each for key, each in value.items() if key != "type"} if isinstance(value, dict) else value


def _padt_fields(config: PaDTConfig) -> dict[str, Any]:
    inherited = {each.name for each in fields(Qwen2_5_VLConfig)} | {"vl_decoder"}
    plain = config.to_dict()
    # The order is always said; of the rest only what is not as usual.
    values = {
        each.name: plain[each.name]
        for each in fields(PaDTConfig)
        if each.name not in inherited and (each.name in _ALWAYS or plain[each.name] != each.default)
    }
    decoder = _own_fields(config.vl_decoder)
    values["vl_decoder"] = {
        "name": "PaDTDecoder",
        "attn_implementation": "flash_attention_2",
        **{name: decoder.pop(name) for name in _RELEASED_DECODER},
    }
    usual = VLDecoderConfig()
    changed = {name: value for name, value in decoder.items() if value != getattr(usual, name)}
    if changed:
        values["vl_decoder_extra"] = changed
    return values


def _own_fields(config: PreTrainedConfig) -> dict[str, Any]:
    names = [each.name for each in fields(config) if each.name not in _COMMON | _REWRITTEN]
    return {name: getattr(config, name) for name in names}


def generation_values(processor: PaDTProcessor, saved: dict[str, Any]) -> dict[str, Any]:
    """Values of a ``generation_config.json``: the saved ones, ending where a turn of the chat format ends."""
    values = {key: value for key, value in saved.items() if not key.startswith("_") and key != "transformers_version"}
    ends = values.get("eos_token_id")
    known = ends if isinstance(ends, list) else [ends]
    if processor.end_token_id not in known:
        known = [processor.end_token_id, *(each for each in known if each is not None)]
    values["eos_token_id"] = known if len(known) > 1 else known[0]
    if values.get("pad_token_id") is None:
        values["pad_token_id"] = processor.pad_token_id
    return values


def image_processor_values(processor: PaDTProcessor) -> dict[str, Any]:
    """Values of a ``preprocessor_config.json`` that transformers 4 and 5 read."""
    policy, images = processor.policy, processor.image_processor
    names = ("do_convert_rgb", "do_normalize", "do_rescale", "do_resize", "image_mean", "image_std", "rescale_factor")
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        **{name: getattr(images, name) for name in names},
        "resample": int(images.resample),
        "min_pixels": policy.min_pixels,
        "max_pixels": policy.max_pixels,
        "size": {"shortest_edge": policy.min_pixels, "longest_edge": policy.max_pixels},
        **{name: getattr(images, name) for name in ("patch_size", "temporal_patch_size", "merge_size")},
    }


def save_tokenizer(processor: PaDTProcessor, folder: Path) -> dict[str, Any]:
    """Write the tokenizer's own files; returns the values for a ``tokenizer_config.json`` that transformers 4 reads.

    Version 5 names a general class that version 4 does not have, and lists extra tokens where it expects a map.
    """
    processor.tokenizer.save_pretrained(folder)
    processor.tokenizer.backend_tokenizer.model.save(str(folder))
    values = read_json(folder / "tokenizer_config.json")
    for name in ("backend", "is_local", "local_files_only"):
        values.pop(name, None)
    if values.get("tokenizer_class") in (None, "TokenizersBackend"):
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = values.get("extra_special_tokens")
    if isinstance(extra, list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    values["processor_class"] = "Qwen2_5_VLProcessor"
    values["chat_template"] = processor.chat_template
    return values
