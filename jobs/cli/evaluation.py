"""The verbs that measure: evaluate, score."""

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.verb import Refine, RefineModel, RefinePrompt, examples
from jobs.common import console
from padt.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from jobs.evaluation.evaluate import EvaluationResult

app = typer.Typer()

Tasks = Annotated[
    list[str] | None, typer.Option(help="refer, detect or caption; repeatable. None = all that there is.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")]
Masks = Annotated[bool | None, typer.Option("--masks/--no-masks", help="Default: masks where the set has them.")]
Synonyms = Annotated[
    str | None, typer.Option(help="YAML of other names of classes that answers use: `traffic light: [stoplight]`.")
]
SentenceKinds = Annotated[
    str | None,
    typer.Option(help="YAML of kinds of sentences, scored apart by their words: `place: left|right|top|bottom`."),
]
Report = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html beside the scores: why answers are wrong.")
]
MissingLabels = Annotated[
    str | None,
    typer.Option(
        help="Folder for confident detections that the truth lacks, with their pictures; FiftyOne opens it. Any URL."
    ),
]
MissingScore = Annotated[float, typer.Option(min=0, max=1, help="Least score of a label that may be missing.")]
Released = Annotated[bool, typer.Option(help="Also score by the released scorers' protocols.")]
MLflow = Annotated[
    bool | None, typer.Option("--mlflow/--no-mlflow", help="Enter scores in MLflow; default: with MLFLOW_TRACKING_URI.")
]


@app.command(
    **examples(
        "padt evaluate models:/padt@champion runs/demo/prepare/val --out runs/scores",
        "padt evaluate runs/demo/finetune/model runs/coco-val --task detect --limit 100 --workers 2",
        "padt evaluate runs/model runs/refcoco runs/refcoco+ runs/refcocog --out runs/rec",
        "padt evaluate runs/model runs/refcoco --refine sam2 --out runs/refined",
    )
)
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder or its URL, or a registered one: models:/padt@champion.")],
    data: Annotated[list[str], typer.Argument(help="Prepared sets; any URL.")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Folder for answers, scores and report; of several sets one folder each."),
    ] = None,
    task: Tasks = None,
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at a time.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Ray actors that answer; 0 = this process.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each process that answers.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; auto = as saved.")] = None,
    masks: Masks = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of a beam search; 1 = greedy.")] = 1,
    forbid_repeats: Annotated[bool, typer.Option(help="No VRT twice in one group.")] = False,
    names_per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Classes in one detection prompt; answers are merged. None = all.")
    ] = None,
    refine: Refine = None,
    refine_prompt: RefinePrompt = None,
    refine_model: RefineModel = None,
    synonyms: Synonyms = None,
    sentence_kinds: SentenceKinds = None,
    released: Released = False,
    report: Report = True,
    missing_labels: MissingLabels = None,
    missing_score: MissingScore = 0.5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw earlier answers in --out away.")] = False,
    mlflow: MLflow = None,
) -> None:
    """Measure a model on prepared sets: REC and RES by sentence, detection and captions by image.

    Answers are kept in --out as they come: after an interruption the same command goes on.
    """
    from jobs.evaluation.evaluate import run_evaluate
    from jobs.evaluation.report.publish import ReportOptions
    from jobs.evaluation.tracking import wanted_tracking
    from padt.inference.refine import Refinement
    from padt.inference.requests import GenerationSettings
    from padt.metrics.refer import mean_of_splits

    refinement = Refinement.asked(refine, refine_prompt, refine_model)
    folders, reviews = _folders(out, data), _folders(missing_labels, data)
    splits: dict[str, dict[str, float]] = {}
    for url, folder, review in zip(data, folders, reviews, strict=True):
        result = run_evaluate(
            model,
            url,
            task or None,
            limit,
            batch_size,
            folder,
            settings=GenerationSettings(
                max_new_tokens=max_new_tokens, num_beams=num_beams, forbid_repeats=forbid_repeats
            ),
            masks=masks,
            workers=workers,
            threads=threads,
            names_per_prompt=names_per_prompt,
            synonyms=synonyms,
            sentence_kinds=sentence_kinds,
            released=released,
            report=ReportOptions(report, missing_labels=review, missing_score=missing_score),
            refine=refinement,
            load_options={name: value for name, value in (("device", device), ("dtype", dtype)) if value},
            overwrite=overwrite,
            mlflow=wanted_tracking(mlflow),
        )
        splits |= result.splits
        _show(result)
    mean = mean_of_splits(splits)
    if mean:
        console.out.print(console.metrics_table("Mean of RefCOCO's eight splits", {"value": mean}))


@app.command(
    **examples(
        "padt score runs/scores --data runs/coco-val",
        "padt score runs/scores --data runs/coco-val --missing-labels runs/review",
        "padt score detector.json --data runs/coco-val --synonyms names.yaml --out runs/detector",
    )
)
def score(
    predictions: Annotated[
        str, typer.Argument(help="Folder of padt evaluate, its predictions.parquet, or COCO results as JSON; any URL.")
    ],
    data: Annotated[str, typer.Option("--data", "-d", help="Prepared set; any URL.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for scores and report; default: the evaluation's own.")
    ] = None,
    task: Tasks = None,
    limit: Limit = None,
    masks: Masks = None,
    synonyms: Synonyms = None,
    sentence_kinds: SentenceKinds = None,
    released: Released = False,
    report: Report = True,
    missing_labels: MissingLabels = None,
    missing_score: MissingScore = 0.5,
    mlflow: MLflow = None,
) -> None:
    """Score stored answers again, or another system's COCO results; counts what does not fit the data."""
    from jobs.evaluation.report.publish import ReportOptions
    from jobs.evaluation.score import run_score
    from jobs.evaluation.tracking import wanted_tracking

    _show(
        run_score(
            predictions,
            data,
            out,
            tasks=task or None,
            limit=limit,
            masks=masks,
            synonyms=synonyms,
            sentence_kinds=sentence_kinds,
            released=released,
            report=ReportOptions(report, missing_labels=missing_labels, missing_score=missing_score),
            mlflow=wanted_tracking(mlflow),
        )
    )


def kinds_table(kinds: "Mapping[str, Mapping[str, float]]") -> "Table":
    """Scores of sentences by kind, see ``padt.metrics.sentence_kinds``."""
    from padt.metrics.sentence_kinds import SHOWN
    from padt.metrics.table import title

    rows = [[name, int(of["sentences"]), *(of.get(metric) for metric in SHOWN)] for name, of in kinds.items()]
    return console.table("By kind of sentence", ["kind", "sentences>", *(f"{title(one)}>" for one in SHOWN)], rows)


def _folders(out: str | None, data: list[str]) -> list[str | None]:
    """A folder for each set: ``out`` itself for one, else below it under the sets' own names."""
    if out is None or len(data) == 1:
        return [out for _ in data]
    names = [url.rstrip("/").rsplit("/", 1)[-1] for url in data]
    if len(set(names)) < len(names):
        raise UserError(
            f"Of the sets {', '.join(data)} two have one name, and so one folder in {out}: evaluate them one by one."
        )
    return [f"{out.rstrip('/')}/{name}" for name in names]


def _show(result: "EvaluationResult") -> None:
    for warning in result.warnings:
        console.err.print(f"warning: {warning}")
    title = f"{result.samples:,} questions in {result.seconds:.0f} s"
    console.out.print(console.metrics_table(title, {"value": result.metrics}))
    if result.kinds:
        console.out.print(kinds_table(result.kinds))
    console.out.print(console.table("Counts", ["what", "number>"], sorted(result.counts.items())))
    if result.out_dir:
        console.out.print(f"results: {result.out_dir}")
