"""The verb `padt calibrate`."""

from typing import Annotated, Any

import typer

from jobs.cli.verb import examples
from jobs.common import console

app = typer.Typer()


@app.command(
    **examples(
        "padt calibrate runs/demo/finetune/model runs/demo/prepare/val",
        "padt calibrate models:/padt@champion runs/coco-val --limit 1000 --out calibrated",
        "padt calibrate calibrated runs/coco-minival --thresholds",
    )
)
def calibrate(
    model: Annotated[str, typer.Argument(help="Model folder or its URL; with --out also models:/padt@champion.")],
    data: Annotated[str, typer.Argument(help="Prepared set with classes, not one of training; any URL.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="A new folder for a copy; none = the model's own config.json.")
    ] = None,
    thresholds: Annotated[
        bool,
        typer.Option("--thresholds", help="Find thresholds of false alarms for the scores as they are."),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images asked about together.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Ray actors that answer; 0 = this process.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
) -> None:
    """Make the scores of objects rank them: the decoder's score, weighed with what else is known of an object.

    With --thresholds: find the scores above which mistakes come no more often than a stated rate, for
    `padt predict --false-alarms RATE`.
    """
    options: dict[str, Any] = {
        "limit": limit,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "workers": workers,
        "load_options": {"device": device} if device else None,
    }
    if thresholds:
        from jobs.evaluation.thresholds import run_thresholds
        from padt.inference.thresholds import RATES

        found = run_thresholds(model, data, out, **options)
        known = (found.thresholds.absent, found.thresholds.wrong)
        rows = [
            [f"at most {rate:g}", *(f"{values[key]:.3f}" if (key := f"{rate:g}") in values else "" for values in known)]
            for rate in RATES
        ]
        head = ["rate", "something absent is found>", "a picture gets a wrong object>"]
        console.out.print(console.table(f"Keep scores above ({found.images:,} pictures)", head, rows))
        console.out.print(f"model with thresholds: {found.folder}")
        return
    from jobs.evaluation.calibrate import run_calibrate

    result = run_calibrate(model, data, out, **options)
    title = f"{result.objects:,} objects in {result.images:,} images; each half scored by a fit on the other"
    console.out.print(console.metrics_table(title, {"decoder's score": result.before, "calibrated": result.after}))
    console.out.print(f"calibrated model: {result.folder}")
