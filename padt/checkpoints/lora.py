"""LoRA adapters on the language model (PEFT), beside prototypes and an object decoder that are trained whole.

An adapter folder holds PEFT's own two files, ``adapter_config.json`` (which names the base model) and
``adapter_model.safetensors``, with the wholly trained modules as PEFT's ``modules_to_save``, and the configuration and
processor of PaDT: ``padt.load_model`` takes it like any model folder and gives the merged model. Needs ``peft``, which
is imported when it is used.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from padt.errors import UserError, install_command
from padt.model.modeling import PaDTForConditionalGeneration
from padt.model.trainable import LoraSettings, is_adapter
from padt.pretrained.hub import new_folder, read_json
from padt.pretrained.strict import ADAPTER_CONFIG

WEIGHTS_FILE = "adapter_model.safetensors"
_LAYERS = r"model\.language_model\.layers\.\d+\."
_NAME = "default"
_PEFT_PREFIX = "base_model.model."
# Saved with every adapter, trained or not: the base may be plain Qwen2.5-VL, where they would start fresh again.
_WHOLE_MODULES = ("vis_norm", "vis_proj", "vl_decoder")


def attach(model: PaDTForConditionalGeneration, settings: LoraSettings, *, empty: bool = False) -> None:
    """Put fresh adapters into a model, in place; the model's answers do not change yet.

    All other parameters stop needing gradients: ``padt.model.trainable.freeze`` says which are trained beside them.

    Args:
        model: a model without adapters.
        settings: rank, scale, dropout, targets.
        empty: make the adapters on the meta device, to be filled by the caller.

    Raises:
        UserError: peft is missing, or the model has adapters already.
    """
    peft = _peft()
    if has_adapters(model):
        raise UserError("The model has LoRA adapters already: merge them first (padt.checkpoints.lora.merge).")
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        # The object decoder and the vision tower have maps of the same names: only layers of the language model fit.
        target_modules=_LAYERS + r".*\." + f"({'|'.join(settings.targets)})",
        bias="none",
    )
    peft.inject_adapter_in_model(config, model, adapter_name=_NAME, low_cpu_mem_usage=empty)


def reset(module: nn.Module) -> None:
    """Draw the first values of all adapters in a module, in its order, from torch's generator: their updates are 0."""
    for part in module.modules():
        draw: Any = getattr(part, "reset_lora_parameters", None)
        if draw is not None:
            draw(_NAME, True)


def has_adapters(model: nn.Module) -> bool:
    """Whether LoRA adapters are attached."""
    return any(is_adapter(name) for name, _ in model.named_parameters())


def merge(model: PaDTForConditionalGeneration) -> PaDTForConditionalGeneration:
    """Add attached adapters to the weights and take them off, in place: a plain PaDT model again.

    A model without adapters is returned as it is. Tied tables stay tied: adapters never touch them.

    Raises:
        UserError: an adapter holds NaN or infinity.
    """
    if not has_adapters(model):
        return model
    layers = _peft_layer_class()
    adapted: list[tuple[str, Any]] = [(name, part) for name, part in model.named_modules() if isinstance(part, layers)]
    for name, module in adapted:
        try:
            module.merge(safe_merge=True)
        except ValueError as error:
            raise UserError(f"The adapter of {name} cannot be merged: {error}") from error
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)
    return model


def save_adapter(
    model: PaDTForConditionalGeneration, processor: Any, folder: str | os.PathLike, base: str | os.PathLike
) -> Path:
    """Write the attached adapters, prototypes, decoder (and a trained vision tower) as an adapter folder.

    Args:
        model: with adapters attached.
        processor: the model's processor.
        folder: a new folder.
        base: folder of the model that the adapters were trained on; a path relative to ``folder`` is allowed.

    Raises:
        UserError: the folder exists, or the model has no adapters.
    """
    if not has_adapters(model):
        raise UserError("The model has no LoRA adapters to save: save it with padt.checkpoints.loading.save_model.")
    modules = list(_WHOLE_MODULES)
    if any(parameter.requires_grad for parameter in model.model.visual.parameters()):
        modules.append("model.visual")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _state(model, modules).items()}
    config = model.peft_config[_NAME].to_dict()
    config |= {"base_model_name_or_path": str(base), "modules_to_save": modules, "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}

    def write(partial: Path) -> None:
        save_file(state, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        (partial / ADAPTER_CONFIG).write_text(json.dumps(plain, indent=2), encoding="utf-8")
        model.config.save_pretrained(partial)
        processor.save_pretrained(partial)

    return new_folder(folder, write)


def is_adapter_folder(path: str | os.PathLike) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(path) / ADAPTER_CONFIG).is_file()


def base_of(path: str | os.PathLike) -> Path:
    """Folder of the model that an adapter was trained on.

    Raises:
        UserError: it is not there any more.
    """
    named = read_json(Path(path) / ADAPTER_CONFIG).get("base_model_name_or_path") or ""
    for candidate in (Path(path) / named, Path(named)):
        if named and (candidate / "config.json").is_file():
            return candidate
    raise UserError(
        f"The adapter {path} was trained on {named!r}, which is not there: put that model in its place, or write the "
        f"right path as base_model_name_or_path into {Path(path) / ADAPTER_CONFIG}."
    )


def load_adapter(model: PaDTForConditionalGeneration, path: str | os.PathLike) -> None:
    """Attach a saved adapter to its base model, in place, strictly; ``merge`` makes a plain model of the two.

    Raises:
        UserError: peft is missing, the files cannot be read, or a key is missing, unexpected or of another shape.
    """
    values = read_json(Path(path) / ADAPTER_CONFIG)
    if values.get("peft_type") != "LORA":
        raise UserError(f"{path} holds an adapter of type {values.get('peft_type')!r}: PaDT takes LORA.")
    config = _peft().LoraConfig.from_pretrained(str(path))
    modules, config.modules_to_save = config.modules_to_save or [], None
    _peft().inject_adapter_in_model(config, model, adapter_name=_NAME)
    try:
        saved = load_file(Path(path) / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The adapter {path} cannot be read ({error}): check that the folder is whole.") from error
    wanted = _state(model, modules)
    wrong = [f"missing {_short(key)}" for key in sorted(wanted.keys() - saved.keys())]
    wrong += [f"unexpected {_short(key)}" for key in sorted(saved.keys() - wanted.keys())]
    both = sorted(wanted.keys() & saved.keys())
    wrong += [f"other shape {_short(key)}" for key in both if wanted[key].shape != saved[key].shape]
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise UserError(f"The adapter {path} does not fit its base model: {shown}.")
    values = {_short(key): tensor for key, tensor in saved.items()}
    lost = _peft().set_peft_model_state_dict(model, values, adapter_name=_NAME).unexpected_keys
    if lost:
        raise UserError(
            f"peft did not load {', '.join(sorted(lost)[:8])} from {path}: its version names adapters otherwise; "
            "install the version in constraints-cpu.txt."
        )


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise UserError(f"LoRA needs the package peft: install it with `{install_command('train')}`.") from error
    return peft


def _peft_layer_class() -> type:
    _peft()
    from peft.tuners.tuners_utils import BaseTunerLayer

    return BaseTunerLayer


def _state(model: PaDTForConditionalGeneration, modules: Sequence[str]) -> dict[str, torch.Tensor]:
    """What an adapter's file holds, by the names there: adapters, and the wholly trained modules."""
    kept = tuple(f"{module}." for module in modules)
    state = _peft().get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)
    state |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith(kept)}
    return {_PEFT_PREFIX + name: tensor for name, tensor in state.items()}


def _short(key: str) -> str:
    return key.removeprefix(_PEFT_PREFIX)


__all__ = [
    "attach",
    "base_of",
    "has_adapters",
    "is_adapter_folder",
    "load_adapter",
    "merge",
    "reset",
    "save_adapter",
]
