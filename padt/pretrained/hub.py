"""A model's folder: local, or a repository of the Hugging Face Hub fetched into its cache; reading and making one."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from padt.errors import UserError

# Weights, configuration, tokenizer and processor; no pickles, no pictures.
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "README.md")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(reference: str | os.PathLike) -> bool:
    """Whether a reference that is no local folder can only mean a Hub repository ``owner/name``.

    ``runs/modle`` beside an existing folder ``runs`` is a mistyped path, not a repository.
    """
    text = os.fspath(reference)
    return _HUB_ID.fullmatch(text) is not None and not Path(text).exists() and not Path(text).parent.exists()


def model_folder(reference: str | os.PathLike, revision: str | None = None) -> Path:
    """Local folder of a model, downloaded first where the reference names a Hub repository.

    Args:
        reference: a folder, or ``owner/name`` on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        UserError: there is no such folder, or the repository cannot be fetched.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(reference):
        raise UserError(
            f"There is no model folder {folder}: give the path of a folder with config.json and weights, or a Hub "
            "repository as OWNER/NAME."
        )
    return _snapshot(os.fspath(reference), revision)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder; empty where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): the folder is damaged, copy or save it again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object: the folder is damaged, copy or save it again.")
    return values


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


def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
    except GatedRepoError as error:
        raise UserError(
            f"{name} on the Hub asks for consent: accept its terms on its page and log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name} on the Hub has no revision {revision!r}: name a branch, tag or commit.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{name} is neither a local folder nor a repository of the Hub that you may read: check the name, or log "
            "in with `hf auth login` if it is private."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{name}{at} is no local folder, is not in the cache, and the Hub cannot be reached (HF_HUB_OFFLINE is "
            f"{os.environ.get('HF_HUB_OFFLINE', 'not set')}): download it where there is a network with "
            f"`hf download {name} --local-dir FOLDER` and give FOLDER."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{name}{at} cannot be fetched from the Hub ({error}): try again, or download it with "
            f"`hf download {name} --local-dir FOLDER` and give FOLDER."
        ) from error
