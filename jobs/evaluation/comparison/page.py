"""The comparison as one HTML page: differences with their intervals, and pictures where the two disagree."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from jobs.evaluation.comparison.compare import VALUE_OF, PairedComparison, disagreements
from jobs.evaluation.comparison.pair import Pair
from jobs.evaluation.samples import EvalSample, pixel_box
from jobs.inference.drawing import found_objects
from padt.data.image import open_image
from padt.data.patches import unpack_patches
from padt.drawing.objects import DrawnObject, draw_objects
from padt.drawing.page import (
    Content,
    Markup,
    Number,
    PageSection,
    element,
    figure,
    html_page,
    paragraph,
    picture,
    table,
)
from padt.drawing.text import readable
from padt.errors import ImageError
from padt.metrics.paired.resampling import LEVEL, Difference
from padt.metrics.table import in_order, label, written
from pipelines.loader.sample_source import BadSampleError, RowReader

logger = logging.getLogger(__name__)

_WIDTH = 420
_TASKS = {"refer": "Sentences", "detect": "Detection", "caption": "Captions"}
COUNTS = {
    "compared": "questions that both have answered",
    "only_first_asked": "questions that only the first was asked, left out",
    "only_second_asked": "questions that only the second was asked, left out",
    "unknown": "answers to questions that the set does not have, left out",
}
"""What is counted, in words."""


def comparison_page(pair: Pair, found: PairedComparison, names: tuple[str, str], pictures: int = 6) -> bytes:
    """A page that needs nothing beside itself; the same answers give the same bytes.

    Args:
        pair: the answers.
        found: how they differ.
        names: of the two evaluations.
        pictures: of each task and each way of disagreeing.
    """
    lead = [
        paragraph(
            f"Set {pair.data.manifest.name}, data {pair.data.manifest.fingerprint[:16]}. Intervals hold the middle "
            f"{LEVEL:.0%} of {found.draws:,} draws of images with replacement (seed {found.seed}), the same for both. "
            "A difference whose interval leaves zero out is marked.",
            class_="quiet",
        ),
        table(["", "number"], [[COUNTS[name], count] for name, count in found.counts.items()], "Counts"),
    ]
    rows = [
        [label(name), Number(written(name, one.first)), Number(written(name, one.second)), *difference_cells(name, one)]
        for name, one in ((name, found.differences[name]) for name in in_order(found.differences))
    ]
    head = ["metric", *names, "difference", "interval", ""]
    sections = [PageSection("Differences", (table(head, rows, "Differences"),)), _won(found, names)]
    reader = RowReader(pair.data.index)
    for task, values in found.values.items():
        for first_better in (True, False):
            better, worse = names if first_better else names[::-1]
            chosen = disagreements(values, pictures, first_better)
            samples = {sample.id: sample for sample in pair.of_task(task)}
            shown = [one for name in chosen if (one := _figure(pair, samples[name], values, reader, names)) is not None]
            said: Content = paragraph("None.", class_="quiet") if not shown else element("div", *shown, class_="sheet")
            sections.append(PageSection(f"{_TASKS[task]}: {better} better than {worse}", (said,)))
    return html_page(f"{names[0]} and {names[1]}", lead, sections)


def difference_cells(name: str, one: Difference) -> list[str]:
    """Difference, interval and mark of a metric, written as the metric is."""
    interval = f"{_signed(name, one.low)} to {_signed(name, one.high)}" if one.draws else ""
    return [Number(_signed(name, one.difference)), Number(interval), "*" if one.clear else ""]


def tally_rows(found: PairedComparison) -> list[list[Any]]:
    """Rows of the table of wins: task, first better, second better, ties, only first right, only second right, p."""
    return [
        [
            _TASKS[task].lower(),
            *(f"{count:,} ({count / max(1, total):.0%})" for count in (one.first, one.second, one.ties)),
            one.only_first,
            one.only_second,
            "" if one.p is None else f"{one.p:.2g}",
        ]
        for task, one in found.tallies.items()
        for total in [one.first + one.second + one.ties]
    ]


def tally_head(names: tuple[str, str]) -> list[str]:
    """Names of the columns of these rows."""
    first, second = names
    return ["", f"{first} better", f"{second} better", "ties", f"only {first} right", f"only {second} right", "p"]


def _won(found: PairedComparison, names: tuple[str, str]) -> PageSection:
    by = [paragraph(f"{_TASKS[task]} are compared by {VALUE_OF[task]}.", class_="quiet") for task in found.tallies]
    note = paragraph(
        "Right is an IoU of 0.5 or more, and no object where a sentence has no target. p is McNemar's exact test on "
        "the questions that only one has right; it takes sentences for independent, and those of one picture are not.",
        class_="quiet",
    )
    return PageSection("Who did better", (table(tally_head(names), tally_rows(found), "Who did better"), *by, note))


def _figure(
    pair: Pair,
    sample: EvalSample,
    values: tuple[Mapping[str, float], Mapping[str, float]],
    reader: RowReader,
    names: tuple[str, str],
) -> Markup | None:
    """Truth and both answers side by side; None where the picture cannot be read."""
    row = pair.data.truth[sample.row]
    try:
        image = open_image(reader.row(sample.row)["image"]["bytes"])
    except (ImageError, BadSampleError) as error:
        logger.warning("The page leaves out the picture of %s: %s", sample.key, error)
        return None
    grid = (row["grid_h"], row["grid_w"])
    shown = [_drawn(image, _truth(row, sample), grid, f"{sample.key}: truth", "truth")]
    words = [paragraph(sample.sentence) if sample.sentence is not None else None, paragraph(sample.key, class_="quiet")]
    for side, name, own in zip(pair.sides, names, values, strict=True):
        prediction = side.records[sample.id]["prediction"] or {"objects": [], "text": ""}
        cells = tuple(prediction.get("grid") or grid)
        objects = found_objects(prediction)
        shown.append(_drawn(image, objects, cells, f"{sample.key}: {name}", f"{name}: {own[sample.id]:.2f}"))
        if text := readable(prediction["text"]):
            words.append(element("details", element("summary", f"what {name} says"), paragraph(text)))
    return figure(shown, *words)


def _drawn(image: Image.Image, objects: list[DrawnObject], grid: Any, alt: str, said: str) -> Markup:
    return element("div", picture(draw_objects(image, objects, grid), alt, _WIDTH), paragraph(said))


def _truth(row: Mapping[str, Any], sample: EvalSample) -> list[DrawnObject]:
    places = list(range(len(row["objects"])))
    if sample.task == "refer":
        places = row["references"][sample.item or 0]["objects"]
    elif sample.task == "caption":
        places = sorted({place for caption in row["captions"] for place in caption["objects"]})
    drawn = []
    for place in dict.fromkeys(places):
        entry = row["objects"][place]
        patches = np.flatnonzero(unpack_patches(entry["patches"], row["grid_h"] * row["grid_w"])).tolist()
        label = f"{entry['label']} (crowd)" if entry["iscrowd"] else entry["label"]
        drawn.append(DrawnObject(label, box=pixel_box(entry["box"], row), mask=entry["rle"], patches=tuple(patches)))
    return drawn


def _signed(name: str, value: float) -> str:
    text = written(name, value)
    return text if text.startswith("-") else f"+{text}"
