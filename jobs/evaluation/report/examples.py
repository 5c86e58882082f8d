"""Examples for people to look at: the worst answers and some at random, drawn beside the truth.

Which are shown, and every pixel of them, depends on set and answers alone.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jobs.evaluation.report.analysis import SetAnalysis, other_objects, single_objects
from jobs.evaluation.report.selection import Example, in_words
from jobs.evaluation.samples import EvalSample, pixel_box
from jobs.evaluation.scoring import finite_objects
from padt.data.image import open_image
from padt.data.patches import unpack_patches
from padt.drawing.objects import DrawnObject, draw_objects
from padt.drawing.page import Markup, element, figure, paragraph, picture
from padt.drawing.text import readable
from padt.errors import ImageError
from pipelines.loader.sample_source import BadSampleError, RowReader

logger = logging.getLogger(__name__)

_SIDE = 560
_LETTERING = 1.5


class ExampleSheet:
    """Draws examples; a picture is read when it is shown.

    Args:
        analysis: of the answers.
    """

    def __init__(self, analysis: SetAnalysis) -> None:
        self._analysis = analysis
        self._reader = RowReader(analysis.data.index)
        graded = analysis.boxes.detections if analysis.boxes is not None else ()
        self._graded: dict[tuple[str, int], tuple[str | None, int | None]] = {
            (one.image, one.place): (one.mistake, one.target) for one in graded
        }
        self._missed = {(image, place) for image, place, _ in (analysis.boxes.missed if analysis.boxes else ())}

    def figures(self, examples: Iterable[Example]) -> list[Markup]:
        """Truth and answer side by side, with words below; examples whose picture cannot be read are left out."""
        made = []
        for example in examples:
            truth, answer = self._objects(example.sample)
            shown = self.pair(example.sample, truth, answer)
            if shown is not None:
                made.append(figure(shown, *self._words(example)))
        return made

    def pair(
        self, sample: EvalSample, truth: Sequence[DrawnObject], answer: Sequence[DrawnObject]
    ) -> list[Markup] | None:
        """The picture of a sample twice, with what is true and with what was answered."""
        row = self._analysis.data.truth[sample.row]
        try:
            image = open_image(self._reader.row(sample.row)["image"]["bytes"])
        except (ImageError, BadSampleError) as error:
            logger.warning("The report leaves out the picture of %s: %s", sample.key, error)
            return None
        scale = min(1.0, _SIDE / max(image.size))
        if scale < 1:
            sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(sides, Image.Resampling.LANCZOS)
        grid = (row["grid_h"], row["grid_w"])
        # The model's own grid, where it resizes otherwise than the set was prepared for.
        own = tuple((self._analysis.answers.get(sample.id) or {}).get("grid") or grid)
        shown = []
        for name, objects, cells in (("truth", truth, grid), ("answer", answer, own)):
            scaled = [_scaled(one, scale) for one in objects]
            drawn = draw_objects(image, scaled, cells, least_side=_SIDE, lettering=_LETTERING)
            labels = ", ".join(one.label for one in objects if one.label) or "nothing"
            shown.append(element("div", picture(drawn, f"{sample.key}, {name}: {labels}", _SIDE), paragraph(name)))
        return shown

    def _objects(self, sample: EvalSample) -> tuple[list[DrawnObject], list[DrawnObject]]:
        row = self._analysis.data.truth[sample.row]
        entries = finite_objects(self._analysis.answers.get(sample.id) or {"objects": []})
        if sample.task == "refer":
            return self._refer(sample, row, entries)
        if sample.task == "caption":
            return self._caption(sample, row, entries)
        truth = [
            true_object(row, place, "missed" if (sample.id, place) in self._missed else "")
            for place in range(len(row["objects"]))
        ]
        answer = []
        for place, entry in enumerate(entries):
            mistake, target = self._graded.get((sample.id, place), (None, None))
            colour = target if target is not None else len(truth) + place
            answer.append(answered_object(entry, in_words(mistake) if mistake else "", colour))
        return truth, answer

    def _refer(
        self, sample: EvalSample, row: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
    ) -> tuple[list[DrawnObject], list[DrawnObject]]:
        outcome = self._analysis.sentences[sample.id]
        targets = row["references"][sample.item or 0]["objects"]
        truth = [true_object(row, place, name="target") for place in dict.fromkeys(targets)]
        meant = targets[0] if len(targets) == 1 and (outcome.hit or outcome.kind == "poor_box") else None
        if outcome.mistaken_for is not None:
            meant = other_objects(row, sample.item or 0)[outcome.mistaken_for]
            truth.append(true_object(row, meant, "pointed at"))
        answer = [
            answered_object(entry, name="answer", colour=meant)
            if place == outcome.place and meant is not None
            else answered_object(
                entry, "" if place == outcome.place else "lower score", len(row["objects"]) + place, "answer"
            )
            for place, entry in enumerate(entries)
        ]
        return truth, answer

    def _caption(
        self, sample: EvalSample, row: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
    ) -> tuple[list[DrawnObject], list[DrawnObject]]:
        found = self._analysis.captions[sample.id]
        single = single_objects(row)
        missed = {single[place] for place in found.missed}
        owners = {group: single[place] for group, place in found.pairs}
        truth = [true_object(row, place, "not mentioned" if place in missed else "") for place in single]
        answer = [
            answered_object(
                entry,
                "fits nothing" if place in found.hallucinated else "",
                owners.get(place, len(row["objects"]) + place),
            )
            for place, entry in enumerate(entries)
        ]
        return truth, answer

    def _words(self, example: Example) -> list[Markup]:
        sample, prediction = example.sample, self._analysis.answers.get(example.sample.id)
        asked = element("strong", f"“{sample.sentence}”: ") if sample.sentence is not None else None
        words = [paragraph(asked, example.said), paragraph(sample.key, class_="quiet")]
        text = readable(prediction["text"]) if prediction is not None else ""
        if text and sample.task == "caption":
            words.insert(0, paragraph(text))
        elif text:
            words.append(element("details", element("summary", "what the answer says"), paragraph(text)))
        return words


def true_object(row: Mapping[str, Any], place: int, remark: str = "", name: str | None = None) -> DrawnObject:
    """An object of a row with its patches; its colour is that of its place."""
    entry = row["objects"][place]
    patches = np.flatnonzero(unpack_patches(entry["patches"], row["grid_h"] * row["grid_w"])).tolist()
    label = f"{name or entry['label']}{' (crowd)' if entry['iscrowd'] else ''}"
    return DrawnObject(
        label=f"{label}: {remark}" if remark else label,
        box=pixel_box(entry["box"], row),
        mask=entry["rle"],
        patches=tuple(patches),
        colour=place,
    )


def answered_object(
    entry: Mapping[str, Any], remark: str = "", colour: int | None = None, name: str | None = None
) -> DrawnObject:
    """An object of an answer with its VRTs."""
    label = f"{name or entry['label']} {entry['score']:.2f}"
    x0, y0, x1, y1 = entry["box"]
    return DrawnObject(
        label=f"{label}: {remark}" if remark else label,
        box=(x0, y0, x1, y1),
        mask=entry.get("mask"),
        vrts=tuple(entry.get("patches") or ()),
        colour=colour,
    )


def _scaled(one: DrawnObject, scale: float) -> DrawnObject:
    if scale == 1 or one.box is None:
        return one
    x0, y0, x1, y1 = (edge * scale for edge in one.box)
    return DrawnObject(one.label, one.score, (x0, y0, x1, y1), one.mask, one.patches, one.vrts, one.colour)
