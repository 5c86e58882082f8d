"""From answers to scores: the same whether they came a minute ago, from a file, or from another system."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.common.config_tree import read_yaml
from jobs.evaluation.samples import EvalSet
from jobs.evaluation.vocabulary import score_parts
from padt.errors import UserError, suggestion
from padt.metrics.caption import CaptionAnswer, score_captions
from padt.metrics.detect import category_ids, fold, score_detect
from padt.metrics.f1 import score_f1
from padt.metrics.records import FoundObject, Scores
from padt.metrics.refer import ReferTarget, score_refer, score_refer_released
from padt.metrics.sentence_kinds import compile_kinds, score_by_kind

Record = Mapping[str, Any]
Found = Mapping[str, Sequence[FoundObject]]


@dataclass(frozen=True)
class SetScores:
    """What a set's answers are worth.

    Attributes:
        metrics: of all tasks, by name; those of a split begin with ``split/``, where the set has several.
        counts: what they stand on, and what was wrong with the answers.
        results: COCO's results list; empty without ``detect``.
        splits: metrics of sentences by ``source/split``.
        kinds: of sentences, by kind; see ``padt.metrics.sentence_kinds``.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    results: list[dict[str, Any]] = field(default_factory=list)
    splits: dict[str, dict[str, float]] = field(default_factory=dict)
    kinds: dict[str, dict[str, float]] = field(default_factory=dict)


def score_records(
    data: EvalSet,
    records: Sequence[Record],
    masks: bool,
    released: bool = False,
    synonyms: Mapping[str, str] | None = None,
    kinds: Mapping[str, str] | None = None,
    unseen: Sequence[str] | None = None,
) -> SetScores:
    """Score the records of a set.

    Args:
        data: the set.
        records: at most one a sample; samples without one count as unanswered.
        masks: masks were asked for.
        released: also score by the released protocols, under names of their own. They rank by the decoder's scores as
            they were before any calibration.
        synonyms: category by other names that answers may call it.
        kinds: of sentences, with the words that tell them, see ``read_kinds``.
        unseen: classes that the model was not trained to find, which are also scored apart; None = not known.
    """
    answered = {record["id"]: record["prediction"] for record in records if record["prediction"]}
    found = {sample: found_objects(prediction) for sample, prediction in answered.items()}
    scores = SetScores({}, _counts(records, found))
    targets = data.refer_targets()
    if targets:
        answers = {target.id: found[target.id] for target in targets if target.id in found}
        _add(scores, score_refer(targets, answers, masks))
        if masks:
            scores.counts["sentences_without_masks"] = len(targets) - scores.counts["sentences_with_masks"]
        _add_splits(scores, data, targets, answers, masks)
        if kinds:
            scores.kinds.update(score_by_kind(targets, answers, compile_kinds(kinds), masks))
        if released:
            _add(scores, score_refer_released(targets, answers, masks))
    images = data.detect_targets()
    if images:
        categories = [(category.id, category.name) for category in data.manifest.categories]
        answers = {image.id: renamed(found[image.id], synonyms) for image in images if image.id in found}
        official, detections = score_detect(images, answers, categories, masks)
        _add(scores, official)
        _add(scores, score_f1(images, answers, categories))
        scores.metrics.update(score_parts(images, answers, categories, unseen or (), masks))
        scores.results.extend(detections.results)
        if released:
            raw = {
                image.id: renamed(found_objects(answered[image.id], calibrated=False), synonyms)
                for image in images
                if image.id in answered
            }
            paper, _ = score_detect(images, raw, categories, masks, protocol="released")
            _add(scores, Scores(paper.metrics, {f"released_{name}": n for name, n in paper.counts.items()}))
    captions = data.caption_targets()
    if captions:
        written = {target.id: caption_answer(answered[target.id]) for target in captions if target.id in answered}
        _add(scores, score_captions(captions, written))
    return scores


def found_objects(prediction: Mapping[str, Any], calibrated: bool = True) -> list[FoundObject]:
    """Objects of an answer, as ``finite_objects`` has them.

    Args:
        prediction: the answer.
        calibrated: with the scores that rank; False = with the decoder's, as they were before any calibration.
    """
    objects = []
    for entry in finite_objects(prediction):
        one, score = FoundObject.from_dict(entry), entry.get("uncalibrated_score")
        objects.append(one if calibrated or score is None else replace(one, score=score))
    return objects


def finite_objects(prediction: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of an answer's objects; those with a value that is not finite, which no metric can take, are left out."""
    return [
        entry
        for entry in prediction["objects"]
        if all(math.isfinite(value) for value in (entry["score"], *entry["box"]))
    ]


def renamed(objects: Sequence[FoundObject], synonyms: Mapping[str, str] | None) -> list[FoundObject]:
    """Objects under the names of their categories.

    Args:
        objects: of an answer.
        synonyms: category by other names, folded as labels are compared.
    """
    if not synonyms:
        return list(objects)
    return [replace(one, label=synonyms.get(fold(one.label), one.label)) for one in objects]


def caption_answer(prediction: Mapping[str, Any] | None) -> CaptionAnswer:
    """A generated caption as it is scored; None, an answer that never came, is an empty one."""
    if prediction is None:
        return CaptionAnswer("", (), 0)
    return CaptionAnswer(
        text=prediction["text"],
        objects=tuple(found_objects(prediction)),
        tokens=int(prediction["tokens"]),
        truncated=bool(prediction["truncated"]),
    )


def read_synonyms(path: str | Path, categories: Sequence[tuple[int, str]]) -> dict[str, str]:
    """Other names of categories, from a YAML file: ``traffic light: [stoplight, traffic signal]``.

    Args:
        path: of the file.
        categories: ``(id, name)`` of the data set.

    Returns:
        The category's name by each other name, folded as labels are compared.

    Raises:
        UserError: the file cannot be read, a category is unknown, or a name would mean two categories.
    """
    known = {fold(name): name for _, name in categories}
    synonyms: dict[str, str] = {}
    for category, names in read_yaml(path).items():
        if fold(str(category)) not in known:
            raise UserError(
                f"{path}: the data has no category {category!r}: {suggestion(str(category), known.values())}"
            )
        name = known[fold(str(category))]
        for other in [names] if isinstance(names, str) else names or ():
            taken = known.get(fold(str(other))) or synonyms.get(fold(str(other)))
            if taken is not None and taken != name:
                raise UserError(f"{path}: {other!r} would mean both {taken!r} and {name!r}: leave it at one of them.")
            synonyms[fold(str(other))] = name
    return synonyms


def read_kinds(given: str | os.PathLike | Mapping[str, str] | None) -> dict[str, str]:
    """Kinds of sentences with the words that tell them: ``place: left|right|top|bottom``.

    Args:
        given: a YAML file, or its content.

    Raises:
        UserError: the file cannot be read, or an expression is none.
    """
    if given is None:
        return {}
    tree, where = (given, "sentence_kinds") if isinstance(given, Mapping) else (read_yaml(str(given)), str(given))
    kinds = {str(name): str(words) for name, words in tree.items()}
    compile_kinds(kinds, where)
    return kinds


def remarks(counts: Mapping[str, int]) -> list[str]:
    """What a reader of scores should know, in words; only what is not as it should be."""
    told = {
        "answers_missing": "samples have no answer and count as unanswered.",
        "answers_unknown": "answers are about samples that the data does not have; they were left out.",
        "answers_double": "answers were there already; only the first of each counts.",
        "errors": "samples had an unreadable image and count as unanswered.",
        "answers_truncated": "answers ended at max_new_tokens, unfinished: give more.",
        "answers_with_warnings": "answers were malformed in part; their warnings say how.",
        "objects_not_finite": "objects are not finite (inf or NaN) and were left out: use float32.",
        "unknown_labels": "detections bear a label that is no category; they were left out.",
        "detections_beyond_100": "detections beyond the 100 best of a class in an image do not count.",
        "images_without_masks": "images have an object without a mask and stay out of the mask AP.",
        "sentences_without_masks": "sentences have a target without a mask and stay out of RES.",
    }
    return [f"{counts[name]:,} {words}" for name, words in told.items() if counts.get(name)]


def check_names(data: EvalSet) -> None:
    """Make sure that answers in words can be told apart.

    Raises:
        UserError: two categories have one name.
    """
    category_ids((category.id, category.name) for category in data.manifest.categories)


def _counts(records: Sequence[Record], found: Found) -> dict[str, int]:
    answered = [record for record in records if record["prediction"]]
    warnings = [record["prediction"]["warnings"] or () for record in answered if "warnings" in record["prediction"]]
    return {
        "answers": len(answered),
        "errors": sum("error" in record for record in records),
        "answers_truncated": sum(bool(record["prediction"]["truncated"]) for record in answered),
        "answers_with_warnings": sum(bool(each) for each in warnings),
        "parser_warnings": sum(len(each) for each in warnings),
        "objects_not_finite": sum(
            int(record["prediction"].get("not_finite") or 0)
            + len(record["prediction"]["objects"])
            - len(found[record["id"]])
            for record in answered
        ),
    }


def _add_splits(scores: SetScores, data: EvalSet, targets: Sequence[ReferTarget], answers: Found, masks: bool) -> None:
    by_split: dict[tuple[str, str], list[ReferTarget]] = {}
    for target, sample in zip(targets, data.of_task("refer"), strict=True):
        row = data.truth[sample.row]
        by_split.setdefault((row["source"], row["split"]), []).append(target)
    several = len({source for source, _ in by_split}) > 1
    for (source, split), part in sorted(by_split.items()):
        own = {target.id: answers[target.id] for target in part if target.id in answers}
        metrics = score_refer(part, own, masks).metrics if len(by_split) > 1 else dict(scores.metrics)
        scores.splits[f"{source}/{split}"] = metrics
        if len(by_split) > 1:
            head = f"{source}/{split}" if several else split
            scores.metrics.update({f"{head}/{name}": value for name, value in metrics.items()})


def _add(scores: SetScores, part: Scores) -> None:
    scores.metrics.update(part.metrics)
    scores.counts.update(part.counts)
