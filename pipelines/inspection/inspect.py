"""A look into a prepared data set: its counts as plain values, and a few of its images as one picture."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from padt.drawing.objects import contact_sheet
from padt.errors import UserError
from pipelines.dataset.losses import alarms
from pipelines.dataset.manifest import Manifest, open_set
from pipelines.dataset.read import find_row, spread_rows
from pipelines.dataset.rejects import LeftOut, by_cause, examples, left_out
from pipelines.dataset.schema import REJECT_REASONS
from pipelines.dedup.exclude import load_compared
from pipelines.dedup.overlap import Overlap, compare, images_of
from pipelines.inspection.pictures import draw_row
from pipelines.inspection.statistics import Section, describe


@dataclass(frozen=True)
class InspectReport:
    """What a data set holds.

    Attributes:
        url: folder of the set.
        manifest: its manifest.
        facts: name and value of what describes the set as a whole.
        kept: kind, number in the sources, kept, rejected, excluded.
        alarms: what must not go unnoticed: kinds that were largely lost, and things that look wrong.
        rejects: reason, number, meaning; in order of cause.
        classes: class and number of objects, most frequent first.
        sections: tables of all that is known, as the report has them.
        rows: the rows shown in the picture, without their image bytes.
        left_out: what was left out of the image that was asked for.
        overlaps: what the set shares with others that were named.
        picture: contact sheet (one large picture where one row was asked for); None where no row is left to show.
        picture_path: where the picture was written; None where it was not.
    """

    url: str
    manifest: Manifest
    facts: list[tuple[str, str]]
    kept: list[tuple[str, int, int, int, int]]
    alarms: list[str]
    rejects: list[tuple[str, int, str]]
    classes: list[tuple[str, int]]
    sections: list[Section] = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    left_out: list[LeftOut]
    overlaps: list[Overlap]
    picture: Image.Image | None = field(repr=False)
    picture_path: str | None = None


def inspect(
    url: str, key: str | None = None, count: int = 4, out: str | None = None, against: Sequence[str] = ()
) -> InspectReport:
    """Look into a prepared data set.

    Args:
        url: folder of the set.
        key: show this row (its key or image id), or say why it is not there; else ``count`` rows spread over the set.
        count: rows to show.
        out: file to write the picture to (its ending chooses the format), or a folder for it; None = it is not written.
        against: prepared sets (``SET`` or ``SET:split``) to compare it with.

    Raises:
        UserError: there is no finished set, the sources had no such image, or the picture cannot be written.
    """
    if count < 1:
        raise UserError(f"count is {count}: show at least 1 row.")
    manifest = open_set(url)
    if key is None:
        rows, missing = spread_rows(url, manifest, count), []
    else:
        row, missing = find_row(url, manifest, key), left_out(url, key)
        rows = [] if row is None else [row]
        if not rows and not missing:
            splits = ", ".join(manifest.splits)
            raise UserError(f"{url} has no row {key!r}: keys look like {manifest.name}/{splits}/IMAGE_ID.")
    picture = _picture(rows)
    path = None
    if out is not None and picture is not None:
        path = _file_in(out, "/".join([manifest.name, *manifest.splits]) if key is None else rows[0]["key"])
        try:
            if path != out:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The picture cannot be written to {path} ({error}): give a file such as --out view.png."
            ) from error
    ours = images_of(url, manifest) if against else None
    counts = manifest.counts
    return InspectReport(
        url=url,
        manifest=manifest,
        facts=_facts(manifest),
        kept=[(f"{each[0]}s", *each[1:]) for each in counts.by_kind()],
        alarms=alarms(manifest),
        rejects=[(name, n, REJECT_REASONS[name]) for name, n in by_cause(counts.rejects).items()],
        classes=list(manifest.statistics.get("classes", {}).items()),
        sections=describe(manifest, examples(url, manifest, 1)),
        rows=[_without_bytes(row) for row in rows],
        left_out=missing,
        overlaps=[compare(ours, load_compared(spec, url)) for spec in against] if ours is not None else [],
        picture=picture,
        picture_path=path,
    )


def _file_in(out: str, name: str) -> str:
    """``out``, or a file with the name of what it shows where that is a folder."""
    if not (out.endswith("/") or Path(out).is_dir()):
        return out
    return str(Path(out) / (re.sub(r"[^\w.]+", "-", name) + ".png"))


def _picture(rows: Sequence[dict[str, Any]]) -> Image.Image | None:
    pictures = [draw_row(row) for row in rows]
    if len(pictures) <= 1:
        return pictures[0] if pictures else None
    return contact_sheet(pictures, _columns(len(rows)), [row["key"] for row in rows])


def _without_bytes(row: dict[str, Any]) -> dict[str, Any]:
    def light(image: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if image is None else {**image, "bytes": None}

    more = [light(image) for image in row.get("more_images") or ()]
    return {**row, "image": light(row["image"]), "more_images": more}


def _columns(count: int) -> int:
    return 1 if count == 1 else 2 if count <= 4 else 3 if count <= 9 else 4


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    policy, counts = manifest.policy, manifest.counts
    shard_bytes = sum(shard.bytes for shard in manifest.shards)
    return [
        ("name", manifest.name),
        ("splits", ", ".join(manifest.splits)),
        ("categories", f"{len(manifest.categories):,}"),
        ("shards", f"{len(manifest.shards):,} ({shard_bytes / 1e6:,.1f} MB)"),
        ("images", "in the shards" if manifest.images_mode == "copy" else "linked"),
        ("resize policy", f"factor {policy.factor}, {policy.min_pixels:,} to {policy.max_pixels:,} pixels"),
        ("objects without a foreground patch", f"{counts.objects - counts.objects_with_patches:,}"),
        ("schema version", str(manifest.schema_version)),
        ("fingerprint", manifest.fingerprint[:16]),
    ]
