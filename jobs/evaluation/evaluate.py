"""``padt evaluate``: measure a model on a prepared set.

REC and RES are counted by sentence, detection and captions by image, each exactly once whatever the number of workers.
Answers are kept as they come: an evaluation that was ended early goes on with the windows that are missing.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jobs.common.model_reference import ResolvedModel, fetched, find_model
from jobs.common.progress_bar import counting
from jobs.evaluation.answerer import ModelAnswerer
from jobs.evaluation.answers import Windows, answer_here, answer_on_ray, checked, computed_in, windows
from jobs.evaluation.checks import check_heads, check_scorers, wanted_masks
from jobs.evaluation.report.publish import ReportOptions, publish_report
from jobs.evaluation.samples import EvalSet, open_eval_set, policy_mismatch
from jobs.evaluation.scoring import SetScores, read_kinds, read_synonyms, remarks, score_records
from jobs.evaluation.store import AnswerStore, EvaluationPlan, normalised
from jobs.evaluation.tracking import check_tracking, track
from jobs.evaluation.vocabulary import vocabulary
from padt.checkpoints.fingerprint import fingerprint
from padt.errors import UserError
from pipelines.io.storage import Folder

if TYPE_CHECKING:
    from padt.inference.refine import Refinement
    from padt.inference.requests import GenerationSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        metrics: by name ``eval/<set>/<metric>``; of a split ``eval/<set>/<split>/<metric>``.
        counts: sentences, images, captions, errors and the like that the metrics stand on.
        warnings: what a reader of the scores should know.
        seconds: from the first question to the last answer, loading of the model included.
        samples: questions of the set.
        out_dir: folder with ``metrics.json``, ``predictions.parquet`` and the rest; None if nothing was written.
        splits: metrics of sentences by ``source/split``.
        kinds: of sentences: their number and what ``padt.metrics.sentence_kinds`` tells of each.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    warnings: tuple[str, ...]
    seconds: float
    samples: int
    out_dir: str | None
    splits: dict[str, dict[str, float]] = field(default_factory=dict)
    kinds: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """The answers to a set.

    Attributes:
        records: one a sample, sorted by id, as ``jobs.evaluation.store`` reads them.
        seconds: that answering took now, loading included.
        boxes: that were answered now, and not in an earlier attempt.
    """

    records: list[dict[str, Any]]
    seconds: float
    boxes: int


def run_evaluate(
    model: str | os.PathLike,
    data_url: str | os.PathLike,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    out_dir: str | os.PathLike | None = None,
    *,
    settings: "GenerationSettings | None" = None,
    max_new_tokens: int | None = None,
    masks: bool | None = None,
    workers: int = 0,
    threads: int = 1,
    names_per_prompt: int | None = None,
    synonyms: str | os.PathLike | None = None,
    sentence_kinds: str | os.PathLike | Mapping[str, str] | None = None,
    set_name: str | None = None,
    released: bool = False,
    report: ReportOptions | None = None,
    refine: "Refinement | None" = None,
    load_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    mlflow: bool = False,
    progress: bool = True,
) -> EvaluationResult:
    """Ask a model every question of a prepared set, and score the answers.

    Args:
        model: model folder, ``models:/padt@champion`` or ``models:/padt/3``.
        data_url: prepared set, any fsspec URL.
        tasks: ``refer``, ``detect``, ``caption``; None = all that the set has truth for.
        limit: only the first so many images, in the order of their keys.
        batch_size: questions answered at a time.
        out_dir: folder for the results, any fsspec URL; None = write nothing. Where an evaluation of the same plan was
            begun, only what is missing is answered.
        settings: how to generate; default: greedy.
        max_new_tokens: longest answer, in place of the settings' (an untrained model talks up to the limit).
        masks: make and score masks; None = where the set has masks and the settings make them.
        workers: Ray actors that answer; 0 or 1 = this process, without Ray.
        threads: of each process that answers on a CPU; another number gives answers that differ in the last digits.
        names_per_prompt: classes in one detection prompt, whose answers are merged; None = all.
        synonyms: YAML file of other names of categories that answers may use.
        sentence_kinds: kinds of sentences that are also scored apart, see ``jobs.evaluation.scoring.read_kinds``.
        set_name: middle part of the metrics' names; default: the manifest's name.
        released: also score by the released scorers' protocols (metrics ``released_*``).
        report: what to leave besides the scores: ``report.html``, a contact sheet, labels that may be missing.
        refine: let SAM 2 refine the masks before they are kept and scored; None = the model's own.
        load_options: further arguments of ``padt.load_model``, such as ``device`` and ``dtype``.
        overwrite: throw away what lies in ``out_dir`` from an earlier evaluation.
        mlflow: also enter the scores in MLflow, as a run of their own.
        progress: show a progress bar (a line now and then where the output is no terminal).

    Raises:
        UserError: model, set, task or output folder cannot be used, a package is missing, or the folder holds answers
            of another plan; the message names which and the fix, before the first answer.
    """
    if batch_size < 1 or workers < 0 or threads < 1:
        raise UserError(
            f"batch_size {batch_size}, workers {workers} and threads {threads} cannot be: give at least 1, 0 and 1."
        )
    if names_per_prompt is not None and names_per_prompt < 1:
        raise UserError(f"names_per_prompt {names_per_prompt} cannot be: give 1 or more, or leave it out.")
    out = str(out_dir) if out_dir is not None else None
    if out is not None:
        Folder(out).check_target()
    data = open_eval_set(str(data_url), tasks, limit)
    (report or ReportOptions()).check(data)
    found = find_model(model)
    options = dict(load_options or {})
    chosen = _settings(data, settings, max_new_tokens, masks)
    refine, refined = _refinement(refine, data, chosen.masks)
    check_scorers(data, chosen.masks)
    check_heads(found.path)
    categories = [(category.id, category.name) for category in data.manifest.categories]
    others = read_synonyms(str(synonyms), categories) if synonyms is not None else None
    kinds = read_kinds(sentence_kinds)
    if mlflow:
        check_tracking()
    words = vocabulary(found.path, data.index.class_names, others)
    warnings = [*_mismatch(found, data), *(words.remarks() if data.of_task("detect") else ())]
    device, dtype = computed_in(found.path, options, workers)

    answerer = ModelAnswerer(
        str(found.path), tuple(words.asked.values()), chosen, options, batch_size, names_per_prompt, threads, refine
    )
    about = {
        "set": set_name or data.manifest.name,
        "data": str(data_url),
        "data_fingerprint": data.fingerprint,
        "limit": limit,
        "model": str(model),
        "model_version": found.version,
        "model_fingerprint": fingerprint(found.path),
        "tasks": sorted({sample.task for sample in data.samples}),
        "settings": asdict(chosen),
        "device": device,
        "dtype": dtype,
        "names_per_prompt": names_per_prompt,
        "refine": refined,
        "sentence_kinds": kinds,
        "synonyms": others,
        "asked_as": words.renamed,
        "unseen_classes": words.unseen,
    }
    store = AnswerStore(out) if out is not None else None
    known = store.begin(_plan(about, data, threads), about, windows(data.samples), overwrite) if store else {}
    answered = answer(data, answerer, workers, progress, store, known)
    try:
        scores = score_records(data, answered.records, chosen.masks, released, others, kinds, words.unseen)
        if answered.boxes and data.of_task("detect"):
            scores.metrics["boxes_per_second"] = answered.boxes / answered.seconds
        summary = summarise(about, scores, warnings)
        summary |= {"batch_size": batch_size, "samples": len(data.samples), "seconds": round(answered.seconds, 2)}
        publish_report(out, data, answered.records, scores.results, summary, chosen.masks, others, report)
    except Exception as error:
        if out is None:
            raise
        hint = f"All answers are in {out}: score them again with `padt score {out} --data {data_url}`."
        if isinstance(error, UserError):
            raise UserError(f"{error} {hint}") from error
        logger.error("Scoring failed. %s", hint)
        raise
    if mlflow:
        track(summary, out)
    return EvaluationResult(
        metrics=summary["metrics"],
        counts=scores.counts,
        warnings=tuple(summary["warnings"]),
        seconds=answered.seconds,
        samples=len(data.samples),
        out_dir=out,
        splits=scores.splits,
        kinds=scores.kinds,
    )


def answer(
    data: EvalSet,
    model: Any,
    workers: int = 0,
    progress: bool = True,
    store: AnswerStore | None = None,
    known: Mapping[int, list[dict[str, Any]]] | None = None,
) -> Answered:
    """All answers; each window is kept as soon as it is answered.

    Args:
        data: the set.
        model: a ``ModelAnswerer``, or anything picklable whose ``load`` gives an ``Answerer``.
        workers: Ray actors; 0 or 1 = this process.
        progress: show a progress bar.
        store: where answers are kept; None = in memory only.
        known: answers that are there already, by number of their window.
    """
    known = known or {}
    records = [record for part in known.values() for record in part]
    todo = {number: window for number, window in enumerate(windows(data.samples)) if number not in known}
    started, boxes = time.monotonic(), 0
    if known:
        logger.info("%s of %s samples are answered already", f"{len(records):,}", f"{len(data.samples):,}")
    for number, part in answered_windows(data, model, todo, workers, progress):
        if store is not None:
            store.add(number, part)
        records += part
        boxes += sum(len(record["prediction"]["objects"]) for record in part if record["prediction"])
    records = normalised(records)
    if store is not None and (todo or not store.whole):
        store.finish(records)
    return Answered(records, time.monotonic() - started, boxes)


def answered_windows(
    data: EvalSet, model: Any, todo: Windows, workers: int, progress: bool
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Answer windows of a set under a progress bar; yields number and records of each as it is answered.

    Args:
        data: the set.
        model: as for ``answer``.
        todo: the windows; what else the set has counts as answered.
        workers: Ray actors; 0 or 1 = this process.
        progress: show the bar.
    """
    with counting(f"evaluate {data.manifest.name}", len(data.samples), "samples", progress) as advance:
        advance(len(data.samples) - sum(map(len, todo.values())))
        if todo and workers > 1:
            answered = answer_on_ray(todo, data.index.url, model, workers)
        else:
            answered = answer_here(todo, data.index, model) if todo else iter(())
        for number, part in checked(todo, answered):
            yield number, part
            advance(len(part))


def summarise(about: Mapping[str, Any], scores: SetScores, warnings: Sequence[str]) -> dict[str, Any]:
    """Content of ``metrics.json``.

    Args:
        about: what was evaluated; ``set`` names the metrics.
        scores: what was found.
        warnings: further remarks, before those on the counts.
    """
    return {
        "metrics": {f"eval/{about['set']}/{name}": value for name, value in scores.metrics.items()},
        "counts": scores.counts,
        "splits": scores.splits,
        "by_kind": scores.kinds,
        **about,
        "warnings": [*warnings, *remarks(scores.counts)],
    }


def _settings(
    data: EvalSet, settings: "GenerationSettings | None", max_new_tokens: int | None, masks: bool | None
) -> "GenerationSettings":
    from padt.inference.requests import GenerationSettings

    chosen = settings or GenerationSettings()
    if max_new_tokens is not None:
        chosen = replace(chosen, max_new_tokens=max_new_tokens)
    if masks is None and not chosen.masks:
        masks = False
    return replace(chosen, masks=wanted_masks(data, masks))


def _refinement(
    refine: "Refinement | None", data: EvalSet, masks: bool
) -> tuple["Refinement | None", dict[str, Any] | None]:
    """The refinement with its model in a local folder, and what records say of it."""
    if refine is None:
        return None, None
    if not masks:
        raise UserError(f"No masks are made of {data.index.url}, so there are none to refine: leave --refine out.")
    from padt.inference.refine import sam2_folder

    folder = sam2_folder(fetched(refine.model))
    return replace(refine, model=str(folder)), {**refine.to_dict(), "fingerprint": fingerprint(folder)}


def _mismatch(found: ResolvedModel, data: EvalSet) -> list[str]:
    from padt.data.processor import load_processor

    mismatch = policy_mismatch(load_processor(found.path).policy, data.manifest)
    if mismatch is None:
        return []
    logger.warning("%s", mismatch)
    return [mismatch]


def _plan(about: Mapping[str, Any], data: EvalSet, threads: int) -> EvaluationPlan:
    return EvaluationPlan(
        data=about["data_fingerprint"],
        model=about["model_fingerprint"],
        tasks=tuple(about["tasks"]),
        settings=about["settings"],
        names_per_prompt=about["names_per_prompt"],
        device=about["device"],
        dtype=about["dtype"],
        threads=threads,
        samples=len(data.samples),
        windows=len(windows(data.samples)),
        # The same weights elsewhere make the same masks.
        refine={name: value for name, value in about["refine"].items() if name != "model"} if about["refine"] else None,
        asked_as=about["asked_as"],
    )
