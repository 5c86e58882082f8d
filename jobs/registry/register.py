"""Register a trained model, and promote it to champion through a gate.

Each version of the registered model ``padt`` points at a model folder (or URL) and carries its scores, the fingerprints
of data and weights, its base model and its MLflow run as tags. Its source is what ``mlflow.pyfunc.load_model`` takes
(``jobs.registry.pyfunc``), which reads the weights from that folder. The alias ``candidate`` is the newest version;
``champion`` is what ``padt serve models:/padt@champion`` runs, and moves only through the gate or by force.
"""

import json
import logging
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.model_reference import (
    FINGERPRINT_TAG,
    LISTING_TAG,
    REGISTERED_NAME,
    WEIGHTS_TAG,
    Registration,
    check_unchanged,
    listing,
    local_path,
    parse_reference,
    registered_version,
    registry,
)
from jobs.common.model_reference import find_model as find_model
from jobs.common.model_reference import resolve_model as resolve_model
from padt.checkpoints.fingerprint import fingerprint
from padt.errors import UserError
from padt.metrics.table import is_watched, require_metric
from pipelines.io.storage import Folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
CANDIDATE = "candidate"
CHAMPION = "champion"
_EVAL = "eval/"
_DATA_TAG = "padt.eval_data/"


@dataclass(frozen=True)
class Gate:
    """What a version must show to become champion.

    Attributes:
        thresholds: by metric name what it must reach, for example ``{"eval/toy/gIoU": 0.7}``: at least this where
            higher is better, at most this where lower is (``padt.metrics.table.METRICS``).
        tolerance: how much worse than the champion a watched metric may be, absolute.

    Raises:
        UserError: a threshold is for no metric (names the nearest), or for one that has no better values.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        for name in self.thresholds:
            require_metric(name, "The gate's thresholds")

    def objections(self, metrics: Mapping[str, float], champion: Mapping[str, float]) -> list[str]:
        """Reasons against a promotion, one sentence each; empty = none."""
        reasons = []
        if not metrics:
            reasons.append("It has no scores: evaluate it first with `padt evaluate`.")
        for name, threshold in self.thresholds.items():
            metric = require_metric(name, "The gate's thresholds")
            asked = f"the gate asks for at {'most' if metric.better == 'lower' else 'least'} {threshold:g}."
            if name not in metrics:
                reasons.append(f"{name} was not measured; {asked}")
            elif not metric.reaches(metrics[name], threshold):
                reasons.append(f"{name} is {metrics[name]:.4f}; {asked}")
        for name, best in champion.items():
            if not is_watched(name):
                continue
            metric = require_metric(name, "The champion")
            if name not in metrics:
                reasons.append(f"{name} was not measured; the champion has {best:.4f}.")
            elif not metric.reaches(metrics[name], best, self.tolerance):
                reasons.append(
                    f"{name} is {metrics[name]:.4f}; the champion has {best:.4f} (tolerance {self.tolerance:g})."
                )
        return reasons


@dataclass(frozen=True)
class RegisteredVersion:
    """What registration did.

    Attributes:
        name: registered name.
        version: number of the version.
        source: folder or URL of the model.
        aliases: aliases that point at the version now.
        promoted: the version bears the alias that was asked for.
        objections: what the gate held against it (with ``force`` it may be promoted all the same).
        replaced: version that bore the alias before, or None.
    """

    name: str
    version: str
    source: str
    aliases: tuple[str, ...]
    promoted: bool
    objections: tuple[str, ...] = ()
    replaced: str | None = None

    @property
    def uri(self) -> str:
        """Reference that always means this very version."""
        return f"models:/{self.name}/{self.version}"


def run_register(
    model_path: str | os.PathLike,
    metrics: Mapping[str, float] | None = None,
    alias: str = CHAMPION,
    *,
    evaluations: Sequence[str | os.PathLike] = (),
    gate: Gate | None = None,
    force: bool = False,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
    name: str = REGISTERED_NAME,
) -> RegisteredVersion:
    """Register a model folder and, where the gate lets it, give it an alias.

    Registering the same unchanged folder again adds no version: it updates the tags and asks the gate again.

    Args:
        model_path: a model folder, a URL of one, or ``models:/padt/3`` to promote a version that is there already.
        metrics: scores by name ``eval/<set>/<metric>``.
        alias: ``champion`` (through the gate), ``candidate`` or any other (without a gate).
        evaluations: folders of ``padt evaluate``, whose scores and data fingerprints are added.
        gate: conditions for ``champion``; default: scores, and not worse than the champion.
        force: promote against the gate's objections; they are kept in a tag.
        tags: further facts, such as ``base_model`` or ``data_fingerprint``.
        run_id: MLflow run that made the model.
        tracking_uri: registry to use; default: the environment's.
        name: registered name.

    Raises:
        UserError: the model, an evaluation or the registry cannot be used, or an evaluation is of another model.
    """
    reference = str(model_path)
    existing = reference.startswith("models:")
    if existing:
        name, wanted = parse_reference(reference)
        client = registry(tracking_uri)
        entry = registered_version(client, name, wanted, reference)
        known = Registration.of(entry)
        source, marks = known.weights, {key: str(value) for key, value in entry.tags.items()}
        if "://" not in source:
            check_unchanged(local_path(source), known)
    else:
        source, marks = _inspect(reference)
        client = registry(tracking_uri, create=True)
    scores, data = _scores(metrics, evaluations, marks.get(FINGERPRINT_TAG))
    facts = {
        **{key: value for key, value in marks.items() if not existing},
        **{key: repr(float(value)) for key, value in scores.items()},
        **{_DATA_TAG + key: value for key, value in data.items()},
        **{key: str(value) for key, value in (tags or {}).items()},
    }
    if not existing:
        entry = _version(client, name, source, facts, run_id)
    for key, value in facts.items():
        if entry.tags.get(key) != value:
            client.set_model_version_tag(name, entry.version, key, value)
    entry = client.get_model_version(name, entry.version)
    if not existing and "://" not in source:
        note_scores(Path(source), scores, data)
    if not existing:
        client.set_registered_model_alias(name, CANDIDATE, entry.version)
    return _promote(client, entry, alias, gate or Gate(), force)


def _promote(client: "MlflowClient", entry: Any, alias: str, gate: Gate, force: bool) -> RegisteredVersion:
    current = client.get_registered_model(entry.name).aliases.get(alias)
    replaced = str(current) if current is not None and str(current) != str(entry.version) else None
    objections: list[str] = []
    if alias == CHAMPION:
        champion = client.get_model_version(entry.name, replaced) if replaced else None
        objections = _other_data(entry, champion) if champion else []
        objections += gate.objections(scores_of(entry), scores_of(champion) if champion else {})
    promoted = force or not objections
    if promoted:
        client.set_registered_model_alias(entry.name, alias, entry.version)
        if replaced:
            client.set_model_version_tag(entry.name, entry.version, f"padt.replaced_{alias}", replaced)
        if objections:
            client.set_model_version_tag(entry.name, entry.version, "padt.forced", " ".join(objections))
    logger.info("version %s of %s: %s %s", entry.version, entry.name, "now" if promoted else "not", alias)
    aliases = client.get_registered_model(entry.name).aliases
    return RegisteredVersion(
        name=entry.name,
        version=str(entry.version),
        source=Registration.of(entry).weights,
        aliases=tuple(sorted(key for key, number in aliases.items() if str(number) == str(entry.version))),
        promoted=promoted,
        objections=tuple(objections),
        replaced=replaced if promoted else None,
    )


def scores_of(entry: Any) -> dict[str, float]:
    """Scores that a version carries as tags."""
    return {key: float(value) for key, value in entry.tags.items() if key.startswith(_EVAL)}


def note_scores(folder: Path, scores: Mapping[str, float], data: Mapping[str, str]) -> bool:
    """Write an evaluation's scores into the card of a model folder; False where the folder cannot be written to."""
    from padt.pretrained.config import load_config
    from padt.pretrained.model_card import add_scores

    if not scores:
        return False
    try:
        config, layout = load_config(folder)
        if layout == "padt":
            add_scores(folder, scores, data, config)
        return layout == "padt"
    except (OSError, UserError):
        # A model in a place of others, or one that only looks like a model: registration does not hang on its card.
        return False


def read_evaluation(folder: str | os.PathLike) -> dict[str, Any]:
    """Content of ``metrics.json`` of an evaluation folder (or of the file itself).

    Raises:
        UserError: there is none, or it is not one.
    """
    place = os.path.expanduser(str(folder)).rstrip("/")
    file = place if place.endswith(".json") else posixpath.join(place, METRICS_FILE)
    text = Folder(posixpath.dirname(file) or ".").read_text(posixpath.basename(file))
    if text is None:
        raise UserError(f"{place} has no metrics.json: make it with `padt evaluate MODEL DATA --out {place}`.")
    try:
        content = json.loads(text)
        content["metrics"].items()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file} is not an evaluation's metrics.json ({error!r}): run `padt evaluate` again."
        ) from error
    return content


def _inspect(reference: str) -> tuple[str, dict[str, str]]:
    """Source to register, and its tags."""
    found = find_model(reference)
    folder = found.path
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is not JSON ({error}): save the model again.") from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has no *.safetensors file, so there are no weights to register: save the model again."
        )
    marks = {FINGERPRINT_TAG: fingerprint(folder), "padt.model_type": str(config.get("model_type", ""))}
    source = found.source or str(folder)
    marks[WEIGHTS_TAG] = source
    # The copy of a URL gets new times whenever it is fetched.
    return source, marks if found.source else {**marks, LISTING_TAG: listing(folder)}


def _scores(
    metrics: Mapping[str, float] | None, evaluations: Sequence[str | os.PathLike], weights: str | None
) -> tuple[dict[str, float], dict[str, str]]:
    scores = dict(metrics or {})
    data: dict[str, str] = {}
    for folder in evaluations:
        content = read_evaluation(folder)
        measured = content.get("model_fingerprint")
        if weights and measured and measured != weights:
            raise UserError(
                f"{folder} holds scores of another model ({content.get('model')}): evaluate the model that is to be "
                "registered."
            )
        scores.update(content["metrics"])
        if content.get("data_fingerprint"):
            data[str(content["set"])] = str(content["data_fingerprint"])
    return {key: float(value) for key, value in scores.items() if key.startswith(_EVAL)}, data


def _version(client: "MlflowClient", name: str, source: str, facts: dict[str, str], run_id: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    from jobs.registry.pyfunc import log_pyfunc

    try:
        client.create_registered_model(name, description="PaDT: answers with boxes, masks and words.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise UserError(f"The model registry cannot be used ({error.message}).") from error
    weights = facts.get(FINGERPRINT_TAG)
    for entry in client.search_model_versions(f"name='{name}'"):
        if weights and Registration.of(entry).weights == source and entry.tags.get(FINGERPRINT_TAG) == weights:
            return entry
    marks = {key: facts[key] for key in (FINGERPRINT_TAG, LISTING_TAG) if key in facts}
    if "://" not in source and client.tracking_uri.startswith(("http://", "https://")):
        logger.warning("%s is a path: only machines that see it can load this version; a URL is for all", source)
    try:
        stored, model_id = log_pyfunc(client, Registration(name, "", source, marks), run_id)
        return client.create_model_version(name, source=stored, run_id=run_id, tags=facts, model_id=model_id)
    except MlflowException as error:
        raise UserError(
            f"The model registry refused {source} ({error.message}): it has to be MLflow 3.13 or newer, and "
            "you need the right to write."
        ) from error


def _other_data(entry: Any, champion: Any) -> list[str]:
    """Scores on other data, under the same set name, say nothing about which model is better."""
    reasons = []
    for key, value in champion.tags.items():
        if key.startswith(_DATA_TAG) and entry.tags.get(key, value) != value:
            reasons.append(
                f"The champion was measured on other data named {key.removeprefix(_DATA_TAG)!r}: evaluate "
                f"models:/{champion.name}/{champion.version} on the present set and register its scores."
            )
    return reasons
