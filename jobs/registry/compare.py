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
    measured: dict[str, dict[str, str]] = {}
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
                measured.setdefault(str(content.get("set")), {})[source] = str(content["data_fingerprint"])
        columns.append(scores)
    shown = [{name: value for name, value in scores.items() if contains in name} for scores in columns]
    if not any(shown):
        raise UserError(f"No metric's name contains {contains!r}: leave the filter out to see all.")
    names = short_names(sources)
    short = dict(zip(sources, names, strict=True))
    warnings = [
        f"The scores on {place!r} are not comparable: {_difference({short[source]: seen[source] for source in seen})}"
        for place, seen in sorted(measured.items())
        if len(set(seen.values())) > 1
    ]
    return Comparison(dict(zip(names, shown, strict=True)), tuple(warnings))


def _difference(prints: Mapping[str, str]) -> str:
    """What the data of some evaluations differ in; a fingerprint ends with ``[:60]`` where only so many were asked."""
    parts = {source: text.rstrip("]").partition("[:") for source, text in prints.items()}
    if len({whole for whole, _, _ in parts.values()}) == 1:
        limits = {source: f"its first {limit}" if limit else "all its" for source, (_, _, limit) in parts.items()}
        told = "; ".join(f"{source} is about {limit} images" for source, limit in limits.items())
        return f"{told}. Evaluate each with the same --limit, or without one."
    told = "; ".join(f"{source} is about data {whole[:8]}" for source, (whole, _, _) in parts.items())
    return f"{told}, so one set was prepared anew or is another of that name. Evaluate each on the same one."


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
