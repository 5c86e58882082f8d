"""Model folders that the tests of loading and exporting share."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.padt.tiny import tiny_config, tiny_processor


def hub_folder(folder: Path, tied: bool = True, **options) -> Qwen2_5_VLForConditionalGeneration:
    """A plain Qwen2.5-VL as on the Hub: old key names, no prototypes, no decoder."""
    values = tiny_config(tied).to_dict()
    ours = ("vl_decoder", "feature_order", "use_visual_prototype_projection", "prototype_rank", "model_type")
    config = Qwen2_5_VLConfig(**{key: value for key, value in values.items() if key not in ours})
    torch.manual_seed(1)
    plain = Qwen2_5_VLForConditionalGeneration(config).eval()
    plain.save_pretrained(folder, **options)
    tiny_processor().save_pretrained(folder)
    return plain


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All stored tensors, of one file or many."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a single file."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(file: Path, **values) -> None:
    """Set values of a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, **values}), encoding="utf-8")


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors have the same names, types and bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )
