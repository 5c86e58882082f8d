"""The front door to model folders of every layout, strict about every key.

Layouts: Qwen2.5-VL as on the Hub (prototypes and decoder start fresh), released PaDT (``model_type`` still says
``qwen2_5_vl``, with a ``vl_decoder`` section), and our own saves (``model_type`` ``padt``).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from padt.checkpoints.lora import base_of, is_adapter_folder, load_adapter, merge
from padt.data.processor import PaDTProcessor, load_processor
from padt.errors import UserError, look_up
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import FeatureOrder, PaDTConfig, load_config
from padt.pretrained.hub import model_folder, new_folder
from padt.pretrained.model_card import ModelFacts
from padt.pretrained.quiet import quiet_transformers
from padt.pretrained.strict import save_beside
from padt.pretrained.weights import StoredTensor, read_tensors

logger = logging.getLogger(__name__)

SHARD_SIZE = "5GB"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def load_model(
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str = "auto",
    feature_order: FeatureOrder | None = None,
    with_processor: bool = True,
    revision: str | None = None,
    seed: int | None = None,
) -> PaDTForConditionalGeneration:
    """Load a PaDT model from a folder of any layout, in eval mode.

    Args:
        path: model folder, or ``OWNER/NAME`` on the Hub; of an adapter folder, base and adapter are merged.
        dtype: of the weights: a torch type or its name; ``auto`` = as saved; by default fp32 on CPU, as saved on an
            accelerator.
        device: where to put it; by default the accelerator if there is one.
        device_map: in place of ``device``: ``auto`` or a map of modules to devices (needs accelerate).
        attn_implementation: ``auto``, ``sdpa``, ``eager`` or ``flash_attention_2``, for vision and language.
        feature_order: override the saved order of image features.
        with_processor: also load the processor, into ``model.processor``.
        revision: branch, tag or commit on the Hub.
        seed: of the parts that start fresh in plain Qwen2.5-VL, leaving torch's own generator alone; by default they
            are drawn from that generator.

    Raises:
        UserError: the folder, its configuration or a key of its weights is missing, unexpected or of another shape.
    """
    if device is not None and device_map is not None:
        raise UserError("Give device or device_map, not both.")
    if device_map is not None:
        _need_accelerate()
    folder = model_folder(path, revision)
    if is_adapter_folder(folder):
        return load_merged(
            folder,
            dtype=dtype,
            device=device,
            device_map=device_map,
            attn_implementation=attn_implementation,
            feature_order=feature_order,
            with_processor=with_processor,
        )
    config, _ = load_config(folder, feature_order)
    target = torch.device(device) if device is not None else default_device()
    stored = read_tensors(folder)
    with _fresh_parts_from(seed):
        model = PaDTForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=resolve_dtype(dtype, target, config, stored),
            attn_implementation=resolve_attention(attn_implementation, target),
            device_map=device_map,
        )
    if with_processor:
        model.processor = load_processor(folder)
        set_stop_tokens(model, model.processor)
    return (model if device_map is not None else model.to(target)).eval()


def load_merged(path: str | os.PathLike, **options: Any) -> PaDTForConditionalGeneration:
    """The model of an adapter folder: its base with the adapter merged, and the adapter's own processor.

    Args:
        path: adapter folder.
        **options: as for ``padt.load_model``.

    Raises:
        UserError: base or adapter cannot be loaded.
    """
    with_processor = options.pop("with_processor", True)
    model = load_model(base_of(path), **options, with_processor=False)
    load_adapter(model, path)
    merge(model)
    if with_processor:
        model.processor = load_processor(path)
    return model.eval()


def save_model(
    model: PaDTForConditionalGeneration,
    processor: PaDTProcessor,
    folder: str | os.PathLike,
    *,
    facts: ModelFacts | None = None,
    max_shard_size: int | str = SHARD_SIZE,
) -> Path:
    """Save weights, configuration, processor and model card as one folder, which appears only when whole.

    Args:
        model: without adapters (``padt.checkpoints.lora.merge``).
        processor: its processor.
        folder: a new folder.
        facts: what the model card says about the model's making.
        max_shard_size: largest weight file.

    Raises:
        UserError: the folder exists already.
    """

    def write(partial: Path) -> None:
        set_stop_tokens(model, processor)
        with quiet_transformers():
            model.save_pretrained(partial, max_shard_size=max_shard_size)
        save_beside(processor, model.config, partial, facts)

    return new_folder(folder, write)


def set_stop_tokens(model: PaDTForConditionalGeneration, processor: PaDTProcessor) -> None:
    """Make sure that answers end where a turn of the chat format ends, and that batches have a padding token."""
    settings = model.generation_config
    known = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if processor.end_token_id not in known:
        settings.eos_token_id = [processor.end_token_id, *(each for each in known if each is not None)]
    if settings.pad_token_id is None:
        settings.pad_token_id = processor.pad_token_id


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(
    choice: torch.dtype | str | None, target: torch.device, config: PaDTConfig, stored: dict[str, StoredTensor]
) -> torch.dtype:
    """The type of the weights in memory: see ``load_model``.

    Raises:
        UserError: the name is unknown.
    """
    if isinstance(choice, torch.dtype):
        return choice
    if choice is None and target.type == "cpu":
        return torch.float32
    if choice is None or choice == "auto":
        tensor = next(iter(stored.values()))
        return config.dtype or _STORED_DTYPES.get(tensor.dtype, torch.bfloat16)
    return look_up("dtype", choice, _DTYPES)


def loaded_dtype(path: str | os.PathLike, choice: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The type that ``load_model`` would give a model's weights on a device.

    Raises:
        UserError: the name is unknown, or the folder holds no model.
    """
    folder = Path(base_of(path) if is_adapter_folder(path) else path)
    return resolve_dtype(choice, device, load_config(folder)[0], read_tensors(folder))


def resolve_attention(choice: str, device: torch.device) -> str:
    """Turn ``auto`` into the attention kernel that is there, and say which once.

    Raises:
        UserError: the choice is unknown, or flash-attn is asked for but not installed.
    """
    from transformers.utils import is_flash_attn_2_available

    look_up("attn_implementation", choice, dict.fromkeys(("auto", "sdpa", "eager", "flash_attention_2")))
    flash = device.type == "cuda" and is_flash_attn_2_available()
    if choice == "flash_attention_2" and not flash:
        raise UserError("flash_attention_2 needs a CUDA device and the package flash-attn: use 'sdpa' or 'auto'.")
    resolved = ("flash_attention_2" if flash else "sdpa") if choice == "auto" else choice
    logger.info(
        "attention of vision and language: %s (asked for: %s); the object decoder has its own", resolved, choice
    )
    return resolved


@contextmanager
def _fresh_parts_from(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _need_accelerate() -> None:
    from transformers.utils import is_accelerate_available

    if not is_accelerate_available():
        raise UserError("device_map needs the package accelerate: pip install accelerate, or give device instead.")
