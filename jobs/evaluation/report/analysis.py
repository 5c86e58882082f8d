"""What went wrong in a set's answers, task by task: the one thing that tables, examples and exports are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.samples import EvalSet, pixel_box
from jobs.evaluation.scoring import caption_answer, found_objects, renamed
from padt.metrics.analysis.detect import DetectAnalysis, analyse_detect
from padt.metrics.analysis.missing import MissingLabel, missing_labels
from padt.metrics.analysis.refer import SentenceOutcome, outcome_of
from padt.metrics.caption import CaptionGrounding, grounding_of
from padt.metrics.records import FoundObject

Record = Mapping[str, Any]


@dataclass(frozen=True)
class SetAnalysis:
    """Answers, and what is wrong with them.

    Attributes:
        data: the set.
        answers: by id of the sample, those that came.
        found: their objects, in the order of writing, without those that are not finite.
        malformed: ids of the samples whose answer is at fault in its form: none came, it was cut off, a group of it is
            not whole, or its numbers are not finite.
        boxes: detections judged by boxes; None without ``detect``.
        masks: the same judged by masks; None where masks were not asked for.
        sentences: outcome by id of a ``refer`` sample.
        captions: groups and objects by id of a ``caption`` sample.
        missing: detections that the truth may lack.
        missing_score: least score of those.
    """

    data: EvalSet
    answers: Mapping[str, Record]
    found: Mapping[str, Sequence[FoundObject]]
    malformed: frozenset[str]
    boxes: DetectAnalysis | None
    masks: DetectAnalysis | None
    sentences: Mapping[str, SentenceOutcome]
    captions: Mapping[str, CaptionGrounding]
    missing: Sequence[MissingLabel]
    missing_score: float


def analyse(
    data: EvalSet,
    records: Sequence[Record],
    masks: bool,
    synonyms: Mapping[str, str] | None = None,
    missing_score: float = 0.5,
) -> SetAnalysis:
    """Look for what is wrong in the answers to a set.

    Args:
        data: the set.
        records: at most one a sample.
        masks: masks were asked for.
        synonyms: category by other names that answers may call it.
        missing_score: least score of a detection that the truth may lack.
    """
    answers = {record["id"]: record["prediction"] for record in records if record["prediction"]}
    found = {sample: found_objects(prediction) for sample, prediction in answers.items()}
    malformed = frozenset(
        sample.id
        for sample in data.samples
        if sample.id not in answers or _at_fault(answers[sample.id], found[sample.id])
    )
    images = data.detect_targets()
    boxes = outlines = None
    missing: list[MissingLabel] = []
    if images:
        categories = [(category.id, category.name) for category in data.manifest.categories]
        named = {image.id: renamed(found[image.id], synonyms) for image in images if image.id in found}
        boxes = analyse_detect(images, named, categories, malformed)
        if masks:
            outlines = analyse_detect(images, named, categories, malformed, masks=True)
        missing = missing_labels(images, named, categories, missing_score)
    captions = {
        target.id: grounding_of(target, caption_answer(answers.get(target.id))) for target in data.caption_targets()
    }
    return SetAnalysis(
        data=data,
        answers=answers,
        found=found,
        malformed=malformed,
        boxes=boxes,
        masks=outlines if outlines is not None and outlines.ap is not None else None,
        sentences=_outcomes(data, found, malformed, masks),
        captions=captions,
        missing=missing,
        missing_score=missing_score,
    )


def other_objects(row: Mapping[str, Any], item: int) -> list[int]:
    """Places of a row's objects that a sentence does not mean, without crowd regions."""
    meant = row["references"][item]["objects"]
    return [place for place, entry in enumerate(row["objects"]) if place not in meant and not entry["iscrowd"]]


def single_objects(row: Mapping[str, Any]) -> list[int]:
    """Places of a row's objects that are no crowd regions."""
    return [place for place, entry in enumerate(row["objects"]) if not entry["iscrowd"]]


def _outcomes(
    data: EvalSet, found: Mapping[str, Sequence[FoundObject]], malformed: frozenset[str], masks: bool
) -> dict[str, SentenceOutcome]:
    outcomes = {}
    for sample, target in zip(data.of_task("refer"), data.refer_targets(), strict=True):
        row = data.truth[sample.row]
        others = [pixel_box(row["objects"][place]["box"], row) for place in other_objects(row, sample.item or 0)]
        outcomes[sample.id] = outcome_of(target, found.get(sample.id, ()), others, sample.id in malformed, masks)
    return outcomes


def _at_fault(prediction: Record, found: Sequence[FoundObject]) -> bool:
    return bool(
        prediction["truncated"]
        or prediction.get("not_finite")
        or len(found) < len(prediction["objects"])
        or not all(one.complete for one in found)
    )
