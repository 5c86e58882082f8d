"""Differences of two evaluations, task by task, with paired bootstrap intervals over images."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.evaluation.comparison.pair import Pair, Side
from jobs.evaluation.samples import EvalSample
from jobs.evaluation.scoring import caption_answer, found_objects, read_synonyms, renamed
from padt.errors import check_range
from padt.metrics.paired.caption import caption_measure
from padt.metrics.paired.detect import detect_measure, image_f1
from padt.metrics.paired.refer import refer_measure, sentence_right, sentence_value
from padt.metrics.paired.resampling import LEVEL, RESAMPLES, Difference, Measure, Tally, differences, image_draws, tally
from padt.metrics.records import FoundObject
from padt.metrics.refer import grade_sentence

Values = tuple[Mapping[str, float], Mapping[str, float]]

VALUE_OF = {
    "refer": "box IoU of a sentence; 1 or 0 with several targets or none",
    "detect": "F1 of an image's boxes at IoU 0.5",
    "caption": "CIDEr-D of a caption; without reference captions, F1 of its groups",
}
"""By what the answers of a task are compared one by one."""


@dataclass
class PairedComparison:
    """How two evaluations differ.

    Attributes:
        differences: by metric.
        tallies: who did better on how many questions, by task.
        counts: questions that were compared, and those that were not.
        draws, seed: of the bootstrap.
        values: how good each answer is, by task and sample id, of both.
    """

    counts: dict[str, int]
    draws: int
    seed: int
    differences: dict[str, Difference] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)

    def to_dict(self, names: tuple[str, str]) -> dict[str, Any]:
        """Plain values for JSON.

        Args:
            names: of the two evaluations.
        """
        return {
            "first": names[0],
            "second": names[1],
            "level": LEVEL,
            "draws": self.draws,
            "seed": self.seed,
            "counts": self.counts,
            "differences": {
                name: {
                    **asdict(one),
                    # No draw has the metric: there is no interval.
                    **({} if one.draws else {"low": None, "high": None}),
                    "difference": one.difference,
                    "clear": one.clear,
                }
                for name, one in self.differences.items()
            },
            "tallies": {task: {**asdict(one), "by": VALUE_OF[task]} for task, one in self.tallies.items()},
        }


def compare_pair(
    pair: Pair, draws: int = RESAMPLES, seed: int = 0, synonyms: str | Path | None = None
) -> PairedComparison:
    """Compare two evaluations.

    Args:
        pair: their answers.
        draws: of the bootstrap.
        seed: of the draws; both evaluations, and all metrics of a task, are scored on the same ones.
        synonyms: YAML file of other names of categories that answers use; default: those of each evaluation.

    Raises:
        UserError: draws cannot be, or synonyms do not fit the set.
    """
    check_range("draws", draws, 1)
    found = PairedComparison(pair.counts, draws, seed)
    for task, measured in (("refer", _refer), ("detect", _detect), ("caption", _caption)):
        samples = pair.of_task(task)
        if not samples:
            continue
        rows = list(dict.fromkeys(sample.row for sample in samples))
        place = {row: number for number, row in enumerate(rows)}
        weights = image_draws(len(rows), draws, seed)
        for first, second in measured(pair, samples, place, found, synonyms):
            found.differences |= differences(first, second, weights)
    return found


Measures = list[tuple[Measure, Measure]]


def _refer(
    pair: Pair, samples: list[EvalSample], place: Mapping[int, int], found: PairedComparison, _: Any
) -> Measures:
    targets = {target.id: target for target in pair.data.refer_targets()}
    graded = [
        {sample.id: grade_sentence(targets[sample.id], _objects(side, sample), pair.masks) for sample in samples}
        for side in pair.sides
    ]
    values = tuple({name: sentence_value(grade) for name, grade in own.items()} for own in graded)
    right = [{name: sentence_right(grade) for name, grade in own.items()} for own in graded]
    found.values["refer"] = (values[0], values[1])
    found.tallies["refer"] = tally(values[0], values[1], right)
    places = [place[sample.row] for sample in samples]
    first, second = (refer_measure(list(own.values()), places, len(place)) for own in graded)
    return [(first, second)]


def _detect(
    pair: Pair, samples: list[EvalSample], place: Mapping[int, int], found: PairedComparison, synonyms: Any
) -> Measures:
    categories = [(category.id, category.name) for category in pair.data.manifest.categories]
    given = read_synonyms(synonyms, categories) if synonyms is not None else None
    by_id = {image.id: image for image in pair.data.detect_targets()}
    images = [by_id[sample.id] for sample in samples]
    answers = []
    for side in pair.sides:
        others = given if given is not None else side.about.get("synonyms")
        answers.append({sample.id: renamed(_objects(side, sample), others) for sample in samples})
    values = [image_f1(images, own, categories) for own in answers]
    found.values["detect"] = (values[0], values[1])
    found.tallies["detect"] = tally(values[0], values[1])
    measures: Measures = []
    for masks in (False, True) if pair.masks else (False,):
        first, second = (detect_measure(images, own, categories, masks) for own in answers)
        measures.append((first, second))
    return measures


def _caption(
    pair: Pair, samples: list[EvalSample], place: Mapping[int, int], found: PairedComparison, _: Any
) -> Measures:
    by_id = {target.id: target for target in pair.data.caption_targets()}
    targets = [by_id[sample.id] for sample in samples]
    places = [place[sample.row] for sample in samples]
    measured = []
    for side in pair.sides:
        told = {
            sample.id: caption_answer(prediction)
            for sample in samples
            if (prediction := side.records[sample.id]["prediction"])
        }
        measured.append(caption_measure(targets, told, places, len(place)))
    (first, one), (second, other) = measured
    found.values["caption"] = (one, other)
    found.tallies["caption"] = tally(one, other)
    return [(first, second)]


def _objects(side: Side, sample: EvalSample) -> list[FoundObject]:
    """Objects of an answer; a picture that could not be read counts as an answer without any."""
    prediction = side.records[sample.id]["prediction"]
    return found_objects(prediction) if prediction else []


def disagreements(values: Values, number: int, first_better: bool) -> list[str]:
    """Questions that one of two systems did better on by the most, the widest gap first.

    Args:
        values: how good each answer is, of both.
        number: at most.
        first_better: those of the first system; else of the second.
    """
    sign = 1.0 if first_better else -1.0
    gaps = {name: sign * (values[0][name] - values[1][name]) for name in values[0]}
    order = sorted((name for name in gaps if gaps[name] > 1e-9), key=lambda name: (-gaps[name], name))
    return order[:number]
