"""The report of a prepared data set: one HTML page that needs nothing beside itself."""

import logging
from collections.abc import Iterable

from padt.drawing.charts import bar
from padt.drawing.page import Content, Markup, PageSection, element, figure, html_page, paragraph, picture, table
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


def write_report(url: str, manifest: Manifest) -> None:
    """Write ``report.html`` into the folder of a set whose shards are complete.

    Columns and a few rows are all that is read, so a set of any size takes little memory.

    Args:
        url: folder of the set.
        manifest: what will be its manifest.
    """
    sections = describe(manifest, examples(url, manifest))
    images = "in the shards" if manifest.images_mode == "copy" else "linked"
    lead = [
        paragraph(
            f"split {', '.join(manifest.splits)}, fingerprint ",
            element("code", manifest.fingerprint[:16]),
            f", padt {manifest.tool_version}, images: {images}",
            class_="quiet",
        ),
        *(paragraph(said, class_="alarm") for said in alarms(manifest)),
    ]
    columns = element("div", *(element("div", *_histogram(each)) for each in sections if each.bars), class_="flow")
    policy = manifest.policy
    made_of = paragraph(
        f"Resize policy: factor {policy.factor}, {policy.min_pixels:,} to {policy.max_pixels:,} pixels. "
        f"{len(manifest.shards):,} shards, {sum(shard.bytes for shard in manifest.shards):,} bytes."
    )
    sources = Section(
        "Made from", ("role", "file", "bytes"), tuple((each.role, each.path, each.bytes) for each in manifest.sources)
    )
    page = html_page(
        f"{manifest.name} - data set report",
        lead,
        [
            *(PageSection(each.title, (*_table(each),)) for each in sections if not each.bars),
            PageSection("What is in it", (columns,)),
            PageSection("Pictures", (*_pictures(url, manifest),)),
            PageSection(sources.title, (*_table(sources), made_of)),
        ],
    )
    Folder(url).write(REPORT_NAME, page)


def _table(section: Section) -> Iterable[Markup]:
    yield table(section.columns, section.rows, section.title) if section.rows else paragraph("None.", class_="quiet")
    if section.note:
        yield paragraph(section.note, class_="quiet")


def _histogram(section: Section) -> Iterable[Markup]:
    """A table whose last column is drawn as bars too."""
    peak = max(_number(row) for row in section.rows) or 1
    rows = [(*row, bar(_number(row) / peak)) for row in section.rows]
    yield element("h3", section.title)
    yield table((*section.columns, ""), rows, section.title)
    if section.note:
        yield paragraph(section.note, class_="quiet")


def _number(row: tuple[Content, ...]) -> int:
    return row[-1] if isinstance(row[-1], int) else 0


def _pictures(url: str, manifest: Manifest) -> Iterable[Markup]:
    figures = []
    for row in spread_rows(url, manifest, _PICTURES):
        try:
            drawn = draw_row(row)
        except ImageError as error:
            # A linked image may be gone by now; the set is what it is.
            logger.warning("The report leaves out the picture of %s: %s", row["key"], error)
            continue
        figures.append(figure([picture(drawn, row["key"])], row["key"]))
    if not figures:
        yield paragraph("There is nothing to show.", class_="quiet")
        return
    yield paragraph(
        "Patch grid, foreground patches (tinted cells), masks, boxes; numbers are places in the row's objects."
    )
    yield element("div", *figures, class_="sheet")
