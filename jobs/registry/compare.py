"""``padt compare``: scores of several evaluations or registered versions side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.common.model_reference import parse_reference, registered_version, registry
from jobs.registry.register import read_evaluation, scores_of
from padt.errors import UserError

# Figures about which nothing can be called better.
_NEUTRAL = ("caption_tokens", "caption_objects")


@dataclass(frozen=True)
class Comparison:
    """Scores by metric and source.

    Attributes:
        sources: names of the columns, as short as they stay different.
        metrics: ``metrics[name]`` holds one value a source, None where it was not measured.
        warnings: what makes columns hard to compare.
    """

    sources: tuple[str, ...]
    metrics: dict[str, tuple[float | None, ...]]
    warnings: tuple[str, ...] = ()

    def best(self, metric: str) -> int | None:
        """Position of the best value (the first of equals); None for a single value or one that has no direction."""
        values = self.metrics[metric]
        known = [value for value in values if value is not None]
        if len(known) < 2 or metric.rsplit("/", 1)[-1] in _NEUTRAL:
            return None
        return values.index(max(known))


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
    names = sorted({name for scores in columns for name in scores if contains in name})
    if not names:
        raise UserError(f"No metric's name contains {contains!r}: leave the filter out to see all.")
    warnings = [
        f"The evaluations named {name!r} were made on different data: their scores are not comparable."
        for name, prints in sorted(data.items())
        if len(prints) > 1
    ]
    metrics = {name: tuple(scores.get(name) for scores in columns) for name in names}
    return Comparison(short_names(sources), metrics, tuple(warnings))


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
