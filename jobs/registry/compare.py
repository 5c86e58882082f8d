"""``padt compare``: scores of several evaluations or registered versions side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.common.model_reference import parse_reference, registered_version, registry
from jobs.registry.register import read_evaluation, scores_of
from padt.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """Scores by source and metric.

    Attributes:
        scores: ``scores[source][metric]``, sources by names that are as short as they stay different.
        warnings: what makes columns hard to compare.
    """

    scores: dict[str, dict[str, float]]
    warnings: tuple[str, ...] = ()


def run_compare(sources: Sequence[str], tracking_uri: str | None = None, contains: str = "") -> Comparison:
    """Read the scores of evaluations and registered versions.

    Args:
        sources: evaluation folders (or their ``metrics.json``), ``models:/padt@champion``, ``models:/padt/3``.
        tracking_uri: registry for ``models:/``; default: the environment's.
        contains: only metrics whose name contains this.

    Raises:
        UserError: a source has no scores, or there is nothing to compare.
    """
    if not sources:
        raise UserError("There is nothing to compare: give evaluation folders or models:/padt/VERSION.")
    columns: list[Mapping[str, float]] = []
    data: dict[str, set[str]] = {}
    for source in sources:
        if source.startswith("models:"):
            name, version = parse_reference(source)
            scores = scores_of(registered_version(registry(tracking_uri), name, version, source))
            if not scores:
                raise UserError(f"{source} was registered without scores: evaluate it and register them.")
        else:
            content = read_evaluation(source)
            scores = {key: float(value) for key, value in content["metrics"].items()}
            if content.get("data_fingerprint"):
                data.setdefault(str(content.get("set")), set()).add(str(content["data_fingerprint"]))
        columns.append(scores)
    shown = [{name: value for name, value in scores.items() if contains in name} for scores in columns]
    if not any(shown):
        raise UserError(f"No metric's name contains {contains!r}: leave the filter out to see all.")
    warnings = [
        f"The evaluations named {name!r} were made on different data: their scores are not comparable."
        for name, prints in sorted(data.items())
        if len(prints) > 1
    ]
    return Comparison(dict(zip(short_names(sources), shown, strict=True)), tuple(warnings))


def short_names(sources: Sequence[str]) -> tuple[str, ...]:
    """Sources without the folders that they share at the front and a shared last part."""
    paths = [source if source.startswith("models:") else source.rstrip("/") for source in sources]
    parts = [path.removesuffix("/metrics.json").split("/") for path in paths]
    plain = [part for part, path in zip(parts, paths, strict=True) if not path.startswith("models:")]
    if len(plain) < 2:
        return tuple(path if path.startswith("models:") else Path(path).name for path in paths)
    shared = 0
    while all(len(part) > shared + 1 for part in plain) and len({part[shared] for part in plain}) == 1:
        shared += 1
    return tuple(
        path if path.startswith("models:") else "/".join(part[shared:]) for part, path in zip(parts, paths, strict=True)
    )
