"""Writing a model in another layout: plain Qwen2.5-VL as on the Hub, released PaDT, or our own.

Tensors go from file to file, one shard at a time, as they are: nothing is loaded into a model, no value changes.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file

from padt.checkpoints.layouts import (
    config_values,
    generation_values,
    image_processor_values,
    lost_fields,
    save_tokenizer,
    usual_vision_rotary,
)
from padt.checkpoints.loading import SHARD_SIZE, load_model, save_model
from padt.checkpoints.lora import is_adapter_folder
from padt.data.processor import PaDTProcessor, load_processor
from padt.errors import UserError, look_up
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.auto_code import add_auto_code
from padt.pretrained.config import Layout, PaDTConfig, load_config
from padt.pretrained.hub import model_folder, new_folder, read_json
from padt.pretrained.model_card import read_facts, write_card
from padt.pretrained.weights import FRESH_PREFIXES, HEAD, INDEX, StoredTensor, check_weights, read_tensors

logger = logging.getLogger(__name__)

ExportLayout = Literal["hub", "released", "padt"]
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
# The released code builds its low-rank map with this width, whatever the configuration says.
_RELEASED_RANK = 64


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        folder: where.
        layout: ``hub``, ``released`` or ``padt``.
        source_layout: of the model that was exported.
        files: names of the weight files.
        tensors: number of tensors written.
        parameters: number of their values.
        nbytes: their size.
        dropped: stored names of tensors that the layout has no place for.
        notes: what a user of the folder has to know, one sentence each.
    """

    folder: Path
    layout: ExportLayout
    source_layout: Layout
    files: tuple[str, ...]
    tensors: int
    parameters: int
    nbytes: int
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    model: str | os.PathLike,
    out: str | os.PathLike,
    to: ExportLayout,
    *,
    max_shard_size: int | str = SHARD_SIZE,
) -> ExportResult:
    """Write a model folder in another layout, every kept tensor bit by bit.

    Args:
        model: folder of any layout, or ``OWNER/NAME`` on the Hub; of an adapter folder, base and adapter are merged.
        out: a new folder, which appears only when whole.
        to: ``hub``: plain Qwen2.5-VL, without prototypes and decoder; ``released``: as the released PaDT code reads it;
            ``padt``: as training leaves it.
        max_shard_size: largest weight file, in bytes or as ``5GB``.

    Raises:
        UserError: the model cannot be read, has no decoder to release, or the output folder exists.
    """
    look_up("Layout", to, dict.fromkeys(get_args(ExportLayout)))
    if Path(out).exists():
        raise UserError(f"{out} exists already: remove it or export under another name.")
    folder = model_folder(model)
    if is_adapter_folder(folder):
        with TemporaryDirectory(prefix=".padt-merged-", dir=Path(out).absolute().parent) as scratch:
            merged = load_model(folder, dtype="auto", device="cpu")
            saved = save_model(merged, merged.processor, Path(scratch) / "model", facts=read_facts(folder))
            return export(saved, out, to, max_shard_size=max_shard_size)
    config, source_layout = load_config(folder)
    stored = read_tensors(folder)
    check_weights(PaDTForConditionalGeneration, folder, config, source_layout, stored)
    if to != "hub" and source_layout == "hub":
        raise UserError(f"{folder} is plain Qwen2.5-VL, without prototypes and decoder: train it first.")
    if to == "padt":
        return _save_again(folder, Path(out), source_layout, max_shard_size)
    kept, dropped = _select(stored, config, to)
    values = config_values(config, to, _dtype_name(kept))
    lost = lost_fields(config, values, to)
    if lost:
        raise UserError(
            f"The {to} layout has no place for {', '.join(lost)} of {folder}/config.json: it would answer otherwise."
        )
    notes = _notes(config, to, source_layout, dropped)
    for note in notes:
        logger.warning("%s", note)
    processor = load_processor(folder)
    files: list[str] = []

    def write(partial: Path) -> None:
        files.extend(_write_weights(kept, partial, max_shard_size))
        _write_json(partial / "config.json", values)
        _write_processor(processor, partial, read_json(folder / "generation_config.json"))
        if to == "released":
            add_auto_code(partial)
        write_card(partial, read_facts(folder), config, layout=to)

    new_folder(out, write)
    return ExportResult(
        folder=Path(out),
        layout=to,
        source_layout=source_layout,
        files=tuple(files),
        tensors=len(kept),
        parameters=sum(tensor.elements for tensor in kept.values()),
        nbytes=sum(tensor.nbytes for tensor in kept.values()),
        dropped=tuple(dropped),
        notes=tuple(notes),
    )


def _save_again(folder: Path, out: Path, source: Layout, max_shard_size: int | str) -> ExportResult:
    model = load_model(folder, dtype="auto", device="cpu")
    save_model(model, model.processor, out, facts=read_facts(folder), max_shard_size=max_shard_size)
    return describe(out, source)


def describe(folder: Path, source: Layout) -> ExportResult:
    """What lies in a folder that was written in our own layout.

    Args:
        folder: the model.
        source: layout that it was read in.
    """
    stored = read_tensors(folder)
    return ExportResult(
        folder=folder,
        layout="padt",
        source_layout=source,
        files=tuple(sorted({Path(tensor.file).name for tensor in stored.values()})),
        tensors=len(stored),
        parameters=sum(tensor.elements for tensor in stored.values()),
        nbytes=sum(tensor.nbytes for tensor in stored.values()),
        dropped=(),
        notes=(),
    )


def _select(
    stored: dict[str, StoredTensor], config: PaDTConfig, to: ExportLayout
) -> tuple[dict[str, StoredTensor], list[str]]:
    # A tied model's head is its embedding; what stored it twice is written once.
    kept = {key: value for key, value in stored.items() if not (config.tie_word_embeddings and key == HEAD)}
    dropped = [key for key in kept if to == "hub" and key.startswith(FRESH_PREFIXES)]
    return {key: value for key, value in kept.items() if key not in set(dropped)}, dropped


def _notes(config: PaDTConfig, to: ExportLayout, source: Layout, dropped: list[str]) -> list[str]:
    notes = []
    if to == "hub" and source != "hub":
        notes.append(
            f"Plain Qwen2.5-VL has no prototypes and no object decoder: {len(dropped)} tensors were left out, and the "
            "folder answers with words only."
        )
    if config.vision_config.rope_parameters != usual_vision_rotary(config):
        notes.append(
            "The vision tower has unusual rotary parameters. config.json gives them, and transformers 5 reads them; "
            "older code does not know the field and would answer otherwise."
        )
    if to == "released" and config.feature_order == "raster":
        notes.append(
            "The weights are for image features in raster order. config.json says so, and padt reads it; the released "
            "code does not know the field and takes its own order, so that boxes and masks would be wrong there."
        )
    if to == "released" and config.score_calibration is not None:
        notes.append(
            "Scores are calibrated by score_calibration in config.json, which padt reads; the released code does not "
            "know the field and gives the decoder's own scores."
        )
    if to == "released" and config.use_visual_prototype_projection and config.prototype_rank != _RELEASED_RANK:
        notes.append(
            f"The released code builds prototypes of rank {_RELEASED_RANK} only; these have {config.prototype_rank}, "
            "and padt alone will read them."
        )
    return notes


def _write_weights(tensors: dict[str, StoredTensor], folder: Path, max_shard_size: int | str) -> list[str]:
    try:
        split = split_state_dict_into_shards_factory(
            tensors,
            get_storage_size=lambda tensor: tensor.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise UserError(
            f"max_shard_size {max_shard_size!r} is not a size ({error}): write it as 5GB or 500MB."
        ) from error
    for name, keys in split.filename_to_tensors.items():
        values = {}
        for file in dict.fromkeys(tensors[key].file for key in keys):
            with safe_open(file, framework="pt") as handle:
                values.update({k: handle.get_tensor(tensors[k].name) for k in keys if tensors[k].file == file})
        save_file(values, folder / name, metadata={"format": "pt"})
    if split.is_sharded:
        _write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    return list(split.filename_to_tensors)


def _write_processor(processor: PaDTProcessor, folder: Path, saved_generation: dict[str, Any]) -> None:
    _write_json(folder / "tokenizer_config.json", save_tokenizer(processor, folder))
    _write_json(folder / "preprocessor_config.json", image_processor_values(processor))
    _write_json(folder / "chat_template.json", {"chat_template": processor.chat_template})
    _write_json(folder / "generation_config.json", generation_values(processor, saved_generation))


def _dtype_name(tensors: dict[str, StoredTensor]) -> str:
    return _DTYPE_NAMES.get(next(iter(tensors.values())).dtype, "float32")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
