"""The front door to model folders of every layout, strict about every key.

Layouts: Qwen2.5-VL as on the Hub (prototypes and decoder start fresh), released PaDT (``model_type`` still says
``qwen2_5_vl``, with a ``vl_decoder`` section), and our own saves (``model_type`` ``padt``).
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from padt.data.processor import PaDTProcessor, read_json
from padt.errors import UserError
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import FeatureOrder, Layout, PaDTConfig, VLDecoderConfig, layout_of
from padt.pretrained.hub import model_folder
from padt.pretrained.quiet import quiet_transformers
from padt.pretrained.weights import FRESH_PREFIXES as FRESH_PREFIXES
from padt.pretrained.weights import StoredTensor, check_weights, read_tensors

if TYPE_CHECKING:
    from padt.pretrained.model_card import ModelFacts

logger = logging.getLogger(__name__)

# Loading more than this shows a progress bar.
LARGE_BYTES = 2**30
SHARD_SIZE = "5GB"
ADAPTER_CONFIG = "adapter_config.json"
_NATIVE_CLASS = "Qwen2_5_VLForConditionalGeneration"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


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


def load_config(path: str | os.PathLike, feature_order: FeatureOrder | None = None) -> tuple[PaDTConfig, Layout]:
    """Read a model folder's configuration in any layout.

    Returns:
        The configuration, and the layout: ``hub``, ``released`` or ``padt``.

    Raises:
        UserError: no such folder, no configuration, a model of another family, or sizes that do not fit together.
    """
    folder = model_folder(path)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} has no config.json: it is not a model folder, or its saving did not finish.")
    values = read_json(file)
    family = values.get("model_type")
    if family not in ("padt", "qwen2_5_vl"):
        raise UserError(f"{folder} holds a model of type {family!r}: PaDT takes 'padt' and 'qwen2_5_vl' folders.")
    layout = layout_of(values)
    try:
        config = PaDTConfig.from_dict(values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{file} cannot be used ({error}): put the value right, or copy the file again.") from error
    _check_sizes(file, config)
    if feature_order is not None:
        config.feature_order = feature_order
    return config, layout


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
    if (folder / ADAPTER_CONFIG).is_file():
        from padt.checkpoints.lora import load_merged

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


def load_strictly(
    load: Callable[..., Any],
    path: str | os.PathLike,
    *arguments: Any,
    config: PaDTConfig | None = None,
    feature_order: FeatureOrder | None = None,
    revision: str | None = None,
    output_loading_info: bool = False,
    **options: Any,
) -> Any:
    """What ``PaDTForConditionalGeneration.from_pretrained`` does around transformers' own: every layout, every key.

    Args:
        load: transformers' ``from_pretrained`` of the class.
        path: model folder or Hub repository.
        *arguments: for the model's constructor.
        config: in place of the folder's.
        feature_order: override the saved order of image features.
        revision: branch, tag or commit on the Hub.
        output_loading_info: also return transformers' report.
        **options: transformers' own.

    Raises:
        UserError: the folder cannot be used, or a key is missing, unexpected or of another shape.
    """
    register()
    folder = model_folder(path, revision)
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{folder} holds an adapter, not a whole model: load it with padt.load_model, which merges it.")
    saved, layout = load_config(folder, feature_order)
    config = config if isinstance(config, PaDTConfig) else saved
    stored = read_tensors(folder)
    fresh = check_weights(folder, config, layout, stored)
    if fresh:
        logger.warning("%s is plain Qwen2.5-VL: %d tensors of prototypes and decoder start fresh", path, len(fresh))
    large = sum(file.stat().st_size for file in {tensor.file for tensor in stored.values()}) > LARGE_BYTES
    try:
        with quiet_transformers(progress_bars=large):
            model, info = load(folder, *arguments, config=config, output_loading_info=True, **options)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The weights in {folder} cannot be read ({error}): check that the folder is whole.") from error
    # The files were held against the configuration before; this holds what was loaded against the files.
    lost = [key for key in info["missing_keys"] if not (fresh and key.startswith(FRESH_PREFIXES))]
    lost += [*info["unexpected_keys"], *(str(key) for key in info.get("mismatched_keys") or ())]
    if lost:
        raise UserError(
            f"transformers did not load {', '.join(sorted(lost)[:8])} from {folder}: its version does not read this "
            "layout; install the version in constraints-cpu.txt."
        )
    return (model, info) if output_loading_info else model


def load_processor(
    path: str | os.PathLike,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    revision: str | None = None,
) -> PaDTProcessor:
    """Load the processor of a model folder of any layout, or of a folder that holds our processor alone.

    Args:
        path: folder, or ``OWNER/NAME`` on the Hub.
        min_pixels: least area of resized images, in place of the saved one.
        max_pixels: largest area of resized images, in place of the saved one.
        revision: branch, tag or commit on the Hub.

    Raises:
        UserError: the folder has no tokenizer or image processor.
    """
    folder = model_folder(path, revision)
    offset = load_config(folder)[0].vrt_offset if (folder / "config.json").is_file() else None
    processor = PaDTProcessor.from_folder(folder, vrt_offset=offset)
    if min_pixels is not None or max_pixels is not None:
        size = processor.image_processor.size
        processor.image_processor.size = {
            "shortest_edge": min_pixels or size["shortest_edge"],
            "longest_edge": max_pixels or size["longest_edge"],
        }
    return processor


def save_model(
    model: PaDTForConditionalGeneration,
    processor: PaDTProcessor,
    folder: str | os.PathLike,
    *,
    facts: "ModelFacts | None" = None,
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
        save_beside(model, processor, partial, facts)

    return new_folder(folder, write)


def save_beside(
    model: PaDTForConditionalGeneration,
    processor: PaDTProcessor,
    folder: str | os.PathLike,
    facts: "ModelFacts | None" = None,
) -> None:
    """Write processor and model card beside a model's weights; a card that is there is replaced only by facts."""
    from padt.pretrained.model_card import CARD, ModelFacts, write_card

    processor.save_pretrained(folder)
    if facts is not None or not (Path(folder) / CARD).is_file():
        write_card(folder, facts or ModelFacts(), model.config)


def set_stop_tokens(model: PaDTForConditionalGeneration, processor: PaDTProcessor) -> None:
    """Make sure that answers end where a turn of the chat format ends, and that batches have a padding token."""
    settings = model.generation_config
    known = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if processor.end_token_id not in known:
        settings.eos_token_id = [processor.end_token_id, *(each for each in known if each is not None)]
    if settings.pad_token_id is None:
        settings.pad_token_id = processor.pad_token_id


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
    if choice not in _DTYPES:
        raise UserError(f"dtype {choice!r} is unknown: use auto, {', '.join(_DTYPES)}, or a torch type.")
    return _DTYPES[choice]


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


def _check_sizes(file: Path, config: PaDTConfig) -> None:
    decoder, vision, text = config.vl_decoder, config.vision_config, config.text_config
    assert isinstance(decoder, VLDecoderConfig)  # the configuration fills it in
    pairs = (
        ("vl_decoder.hidden_size", decoder.hidden_size, "vision_config.hidden_size", vision.hidden_size),
        ("vl_decoder.num_heads", decoder.num_heads, "vision_config.num_heads", vision.num_heads),
        ("vl_decoder.llm_hidden_state", decoder.llm_hidden_state, "hidden_size", text.hidden_size),
        ("vision_config.out_hidden_size", vision.out_hidden_size, "hidden_size", text.hidden_size),
    )
    for name, value, other, wanted in pairs:
        if value != wanted:
            raise UserError(f"{file}: {name} is {value} but {other} is {wanted}; the two must be equal.")
