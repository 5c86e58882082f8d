"""The verb `padt calibrate`."""

from typing import Annotated

import typer

from jobs.cli.verb import examples
from jobs.common import console

app = typer.Typer()


@app.command(
    **examples(
        "padt calibrate runs/demo/finetune/model runs/demo/prepare/val",
        "padt calibrate models:/padt@champion runs/coco-val --limit 1000 --out calibrated",
    )
)
def calibrate(
    model: Annotated[str, typer.Argument(help="Model folder or its URL; with --out also models:/padt@champion.")],
    data: Annotated[str, typer.Argument(help="Prepared set with classes, not one of training; any URL.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="A new folder for a copy; none = the model's own config.json.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images asked about together.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Ray actors that answer; 0 = this process.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
) -> None:
    """Make the scores of objects rank them: the decoder's score, weighed with what else is known of an object."""
    from jobs.evaluation.calibrate import run_calibrate

    result = run_calibrate(
        model,
        data,
        out,
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        workers=workers,
        load_options={"device": device} if device else None,
    )
    title = f"{result.objects:,} objects in {result.images:,} images; each half scored by a fit on the other"
    console.out.print(console.metrics_table(title, {"decoder's score": result.before, "calibrated": result.after}))
    console.out.print(f"calibrated model: {result.folder}")
