"""Where a model's files are: a local folder, or a repository of the Hugging Face Hub fetched into its cache."""

import os
import re
from pathlib import Path

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
