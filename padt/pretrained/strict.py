"""What the model class does around transformers' loading and saving: every layout, every key, card and processor."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import ProcessorMixin

from padt.errors import UserError
from padt.pretrained.config import FeatureOrder, PaDTConfig, load_config
from padt.pretrained.hub import model_folder
from padt.pretrained.model_card import CARD, ModelFacts, write_card
from padt.pretrained.quiet import quiet_transformers
from padt.pretrained.weights import FRESH_PREFIXES, check_weights, read_tensors

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
# Loading more than this shows a progress bar.
LARGE_BYTES = 2**30


def load_strictly(
    model_class: type,
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
        model_class: the model's class.
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
    folder = model_folder(path, revision)
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{folder} holds an adapter, not a whole model: load it with padt.load_model, which merges it.")
    saved, layout = load_config(folder, feature_order)
    config = config if isinstance(config, PaDTConfig) else saved
    stored = read_tensors(folder)
    fresh = check_weights(model_class, folder, config, layout, stored)
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


def save_beside(
    processor: ProcessorMixin, config: PaDTConfig, folder: str | os.PathLike, facts: ModelFacts | None = None
) -> None:
    """Write processor and model card beside a model's weights; a card that is there is replaced only by facts."""
    processor.save_pretrained(folder)
    if facts is not None or not (Path(folder) / CARD).is_file():
        write_card(folder, facts or ModelFacts(), config)
