"""What a scoring leaves behind: scores, COCO results, and a sheet of pictures to look at."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.evaluation.report.analysis import analyse
from jobs.evaluation.report.missing import check_review, missing_results, write_review
from jobs.evaluation.report.page import report_page
from jobs.evaluation.samples import EvalSample, EvalSet, pixel_box
from jobs.evaluation.store import COCO_FILE, METRICS_FILE, MISSING_FILE, PICTURES_FILE, REPORT_FILE
from padt.data.image import open_image
from padt.data.patches import unpack_patches
from padt.data.rle import decode
from padt.data.tasks import GROUNDED_TASKS
from padt.errors import ImageError, UserError
from pipelines.io.storage import Folder
from pipelines.loader.sample_source import BadSampleError, RowReader


@dataclass(frozen=True)
class ReportOptions:
    """What a scoring leaves besides its scores.

    Attributes:
        page: write ``report.html``.
        pictures: samples on the contact sheet.
        missing_labels: a folder for the labels that the truth may lack, which FiftyOne opens; any fsspec URL.
        missing_score: least score of those.
    """

    page: bool = True
    pictures: int = 12
    missing_labels: str | None = None
    missing_score: float = 0.5

    def check(self, data: EvalSet) -> None:
        """Make sure, before the first answer, that what is asked for can be made.

        Raises:
            UserError: missing labels of a set without detection, or a folder for them that holds other things.
        """
        if self.missing_labels is None:
            return
        if not data.of_task("detect"):
            raise UserError("--missing-labels is about detection, which is not asked here: leave it out.")
        check_review(self.missing_labels)


def publish_report(
    url: str | None,
    data: EvalSet,
    records: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    masks: bool,
    synonyms: Mapping[str, str] | None = None,
    options: ReportOptions | None = None,
) -> None:
    """Write the results into a folder, over those of an earlier scoring; other files are left alone.

    ``metrics.json`` goes away first and comes back last: where it is, the evaluation is whole.

    Args:
        url: folder, any fsspec URL; made if needed. None = only the folder of missing labels, where it is asked for.
        data: the evaluated set.
        records: at most one a sample.
        results: COCO's results list.
        summary: content of ``metrics.json``.
        masks: masks were asked for.
        synonyms: category by other names that answers may call it.
        options: what else to make.
    """
    options = options or ReportOptions()
    analysis = None
    if options.missing_labels is not None or (url is not None and (options.page or data.of_task("detect"))):
        analysis = analyse(data, records, masks, synonyms, options.missing_score)
    if options.missing_labels is not None and analysis is not None:
        write_review(options.missing_labels, analysis)
    if url is None:
        return
    folder = Folder(url)
    for name in (METRICS_FILE, COCO_FILE, MISSING_FILE, PICTURES_FILE, REPORT_FILE):
        folder.remove(name)
    if data.of_task("detect") and analysis is not None:
        folder.write(COCO_FILE, json.dumps(results).encode())
        folder.write(MISSING_FILE, json.dumps(missing_results(analysis)).encode())
    sheet = contact_sheet_of(data, records, options.pictures) if options.pictures else None
    if sheet is not None:
        encoded = io.BytesIO()
        sheet.save(encoded, "PNG")
        folder.write(PICTURES_FILE, encoded.getvalue())
    if options.page and analysis is not None:
        folder.write(REPORT_FILE, report_page(analysis, summary))
    folder.write(METRICS_FILE, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())


def contact_sheet_of(data: EvalSet, records: Sequence[Mapping[str, Any]], pictures: int):
    """A picture of samples, evenly spread over each task: truth on the left, prediction on the right.

    Returns:
        A Pillow image, or None where no sample can be drawn.
    """
    from jobs.inference.drawing import found_objects, readable
    from padt.drawing.objects import contact_sheet, draw_objects

    by_id = {record["id"]: record for record in records}
    reader = RowReader(data.index)
    drawn, titles = [], []
    for sample in _spread(data, pictures):
        row = data.truth[sample.row]
        try:
            image = open_image(reader.row(sample.row)["image"]["bytes"])
        except (ImageError, BadSampleError):
            continue
        grid = (row["grid_h"], row["grid_w"])
        prediction = by_id.get(sample.id, {}).get("prediction") or {"objects": [], "text": ""}
        # The model's own grid, where it resizes otherwise than the set was prepared for.
        own = tuple(prediction.get("grid") or grid)
        title = sample.task if sample.sentence is None else f"{sample.task}: {sample.sentence}"
        drawn.append(draw_objects(image, _true_objects(row, sample), grid=grid, caption=_true_text(row, sample)))
        drawn.append(draw_objects(image, found_objects(prediction), grid=own, caption=readable(prediction["text"])))
        titles += [f"{title} (truth)", "prediction"]
    return contact_sheet(drawn, columns=4, titles=titles) if drawn else None


def _true_objects(row: Mapping[str, Any], sample: EvalSample) -> list[Any]:
    from padt.drawing.objects import DrawnObject

    chosen = range(len(row["objects"]))
    if sample.task == "refer":
        chosen = row["references"][sample.item]["objects"]
    elif sample.task == "caption":
        chosen = row["captions"][0]["objects"]
    drawn = []
    for index in dict.fromkeys(chosen):
        entry = row["objects"][index]
        patches = np.flatnonzero(unpack_patches(entry["patches"], row["grid_h"] * row["grid_w"]))
        drawn.append(
            DrawnObject(
                label=entry["label"],
                score=None,
                box=pixel_box(entry["box"], row),
                mask=decode(entry["rle"]) if entry["rle"] is not None else None,
                patches=tuple(patches.tolist()),
                vrts=(),
            )
        )
    return drawn


def _true_text(row: Mapping[str, Any], sample: EvalSample) -> str | None:
    from jobs.inference.drawing import readable

    return readable(row["captions"][0]["text"]) if sample.task == "caption" else None


def _spread(data: EvalSet, pictures: int) -> list[EvalSample]:
    groups = [group for task in GROUNDED_TASKS if (group := data.of_task(task))]
    chosen: list[EvalSample] = []
    for position, group in enumerate(groups):
        share = pictures // len(groups) + (position < pictures % len(groups))
        places = np.linspace(0, len(group) - 1, min(share, len(group))).round().astype(int)
        chosen += [group[place] for place in dict.fromkeys(places.tolist())]
    return chosen
