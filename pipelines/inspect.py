"""A look into a prepared data set: its counts as plain values, and a few of its images as one picture."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from padt.draw import contact_sheet
from padt.errors import UserError
from pipelines.manifest import Manifest, open_set
from pipelines.pictures import draw_row
from pipelines.reading import find_row, spread_rows
from pipelines.schema import REJECT_REASONS


@dataclass(frozen=True)
class InspectReport:
    """What a data set holds.

    Attributes:
        url: folder of the set.
        manifest: its manifest.
        facts: name and value of what describes the set as a whole.
        kept: kind, number in the sources, kept, rejected.
        rejects: reason, number, meaning; most frequent first.
        repairs: repair and number.
        classes: class and number of objects, most frequent first.
        rows: the rows shown in the picture, without their image bytes.
        picture: contact sheet (one large picture where one row was asked for).
        picture_path: where the picture was written; None where it was not.
    """

    url: str
    manifest: Manifest
    facts: list[tuple[str, str]]
    kept: list[tuple[str, int, int, int]]
    rejects: list[tuple[str, int, str]]
    repairs: list[tuple[str, int]]
    classes: list[tuple[str, int]]
    rows: list[dict[str, Any]] = field(repr=False)
    picture: Image.Image = field(repr=False)
    picture_path: str | None = None


def inspect(url: str, key: str | None = None, count: int = 4, out: str | None = None) -> InspectReport:
    """Look into a prepared data set.

    Args:
        url: folder of the set.
        key: show this row (its key or image id); else ``count`` rows spread over the set.
        count: rows to show.
        out: file to write the picture to (its ending chooses the format).

    Raises:
        UserError: there is no finished set, no such row, nothing to show, or the picture cannot be written.
    """
    if count < 1:
        raise UserError(f"count is {count}: show at least 1 row.")
    manifest = open_set(url)
    rows = [find_row(url, manifest, key)] if key is not None else spread_rows(url, manifest, count)
    if not rows:
        raise UserError(f"{url} has no rows: its rejected/ folder says what became of the images.")
    pictures = [draw_row(row) for row in rows]
    picture = pictures[0] if len(rows) == 1 else contact_sheet(pictures, _columns(len(rows)), [r["key"] for r in rows])
    if out is not None:
        try:
            picture.save(out)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The picture cannot be written to {out} ({error}): give a file such as view.png."
            ) from error
    counts = manifest.counts
    return InspectReport(
        url=url,
        manifest=manifest,
        facts=_facts(manifest),
        kept=[(f"{kind}s", came_in, kept, lost) for kind, came_in, kept, lost, _ in counts.by_kind()],
        rejects=[(name, n, REJECT_REASONS[name]) for name, n in sorted(counts.rejects.items(), key=lambda x: -x[1])],
        repairs=sorted(counts.repairs.items()),
        classes=list(manifest.statistics.get("classes", {}).items()),
        rows=[_without_bytes(row) for row in rows],
        picture=picture,
        picture_path=out,
    )


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
