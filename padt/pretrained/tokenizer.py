"""The tokenizer of a model folder, without the tokens that stand for patches.

Released PaDT pads its tokenizer with ``<|empty_token_i|>`` up to the embedding rows and adds ``<|VRT_i|>`` behind; a
folder may have been saved before, between or after the two, so that a stored VRT has any id. Here the VRT of patch
``k`` is the id ``V + k`` and no token at all: stored ones are left out on reading, or a user's words could inject them.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from padt.errors import UserError
from padt.pretrained.config import PaDTConfig
from padt.pretrained.quiet import quiet_transformers

_STAND_IN = re.compile(r"<\|(?:VRT|empty_token)_\d+\|>")
# Files that may name added tokens; the rest of a tokenizer is copied as it is.
_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
_OTHER_FILES = ("vocab.json", "merges.txt", "config.json")


def load_tokenizer(folder: Path, rows: int) -> PreTrainedTokenizerBase:
    """Read a folder's tokenizer, of any layout.

    Args:
        folder: model folder.
        rows: ``V``, the embedding rows; every id must be below.

    Raises:
        UserError: there is no usable tokenizer, or it has ids that the model does not have.
    """
    if any(_STAND_IN.search(path.read_text(encoding="utf-8")) for path in _present(folder, _FILES)):
        with tempfile.TemporaryDirectory(prefix="padt-tokenizer-") as scratch:
            _copy_without(folder, Path(scratch))
            tokenizer = _read(Path(scratch), folder)
    else:
        tokenizer = _read(folder, folder)
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise UserError(
            f"The tokenizer in {folder} has {highest + 1} tokens but the model has {rows} embedding rows: it belongs "
            "to another model; copy the tokenizer files of this one."
        )
    return tokenizer


def _read(folder: Path, named: Path) -> PreTrainedTokenizerBase:
    # It looks into config.json. Where the model class has not been imported yet, it would ask at the terminal whether
    # the code that the file names for strangers may be run.
    AutoConfig.register(PaDTConfig.model_type, PaDTConfig, exist_ok=True)
    try:
        # And it warns of a model type that the tokenizer has nothing to do with.
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{named} has no usable tokenizer ({error}): save the model together with its processor."
        ) from error


def _copy_without(folder: Path, scratch: Path) -> None:
    for path in _present(folder, _OTHER_FILES):
        shutil.copyfile(path, scratch / path.name)
    for path in _present(folder, _FILES):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}): copy or save the folder again.") from error
        (scratch / path.name).write_text(json.dumps(_without(values), ensure_ascii=False), encoding="utf-8")


def _without(value: Any) -> Any:
    """A JSON value without every entry that is, names or describes a stand-in token."""
    if isinstance(value, dict):
        return {key: _without(each) for key, each in value.items() if not _names(key) and not _names(each)}
    if isinstance(value, list):
        return [_without(each) for each in value if not _names(each)]
    return value


def _names(value: Any) -> bool:
    text = value.get("content") if isinstance(value, dict) else value
    return isinstance(text, str) and _STAND_IN.fullmatch(text) is not None


def _present(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]
