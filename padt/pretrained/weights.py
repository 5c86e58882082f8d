"""The tensors of a model folder, read from the headers of its files: what is there, what is missing, what fits.

All layouts store the names that Qwen2.5-VL has on the Hub (``visual.*``, ``model.*``, ``lm_head.*``), PaDT's own beside
them (``vis_norm.*``, ``vis_proj.*``, ``vl_decoder.*``). The names that transformers 5 gives the modules in memory
(``model.visual.*``, ``model.language_model.*``) are read as well, never written.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.initialization import no_init_weights

from padt.errors import UserError
from padt.pretrained.config import Layout, PaDTConfig
from padt.pretrained.hub import model_folder, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Parts that plain Qwen2.5-VL does not have.
FRESH_PREFIXES = ("vis_norm.", "vis_proj.", "vl_decoder.")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_SHOWN = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        name: as in the file.
        file: safetensors file.
        shape: its shape.
        dtype: as safetensors writes it, such as ``BF16``.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        bits = re.search(r"\d+", self.dtype)
        return self.elements * (int(bits[0]) // 8 if bits else 1)


def module_name(stored: str) -> str:
    """Name of a stored tensor's parameter in the model in memory."""
    if stored.startswith("visual."):
        return f"model.{stored}"
    if stored.startswith("model.") and not stored.startswith(("model.visual.", "model.language_model.")):
        return "model.language_model." + stored.removeprefix("model.")
    return stored


def stored_name(name: str) -> str:
    """Name under which a parameter of the model in memory is stored: the one that all layouts share."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name


def read_tensors(folder: str | os.PathLike) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by its stored name (``stored_name``), from the files' headers alone.

    Raises:
        UserError: no weights, weights of another format, files missing or damaged, or a tensor that is there twice.
    """
    folder = model_folder(folder)
    found: dict[str, StoredTensor] = {}
    files, listed = weight_files(folder)
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118
                    view = handle.get_slice(name)
                    tensor = StoredTensor(name, file, tuple(view.get_shape()), view.get_dtype())
                    key = stored_name(module_name(name))
                    if key in found:
                        raise UserError(
                            f"{folder} holds {key} twice, in {found[key].file.name} and in {file.name}: keep the files "
                            "of one save only."
                        )
                    found[key] = tensor
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} cannot be read as safetensors ({error}): it is damaged or was copied in part; copy it again."
            ) from error
    absent = [name for name in listed if stored_name(module_name(name)) not in found]
    if absent:
        raise UserError(
            f"{folder / INDEX} lists tensors that its files do not hold: {_few(absent)}. The files and the index "
            "are of different saves; copy the folder again."
        )
    return found


def weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Files with the weights of a model folder, and the tensors that its index lists (none for a single file).

    Raises:
        UserError: there are none, some are missing, or it is not clear which to take.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise UserError(
            f"{folder} holds both {SINGLE} and {INDEX}, which are two saves: remove the one that is not meant."
        )
    if single.is_file():
        return [single], []
    if not index.is_file():
        raise UserError(_no_weights(folder))
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index} has no weight_map: copy or save the folder again.")
    files = [folder / name for name in sorted(set(listed.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(
            f"{folder} lacks {len(absent)} of its {len(files)} weight files: {_few(absent)}. It was copied in part; "
            "fetch the rest."
        )
    return files, list(listed)


def expected_shapes(model_class: type, config: PaDTConfig) -> dict[str, tuple[int, ...]]:
    """Stored name and shape of every tensor of a PaDT model; without the head where it is tied to the embedding."""
    with torch.device("meta"), no_init_weights():
        model = model_class(config)
    shapes = {stored_name(name): tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop(HEAD)
    return shapes


def check_weights(
    model_class: type,
    folder: str | os.PathLike,
    config: PaDTConfig,
    layout: Layout,
    stored: Mapping[str, StoredTensor] | None = None,
) -> list[str]:
    """Hold the files of a folder against its configuration, before anything is loaded.

    Args:
        model_class: class of the model.
        folder: model folder.
        config: its configuration.
        layout: its layout; ``hub`` lacks prototypes and decoder.
        stored: its tensors, where they have been read already.

    Returns:
        Stored names of the parameters that the folder does not have and that start fresh (``hub`` only).

    Raises:
        UserError: a tensor is missing, unexpected or of another shape; names it. A tied model may store its head only
            if it equals the embedding.
    """
    stored = read_tensors(folder) if stored is None else stored
    expected = expected_shapes(model_class, config)
    extra = [key for key in stored if key.startswith(FRESH_PREFIXES)]
    if layout == "hub" and extra:
        raise UserError(
            f"{folder} holds weights of PaDT ({_few(extra)}) but its config.json has no vl_decoder section: put the "
            "config.json back that belongs to them."
        )
    fresh = [key for key in expected if key.startswith(FRESH_PREFIXES)] if layout == "hub" else []
    _check_head(folder, config, stored)
    wrong = [f"missing {key}" for key in sorted(expected.keys() - stored.keys() - set(fresh))]
    wrong += [f"unexpected {key}" for key in sorted(stored.keys() - expected.keys() - {HEAD})]
    wrong += [
        f"other shape {key} ({_by(stored[key].shape)}, the configuration says {_by(shape)})"
        for key, shape in sorted(expected.items())
        if key in stored and stored[key].shape != shape
    ]
    if wrong:
        raise UserError(
            f"The weights in {folder} do not fit a {layout} model: {_few(wrong, '; ')}. The folder is damaged or "
            "belongs to another model; load it with the configuration that it was saved with."
        )
    return fresh


def read_tensor(tensor: StoredTensor) -> torch.Tensor:
    """The values of a stored tensor, of its ``shape``."""
    with safe_open(tensor.file, framework="pt") as handle:
        return handle.get_tensor(tensor.name)


def _check_head(folder: str | os.PathLike, config: PaDTConfig, stored: Mapping[str, StoredTensor]) -> None:
    where = f"{Path(folder) / 'config.json'} says tie_word_embeddings"
    if not config.tie_word_embeddings:
        if HEAD not in stored:
            raise UserError(
                f"The weights in {folder} do not fit: missing {HEAD}, and {where} = false: copy the folder again, or "
                "set it to true if the model was trained with one table for both."
            )
        return
    if HEAD not in stored or EMBEDDING not in stored:
        return
    same_shape = stored[HEAD].shape == stored[EMBEDDING].shape
    if not same_shape or not torch.equal(read_tensor(stored[HEAD]), read_tensor(stored[EMBEDDING])):
        raise UserError(
            f"The weights in {folder} do not fit: {HEAD} differs from {EMBEDDING}, but {where} = true: set it to "
            "false, wherever it stands there, if the head was trained apart."
        )


def _no_weights(folder: Path) -> str:
    parts = sorted(file.name for file in folder.glob("*.safetensors"))
    if parts:
        return (
            f"{folder} has neither {SINGLE} nor {INDEX}, only {_few(parts)}: fetch the index, which says which tensor "
            "is where."
        )
    pickles = sorted(file.name for file in folder.glob("*.bin")) + sorted(file.name for file in folder.glob("*.pt*"))
    if pickles:
        return (
            f"{folder} has its weights as pickles only ({_few(pickles)}), which can run code when they are opened: "
            "take the safetensors files of this model, or load the pickles with transformers and save them again with "
            "save_pretrained."
        )
    return f"{folder} has no weights: there should be {SINGLE}, or {INDEX} with its files."


def _few(items: Iterable[str], separator: str = ", ") -> str:
    items = list(items)
    more = f"{separator}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
