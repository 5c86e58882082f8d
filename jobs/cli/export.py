"""The verb `padt export`."""

from enum import StrEnum
from typing import Annotated

import typer

from jobs.cli.verb import examples
from jobs.common import console

app = typer.Typer()


class ExportChoice(StrEnum):
    """Layouts that an export writes."""

    hub = "hub"
    released = "released"
    padt = "padt"


@app.command(
    **examples(
        "padt export runs/pro/model --to released --out exported/pro",
        "padt export models:/padt@champion --to hub --out exported/qwen --max-shard-size 2GB",
        "padt export runs/pro/checkpoints/step-00000500 --to padt --out exported/step-500",
    )
)
def export(
    model: Annotated[
        str, typer.Argument(help="Model folder, checkpoint, or URL of one; Hub repository; models:/padt@champion.")
    ],
    to: Annotated[
        ExportChoice,
        typer.Option(help="hub: plain Qwen2.5-VL, words only. released: as released PaDT code reads it. padt: ours."),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="A new folder.")],
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "5GB",
) -> None:
    """Write a model in the layout that other code reads; every weight stays as it is, bit by bit."""
    from jobs.registry.export import run_export

    result = run_export(model, out, to.value, max_shard_size=max_shard_size)
    facts = [
        ("layout", f"{result.source_layout} -> {result.layout}"),
        ("tensors", result.tensors),
        ("parameters", result.parameters),
        ("left out", len(result.dropped)),
        ("weight files", len(result.files)),
        ("size", f"{result.nbytes / 1e6:,.1f} MB"),
    ]
    console.out.print(console.table(str(result.folder), ["what", "value>"], facts))
