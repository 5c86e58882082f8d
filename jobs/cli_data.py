"""Verbs that work on prepared sets: lists of images to leave out, and the way back to other formats."""

from typing import Annotated

import typer

from jobs import console
from jobs.console import examples

app = typer.Typer()


@app.command(
    name="exclude-list",
    epilog=examples(
        "padt exclude-list runs/refcoco-val runs/refcoco-testA runs/refcocog-test --out refcoco-eval.json",
        "padt prepare coco -a instances_train2017.json -i train2017 -o runs/coco-train --exclude refcoco-eval.json",
    ),
)
def exclude_list(
    sets: Annotated[list[str], typer.Argument(metavar="SET[:SPLIT]...", help="Prepared sets; any URL.")],
    out: Annotated[str, typer.Option("--out", "-o", help="File to write: NAME.json.")],
) -> None:
    """Write the images of prepared evaluation sets as a list that `padt prepare --exclude` takes."""
    from pipelines.exclude import write_exclude_list

    listed = write_exclude_list(sets, out)
    rows = [[each.name, each.url, each.images] for each in listed]
    console.out.print(console.table(out, ["set", "where", "images>"], rows))
