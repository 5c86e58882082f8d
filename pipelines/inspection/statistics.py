"""A data set in tables: what its report and ``padt inspect`` both show."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from padt.metrics.analysis.shares import summed
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.rejects import LeftOut, by_cause
from pipelines.dataset.schema import REJECT_REASONS, REPAIRS
from pipelines.dedup.overlap import SAME

_MOST_CLASSES = 40
_HOW = {"same_source_id": "same id", "same_bytes": "same file", "same_look": "same look"}


@dataclass(frozen=True)
class Section:
    """A table about a set.

    Attributes:
        title: what it shows.
        columns: names of the columns.
        rows: values; whole numbers stand right.
        note: a sentence about it.
        bars: the last column is drawn as bars: it is a histogram.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int, ...], ...]
    note: str = ""
    bars: bool = False


def describe(manifest: Manifest, rejects: Sequence[LeftOut] = ()) -> list[Section]:
    """Tables of all that is known about a set.

    Args:
        manifest: of the set.
        rejects: examples of what was rejected.
    """
    return [*_what_became(manifest, rejects), *_shared(manifest), *histograms(manifest)]


def histograms(manifest: Manifest) -> list[Section]:
    """Classes, sizes, and how many objects and patches there are; those that the manifest has."""
    statistics = manifest.statistics
    classes = statistics.get("classes", {})
    found = [
        _bars("Objects by class", "class", dict(list(classes.items())[:_MOST_CLASSES]), len(classes) - _MOST_CLASSES),
        _bars("Size of objects (square root of the box's area in pixels)", "up to", statistics.get("object_sides", {})),
        _bars("Size of images (longer side in pixels)", "up to", statistics.get("image_sides", {})),
        _bars("Objects per image", "objects", summed(statistics.get("objects_per_image", {}))),
        _bars("Foreground patches per object", "patches", summed(statistics.get("patches_per_object", {}))),
    ]
    return [section for section in found if section.rows]


def _bars(title: str, name: str, histogram: Mapping[str, int], left_out: int = 0) -> Section:
    note = f"and {left_out:,} more" if left_out > 0 else ""
    return Section(title, (name, "number"), tuple(histogram.items()), note, bars=True)


def _what_became(manifest: Manifest, rejects: Sequence[LeftOut]) -> Iterable[Section]:
    counts = manifest.counts
    bare = counts.objects - counts.objects_with_patches
    yield Section(
        "What came in, what was kept",
        ("kind", "in the sources", "kept", "rejected", "excluded"),
        tuple((f"{kind}s", *numbers) for kind, *numbers in counts.by_kind()),
        f"{bare:,} of the {counts.objects:,} objects are too small to have a foreground patch: training skips them, "
        "evaluation counts them."
        if bare
        else "",
    )
    yield Section(
        "Rejects by reason",
        ("reason", "number", "meaning"),
        tuple((reason, number, REJECT_REASONS[reason]) for reason, number in by_cause(counts.rejects).items()),
    )
    if rejects:
        rows = tuple((each.reason, each.key, each.what, each.detail or "") for each in rejects)
        yield Section("Examples of rejects", ("reason", "image", "what", "detail"), rows)
    yield Section(
        "Repairs",
        ("repair", "number", "meaning"),
        tuple((name, number, REPAIRS[name]) for name, number in sorted(counts.repairs.items()) if number),
    )


def _shared(manifest: Manifest) -> Iterable[Section]:
    hows = tuple(_HOW[how] for how in SAME)
    if manifest.exclusions:
        yield Section(
            "Images left out because another set holds them",
            ("set", "its images", *hows),
            tuple(
                (each.name, each.images, *(each.removed.get(how, 0) for how in SAME)) for each in manifest.exclusions
            ),
            "Each image counts once, for the first set and the surest sign; all are listed in excluded/.",
        )
    if manifest.compared:
        yield Section(
            "Shared with other sets",
            ("set", "its images", *hows, "for example"),
            tuple(
                (
                    each.name,
                    each.images,
                    *(each.shared.get(how, 0) for how in SAME),
                    "; ".join(" = ".join(pair) for pair in each.examples),
                )
                for each in manifest.compared
            ),
            "A model that is trained on this set must not be measured on those images: leave them out with --exclude.",
        )
    twice = manifest.statistics.get("duplicates")
    if twice is not None:
        rows = tuple((_HOW[how], twice.get(how, 0)) for how in ("same_bytes", "same_look"))
        groups = "; ".join(" = ".join(group) for group in manifest.duplicates)
        yield Section(
            "Images that the set holds more than once",
            ("sign", "repeated images"),
            rows if any(number for _, number in rows) else (),
            f"For example {groups}." if groups else "",
        )
