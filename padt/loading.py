"""The front door to model folders of every layout, strict about every key.

Layouts: Qwen2.5-VL as on the Hub (prototypes and decoder start fresh), released PaDT (``model_type`` still says
``qwen2_5_vl``, with a ``vl_decoder`` section), and our own saves (``model_type`` ``padt``).
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from padt.config import FeatureOrder, PaDTConfig
from padt.errors import UserError
from padt.model.modeling import PaDTForConditionalGeneration
from padt.processor import PaDTProcessor, read_json
from padt.quiet import quiet_transformers

logger = logging.getLogger(__name__)

FRESH_PREFIXES = ("vis_norm.", "vis_proj.", "vl_decoder.")
# Loading more than this shows a progress bar.
LARGE_BYTES = 2**30
_NATIVE_CLASS = "Qwen2_5_VLForConditionalGeneration"


def register() -> None:
    """Make transformers know PaDT: auto classes for our own saves, and key conversion for this class name.

    Without the latter transformers 5 skips the renaming of Qwen2.5-VL's keys for any class that is not its own, and
    silently initialises the language model at random.
    """
    AutoConfig.register("padt", PaDTConfig, exist_ok=True)
    AutoModelForImageTextToText.register(PaDTConfig, PaDTForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(PaDTConfig, PaDTProcessor, exist_ok=True)
    register_checkpoint_conversion_mapping(
        PaDTForConditionalGeneration.__name__, get_checkpoint_conversion_mapping(_NATIVE_CLASS), overwrite=True
    )


def is_model_folder(path: str | os.PathLike) -> bool:
    """Whether a local folder holds a model of any of the layouts."""
    folder = Path(path)
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def load_config(path: str | os.PathLike, feature_order: FeatureOrder | None = None) -> tuple[PaDTConfig, str]:
    """Read a model folder's configuration in any layout.

    Returns:
        The configuration, and the layout: ``hub``, ``released`` or ``padt``.

    Raises:
        UserError: no such folder, no configuration, or a model of another family.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"There is no model folder {folder}: give the path of a folder with config.json and weights.")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: it is not a model folder, or its saving did not finish.")
    values = read_json(folder / "config.json")
    family = values.pop("model_type", None)
    if family not in ("padt", "qwen2_5_vl"):
        raise UserError(f"{folder} holds a model of type {family!r}: PaDT takes 'padt' and 'qwen2_5_vl' folders.")
    if family == "padt":
        layout = "padt"
    else:
        layout = "released" if values.get("vl_decoder") is not None else "hub"
        # A released folder knows nothing of the field: its weights need the mixed orders they were trained with.
        values.setdefault("feature_order", "reference" if layout == "released" else "raster")
    if isinstance(values.get("vl_decoder"), dict):
        # The released section fixes its attention kernel; ours follows the model's.
        values["vl_decoder"] = {
            k: v for k, v in values["vl_decoder"].items() if k not in ("attn_implementation", "name")
        }
    config = PaDTConfig(**values)
    if feature_order is not None:
        config.feature_order = feature_order
    return config, layout


def load_model(
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    attn_implementation: str = "auto",
    feature_order: FeatureOrder | None = None,
    with_processor: bool = True,
) -> PaDTForConditionalGeneration:
    """Load a PaDT model from a folder of any layout, in eval mode.

    Args:
        path: local model folder; of an adapter folder, base and adapter are merged.
        dtype: of the weights; by default fp32 on CPU, the saved type on an accelerator.
        device: where to put it; by default the accelerator if there is one.
        attn_implementation: ``auto``, ``sdpa``, ``eager`` or ``flash_attention_2``, for vision and language.
        feature_order: override the saved order of image features.
        with_processor: also load the processor, into ``model.processor``.

    Raises:
        UserError: the folder, its configuration or a key of its weights is missing, unexpected or of another shape.
    """
    if (Path(path) / "adapter_config.json").is_file():
        from padt.adapters import load_merged

        return load_merged(
            path,
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
            feature_order=feature_order,
            with_processor=with_processor,
        )
    register()
    config, layout = load_config(path, feature_order)
    target = torch.device(device) if device is not None else default_device()
    if dtype is None:
        dtype = torch.float32 if target.type == "cpu" else (config.dtype or torch.bfloat16)
    try:
        with quiet_transformers(progress_bars=_weight_bytes(path) > LARGE_BYTES):
            model, info = PaDTForConditionalGeneration.from_pretrained(
                Path(path),
                config=config,
                dtype=dtype,
                attn_implementation=resolve_attention(attn_implementation, target),
                # Tensors of another shape are refused with their names below; transformers' own error has none.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, SafetensorError) as error:
        raise UserError(f"The weights in {path} cannot be read ({error}): check that the folder is whole.") from error
    _check_keys(path, layout, info)
    if with_processor:
        model.processor = load_processor(path)
    return model.to(target).eval()


def load_processor(path: str | os.PathLike) -> PaDTProcessor:
    """Load the processor of a model folder of any layout.

    Raises:
        UserError: the folder has no tokenizer or image processor.
    """
    config, _ = load_config(path)
    return PaDTProcessor.from_folder(path, vrt_offset=config.vrt_offset)


def save_model(model: PaDTForConditionalGeneration, processor: PaDTProcessor, folder: str | os.PathLike) -> Path:
    """Save weights, configuration and processor as one folder, which appears under its name only when whole.

    Raises:
        UserError: the folder exists already.
    """

    def write(partial: Path) -> None:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)

    return new_folder(folder, write)


def new_folder(folder: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Make a folder that appears under its name only when ``write(partial folder)`` has filled it.

    Raises:
        UserError: the folder exists already.
    """
    target = Path(folder)
    if target.exists():
        raise UserError(f"{target} exists already: remove it or save under another name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        write(partial)
        partial.chmod(0o755)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_attention(choice: str, device: torch.device) -> str:
    """Turn ``auto`` into the attention kernel that is there, and say which once.

    Raises:
        UserError: the choice is unknown, or flash-attn is asked for but not installed.
    """
    from transformers.utils import is_flash_attn_2_available

    choices = ("auto", "sdpa", "eager", "flash_attention_2")
    if choice not in choices:
        raise UserError(f"attn_implementation {choice!r} is unknown: use one of {', '.join(choices)}.")
    flash = device.type == "cuda" and is_flash_attn_2_available()
    if choice == "flash_attention_2" and not flash:
        raise UserError("flash_attention_2 needs a CUDA device and the package flash-attn: use 'sdpa' or 'auto'.")
    resolved = ("flash_attention_2" if flash else "sdpa") if choice == "auto" else choice
    logger.info("attention of vision and language: %s (asked for: %s); object decoder: sdpa", resolved, choice)
    return resolved


def _weight_bytes(path: str | os.PathLike) -> int:
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))


def _check_keys(path, layout: str, info: dict[str, Any]) -> None:
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if layout == "hub":
        fresh = [key for key in missing if key.startswith(FRESH_PREFIXES)]
        missing = [key for key in missing if not key.startswith(FRESH_PREFIXES)]
        logger.warning("%s is plain Qwen2.5-VL: %d tensors of prototypes and decoder start fresh", path, len(fresh))
    wrong = [f"missing {key}" for key in missing] + [f"unexpected {key}" for key in unexpected]
    wrong += [f"other shape {key[0] if isinstance(key, tuple) else key}" for key in info.get("mismatched_keys") or ()]
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise UserError(
            f"The weights in {path} do not fit a {layout} model: {shown}. The folder is damaged or belongs to another "
            "model; load it with the configuration that it was saved with."
        )
