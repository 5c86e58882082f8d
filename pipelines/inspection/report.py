"""The report of a prepared data set: one HTML page that needs nothing beside itself."""

import base64
import html
import io
import logging

from PIL import Image

from padt.errors import ImageError
from pipelines.dataset.losses import alarms
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.read import spread_rows
from pipelines.dataset.rejects import examples
from pipelines.inspection.pictures import draw_row
from pipelines.inspection.statistics import Section, describe
from pipelines.io.storage import Folder

logger = logging.getLogger(__name__)

REPORT_NAME = "report.html"
_PICTURES = 8
_PICTURE_WIDTH = 720
_BAR_WIDTH = 140
_LONG = 24
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0; overflow-wrap: anywhere } h2 { margin: 2rem 0 .3rem; font-size: 1.15rem }
.wide { overflow-x: auto } table { border-collapse: collapse; min-width: min(100%, 30rem) }
th, td { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top; overflow-wrap: break-word }
th { font-weight: 600; border-bottom: 1px solid #8886 }
td.long { min-width: 11rem; max-width: 40rem; overflow-wrap: anywhere }
.n { text-align: right; font-variant-numeric: tabular-nums } td.n { white-space: nowrap }
.bar { background: #2a7fd4; height: .7rem; display: inline-block; border-radius: 2px }
.flow { columns: 22rem; column-gap: 3rem } .flow h2 { break-after: avoid } .flow tr { break-inside: avoid }
.flow table { min-width: 0 } .flow .wide { overflow: visible }
.sheet { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.2rem }
figure { margin: 0; max-width: 44rem } img { width: 100% } figcaption, code, p { overflow-wrap: anywhere }
p { margin: .3rem 0 } .quiet { opacity: .7 }
@media (max-width: 40rem) { th, td { padding-right: .5rem; font-size: .85rem } td.long { min-width: 8rem } }
.alarm { border-left: .4rem solid #d4402a; background: #d4402a22; padding: .5rem .8rem }
"""


def write_report(url: str, manifest: Manifest) -> None:
    """Write ``report.html`` into the folder of a set whose shards are complete.

    Columns and a few rows are all that is read, so a set of any size takes little memory.

    Args:
        url: folder of the set.
        manifest: what will be its manifest.
    """
    sections = describe(manifest, examples(url, manifest))
    parts = [
        f"<h1>{_text(manifest.name)}</h1>",
        f"<p class=quiet>split {_text(', '.join(manifest.splits))}, fingerprint "
        f"<code>{manifest.fingerprint[:16]}</code>, padt {_text(manifest.tool_version)}, images: "
        f"{'in the shards' if manifest.images_mode == 'copy' else 'linked'}</p>",
        *(f"<p class=alarm>{_text(said)}</p>" for said in alarms(manifest)),
        *(_section(section) for section in sections if not section.bars),
        "<div class=flow>",
        *(f"<div>{_section(section)}</div>" for section in sections if section.bars),
        "</div><h2>Pictures</h2>",
        _pictures(url, manifest),
        _section(
            Section(
                "Made from",
                ("role", "file", "bytes"),
                tuple((each.role, each.path, each.bytes) for each in manifest.sources),
            )
        ),
        f"<p>Resize policy: factor {manifest.policy.factor}, {manifest.policy.min_pixels:,} to "
        f"{manifest.policy.max_pixels:,} pixels. {len(manifest.shards):,} shards, "
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


def _section(section: Section) -> str:
    title = f"<h2>{_text(section.title)}</h2>"
    note = f"<p class=quiet>{_text(section.note)}</p>" if section.note else ""
    if not section.rows:
        return f"{title}<p class=quiet>None.</p>{note}"
    numeric = [isinstance(value, int) for value in section.rows[0]]
    head = "".join(
        f"<th{' class=n' if right else ''}>{_text(name)}" for name, right in zip(section.columns, numeric, strict=True)
    )
    peak = max((_number(row) for row in section.rows), default=1) if section.bars else 1
    body = "".join(
        "<tr>"
        + "".join(f"<td{_class(value)}>{_text(value)}" for value in row)
        + (
            f"<td><span class=bar style='width:{_BAR_WIDTH * _number(row) / peak:.0f}px'></span>"
            if section.bars
            else ""
        )
        for row in section.rows
    )
    return f"{title}<div class=wide><table><tr>{head}</tr>{body}</table></div>{note}"


def _class(value: object) -> str:
    """Numbers stand right; long texts are broken anywhere, short ones keep their words whole."""
    return " class=n" if isinstance(value, int) else " class=long" if len(str(value)) > _LONG else ""


def _number(row: tuple[object, ...]) -> int:
    return row[-1] if isinstance(row[-1], int) else 0


def _pictures(url: str, manifest: Manifest) -> str:
    figures = []
    for row in spread_rows(url, manifest, _PICTURES):
        try:
            picture = draw_row(row)
        except ImageError as error:
            # A linked image may be gone by now; the set is what it is.
            logger.warning("The report leaves out the picture of %s: %s", row["key"], error)
            continue
        key = _text(row["key"])
        figures.append(f"<figure><figcaption>{key}</figcaption><img alt='{key}' src='{_data_url(picture)}'></figure>")
    if not figures:
        return "<p class=quiet>There is nothing to show.</p>"
    return (
        "<p>Patch grid, foreground patches (tinted cells), masks, boxes; numbers are places in the row's objects.</p>"
        f"<div class=sheet>{''.join(figures)}</div>"
    )


def _data_url(picture: Image.Image) -> str:
    if picture.width > _PICTURE_WIDTH:
        height = max(1, round(picture.height * _PICTURE_WIDTH / picture.width))
        picture = picture.resize((_PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
