"""Where a model lives: a folder, a URL, or a version or alias of the registry, turned into a local folder.

References are a path, an fsspec URL, ``OWNER/NAME`` on the Hub, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``. All
but the last two need neither MLflow nor a registry. What lies elsewhere is fetched once into ``PADT_CACHE``.
"""

import hashlib
import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padt.checkpoints.fingerprint import MODEL_FILES, fingerprint, model_files
from padt.errors import UserError, install_command
from padt.pretrained.hub import is_hub_id
from padt.pretrained.hub import model_folder as hub_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

REGISTERED_NAME = "padt"
FINGERPRINT_TAG = "padt.fingerprint"
LISTING_TAG = "padt.listing"
WEIGHTS_TAG = "padt.weights"
"""Where a version's model folder is: what MLflow calls its source holds only what MLflow itself loads."""
_REFERENCE = re.compile(r"models:/+(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))")


@dataclass(frozen=True)
class ResolvedModel:
    """A model that can be loaded.

    Attributes:
        reference: what the user asked for.
        path: local folder.
        name: registered name, or None for a plain folder.
        version: registered version, or None.
        source: where its files are, as the registered version or the URL says, or None.
    """

    reference: str
    path: Path
    name: str | None = None
    version: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Registration:
    """Where the weights of a registered version are, and what they are known by.

    Attributes:
        name: registered name.
        version: number of the version; empty where it is not known yet.
        weights: folder or URL of the model.
        tags: of the version; those about fingerprint and listing count.
    """

    name: str
    version: str
    weights: str
    tags: Mapping[str, str]

    @classmethod
    def of(cls, entry: Any) -> "Registration":
        """What the registry's entry of a version says."""
        tags = dict(entry.tags)
        return cls(str(entry.name), str(entry.version), tags.get(WEIGHTS_TAG) or str(entry.source), tags)

    def __str__(self) -> str:
        return f"version {self.version} of {self.name}" if self.version else f"a version of {self.name}"


def resolve_model(reference: str | os.PathLike, tracking_uri: str | None = None) -> str:
    """Local folder of a model, ready for ``padt.load_model``.

    Raises:
        UserError: see :func:`find_model`.
    """
    return str(find_model(reference, tracking_uri).path)


def find_model(reference: str | os.PathLike, tracking_uri: str | None = None) -> ResolvedModel:
    """Find a model and say which version it is.

    Args:
        reference: a folder, an fsspec URL, ``OWNER/NAME`` on the Hub, ``models:/padt@champion`` or ``models:/padt/3``.
        tracking_uri: registry to ask; default: the environment's (``jobs.common.mlflow_run``).

    Raises:
        UserError: the folder, name, alias or version is not there, or the folder was changed after its registration.
    """
    text = str(reference)
    if is_hub_id(text):
        return ResolvedModel(text, hub_folder(text))
    if is_remote(text):
        return ResolvedModel(text, _fetch(text.rstrip("/")), source=text.rstrip("/"))
    if not text.startswith("models:"):
        text = str(local_path(text))
        return ResolvedModel(text, _model_folder(Path(text).expanduser(), f"Model {text}"))
    name, version = parse_reference(text)
    found = Registration.of(registered_version(registry(tracking_uri), name, version, text))
    path = registered_folder(found, f"Model {text} (version {found.version})")
    return ResolvedModel(text, path, name, found.version, found.weights)


def registered_folder(registration: Registration, what: str) -> Path:
    """Local folder of a registered model, known to hold what was registered; fetched if need be.

    Args:
        registration: of the version.
        what: how errors begin.

    Raises:
        UserError: it is not there any more, or holds something else.
    """
    if is_remote(registration.weights):
        return _fetch(registration.weights, registration)
    folder = local_path(registration.weights)
    if not folder.is_dir():
        raise UserError(
            f"{what}: the folder {folder} is not there any more: put it back, or register the model from where it is "
            "now with `padt register FOLDER`."
        )
    path = _model_folder(folder, what)
    check_unchanged(path, registration)
    return path


def is_remote(reference: str) -> bool:
    """Whether a reference is a URL of another place than this machine's disks."""
    return "://" in reference and not reference.startswith(("file://", "models:"))


def fetched(reference: str) -> str:
    """A local folder in the place of a URL or Hub repository, fetched if need be; any other reference as it is.

    Raises:
        UserError: see :func:`find_model`.
    """
    return resolve_model(reference) if is_remote(reference) or is_hub_id(reference) else reference


def parse_reference(text: str) -> tuple[str, str]:
    """Name and version of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; an alias keeps its ``@``.

    Raises:
        UserError: the reference has another form.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or (match["version"] and not match["version"].isdigit()):
        raise UserError(
            f"{text!r} does not name a registered model: write models:/{REGISTERED_NAME}@champion (an alias) or "
            f"models:/{REGISTERED_NAME}/3 (a version)."
        )
    return match["name"], match["version"] or "@" + match["alias"]


def registry(tracking_uri: str | None = None, create: bool = False) -> "MlflowClient":
    """A client of the registry.

    Args:
        tracking_uri: registry to use; default: the environment's.
        create: make the SQLite file if it is not there; otherwise a missing file is an error.

    Raises:
        UserError: MLflow is not installed, or there is no registry at the address.
    """
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise UserError(f"The model registry needs MLflow: install it with `{install_command('train')}`.") from error
    if tracking_uri is None:
        from jobs.common.mlflow_run import tracking_uri as default_uri

        tracking_uri = default_uri()
    uri = tracking_uri
    if uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///"))
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
        elif not file.exists():
            raise UserError(
                f"There is no model registry at {uri}: set MLFLOW_TRACKING_URI to the one that holds the model, or "
                "register one with `padt register MODEL`."
            )
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def registered_version(client: "MlflowClient", name: str, version: str, reference: str) -> Any:
    """The registry's entry of a version (``"3"``) or alias (``"@champion"``).

    Raises:
        UserError: there is none; the message lists what there is.
    """
    from mlflow.exceptions import MlflowException

    try:
        if version.startswith("@"):
            return client.get_model_version_by_alias(name, version[1:])
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(f"The model registry did not answer for {reference} ({error.message}).") from error
        known = sorted(client.search_model_versions(f"name='{name}'"), key=lambda entry: int(entry.version))
        if not known:
            fix = "no model of that name is registered: register one with `padt register MODEL`."
        else:
            aliases = client.get_registered_model(name).aliases
            listed = ", ".join(f"{alias} = version {number}" for alias, number in sorted(aliases.items()))
            fix = (
                f"there are versions {', '.join(str(entry.version) for entry in known)} and aliases {listed or 'none'}."
            )
        raise UserError(f"{reference} is not in the registry: {fix}") from error


def listing(folder: Path) -> str:
    """SHA-256 over names, sizes and times of a model's files: equal means unchanged, without reading gigabytes."""
    entries = ((file.name, file.stat()) for file in model_files(folder))
    text = "\n".join(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}" for name, stat in entries)
    return hashlib.sha256(text.encode()).hexdigest()


def check_unchanged(folder: Path, registration: Registration) -> None:
    """Make sure that a registered folder still holds what was registered.

    Raises:
        UserError: its files are others now.
    """
    tags = registration.tags
    if LISTING_TAG not in tags or tags[LISTING_TAG] == listing(folder):
        return
    if tags.get(FINGERPRINT_TAG) != fingerprint(folder):
        raise UserError(
            f"{folder} was changed after it was registered as {registration}: register it again with "
            f"`padt register {folder}`, or put the former files back."
        )


def local_path(source: str) -> Path:
    """Path of a ``file:`` URL or plain path."""
    return Path(re.sub(r"^file:(//)?", "", source)).expanduser()


def _model_folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise UserError(f"{what}: the folder {path} is not there: check the path.")
    if not (path / "config.json").is_file():
        inner = path / "model"
        hint = f"did you mean {inner}?" if (inner / "config.json").is_file() else "training leaves one in `model/`."
        raise UserError(f"{what}: {path} has no config.json, so it is not a model folder: {hint}")
    return path.resolve()


def _fetch(url: str, entry: Registration | None = None) -> Path:
    """Local copy of a remote model, made once for what lies there now, or for what a version was registered with."""
    # Both need packages that a plain installation may lack; paths and local versions do without.
    from filelock import FileLock

    from pipelines.io.reading import reaching
    from pipelines.io.storage import Folder

    weights = entry.tags.get(FINGERPRINT_TAG) if entry is not None else None
    remote = Folder(url)
    if entry is None:
        with reaching(url, "model"):
            if not remote.exists("config.json"):
                raise UserError(
                    f"Model {url} cannot be read as a model folder: it has no config.json, which is written last. "
                    "Check the address, or finish what writes it."
                )
            content = remote.listing(MODEL_FILES)
    else:
        content = weights or ""
    # A card names a base model by its folder; training leaves its model in RUN/model.
    parent, name = posixpath.split(remote.path())
    name = posixpath.basename(parent) if name == "model" else name
    name = f"{entry.name}-{entry.version}".rstrip("-") if entry else name
    root = Path(os.environ.get("PADT_CACHE") or Path.home() / ".cache" / "padt") / "models"
    target = root / hashlib.sha256(f"{url}\n{content}".encode()).hexdigest()[:12] / (name or "model")

    if entry is not None and not entry.version:
        # The same files, that some version of them was fetched for.
        target = next((each for each in sorted(target.parent.glob(f"{entry.name}-*")) if each.is_dir()), target)

    def fill(folder: Path) -> None:
        with reaching(url, "model"):
            remote.download(folder)
        if weights and fingerprint(folder) != weights:
            raise UserError(
                f"{url} was changed after it was registered as {entry}: register it again with "
                f"`padt register {url}`, or put the former files back."
            )

    target.parent.mkdir(parents=True, exist_ok=True)
    # The workers of one machine share one copy.
    with FileLock(f"{target.parent}.lock"):
        if not target.is_dir():
            Folder(str(target)).publish(fill, "config.json", replace=False)
    return _model_folder(target, f"Model {url}")
