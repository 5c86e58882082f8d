"""The report of a prepared data set: one HTML page that needs nothing beside itself."""

import base64
import html
import io
from collections.abc import Iterable, Mapping

from padt.draw import contact_sheet
from pipelines.manifest import Manifest
from pipelines.pictures import draw_row
from pipelines.reading import spread_rows
from pipelines.schema import REJECT_REASONS
from pipelines.storage import Folder

REPORT_NAME = "report.html"
_PICTURES = 8
_MOST_CLASSES = 40
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2rem }
table { border-collapse: collapse } th, td { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #2a7fd4; height: .7rem; display: inline-block; border-radius: 2px }
.flow { display: flex; flex-wrap: wrap; gap: 0 3rem } code { overflow-wrap: anywhere }
img { max-width: 100% } .quiet { opacity: .7 }
"""


def write_report(url: str, manifest: Manifest) -> None:
    """Write ``report.html`` into the folder of a set whose shards are complete.

    Args:
        url: folder of the set.
        manifest: what will be its manifest.
    """
    rows = spread_rows(url, manifest, _PICTURES)
    picture = contact_sheet([draw_row(row) for row in rows], 2, [row["key"] for row in rows]) if rows else None
    parts = [
        f"<h1>{_text(manifest.name)}</h1>",
        f"<p class=quiet>split {_text(', '.join(manifest.splits))}, fingerprint "
        f"<code>{manifest.fingerprint[:16]}</code>, padt {_text(manifest.tool_version)}, images: "
        f"{'in the shards' if manifest.images_mode == 'copy' else 'linked'}</p>",
        "<h2>What came in, what was kept</h2>",
        _counts(manifest),
        "<h2>Rejects by reason</h2>",
        _rejects(manifest.counts.rejects),
        "<h2>Repairs</h2>",
        _table(("repair", "count"), [(name.replace("_", " "), n) for name, n in manifest.counts.repairs.items()]),
        "<h2>Histograms</h2><div class=flow>",
        _histogram("Objects by class", manifest.statistics.get("classes", {}), _MOST_CLASSES),
        _histogram("Objects per image", _binned(manifest.statistics.get("objects_per_image", {}))),
        _histogram("Foreground patches per object", _binned(manifest.statistics.get("patches_per_object", {}))),
        "</div><h2>Pictures</h2>",
        "<p>Patch grid, foreground patches (tinted cells), masks, boxes; numbers are places in the row's objects.</p>",
        _picture(picture),
        "<h2>Made from</h2>",
        _table(("role", "file", "bytes"), [(each.role, each.path, each.bytes) for each in manifest.sources]),
        f"<p>Resize policy: factor {manifest.policy.factor}, {manifest.policy.min_pixels:,} to "
        f"{manifest.policy.max_pixels:,} pixels. {len(manifest.shards)} shards, "
        f"{sum(shard.bytes for shard in manifest.shards):,} bytes.</p>",
    ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{_text(manifest.name)} - data set report</title><style>{_STYLE}</style><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    Folder(url).write(REPORT_NAME, page.encode())


def _text(value: object) -> str:
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if isinstance(v, int) else ''}>{_text(v)}</td>" for v in row) + "</tr>"
        for row in rows
    )
    if not body:
        return "<p class=quiet>None.</p>"
    return "<table><tr>" + "".join(f"<th>{_text(name)}</th>" for name in head) + f"</tr>{body}</table>"


def _counts(manifest: Manifest) -> str:
    counts = manifest.counts
    rows = [(f"{kind}s", came_in, kept, lost) for kind, came_in, kept, lost, _ in counts.by_kind()]
    bare = counts.objects - counts.objects_with_patches
    return _table(("", "in the sources", "kept", "rejected"), rows) + (
        f"<p>{_text(bare)} of the {_text(counts.objects)} objects are too small to have a foreground patch: "
        "training skips them, evaluation counts them.</p>"
    )


def _rejects(rejects: Mapping[str, int]) -> str:
    rows = sorted(rejects.items(), key=lambda item: -item[1])
    return _table(("reason", "count", ""), [(reason, count, REJECT_REASONS[reason]) for reason, count in rows])


def _binned(histogram: Mapping[str, int]) -> dict[str, int]:
    """Counts by 0, 1, 2, 3-4, 5-8, and so on in powers of two."""
    bins: dict[str, int] = {}
    for value, count in histogram.items():
        high = 1 << max(0, int(value) - 1).bit_length()
        name = value if int(value) <= 2 else f"{high // 2 + 1}-{high}"
        bins[name] = bins.get(name, 0) + count
    return bins


def _histogram(title: str, histogram: Mapping[str, int], most: int = 100) -> str:
    peak = max(histogram.values(), default=1)
    rows = "".join(
        f"<tr><td>{_text(name)}<td class=n>{_text(count)}<td><span class=bar style='width:{120 * count / peak:.0f}px'>"
        for name, count in list(histogram.items())[:most]
    )
    rest = f"<p class=quiet>and {len(histogram) - most} more</p>" if len(histogram) > most else ""
    return f"<div><h3>{title}</h3><table>{rows}</table>{rest}</div>"


def _picture(picture) -> str:
    if picture is None:
        return "<p class=quiet>The set has no rows.</p>"
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='A few rows of the set' src='data:image/jpeg;base64,{encoded}'>"
