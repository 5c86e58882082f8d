"""The verbs below `padt prepare`: one for each kind of source."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from jobs import console
from jobs.console import examples

app = typer.Typer(no_args_is_help=True, help="Turn raw annotations into shards that training and evaluation read.")

SetOutput = Annotated[str, typer.Option("--out", "-o", help="Folder of the prepared set; any URL that fsspec opens.")]


@app.command(epilog=examples("padt prepare toy --out runs/toy-data", "padt prepare toy -o /tmp/t --scenes 200"))
def toy(
    out: SetOutput,
    scenes: Annotated[int, typer.Option(min=1, help="Training scenes.")] = 4000,
    heldout: Annotated[int, typer.Option(min=1, help="Scenes kept for evaluation.")] = 240,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
) -> None:
    """Draw the built-in toy set and prepare it: OUT/train and OUT/val, from the files in OUT/raw."""
    from jobs.prepare import run_prepare_toy, set_facts

    manifests = run_prepare_toy(out, scenes=scenes, heldout=heldout, seed=seed)
    show_sets([set_facts(f"{out}/{name}", manifest) for name, manifest in manifests.items()])


def _prepare_files(source: str, out: str, **options: Any) -> None:
    from jobs.prepare import run_prepare, set_facts
    from pipelines.prepare import PrepareOptions

    manifest = run_prepare(PrepareOptions(source=source, out=out, **options))  # type: ignore[arg-type]
    show_sets([set_facts(out, manifest)])


Annotations = Annotated[str, typer.Option("--annotations", "-a", help="Instances JSON of COCO layout.")]
Images = Annotated[list[str], typer.Option("--images", "-i", help="Folder of the pictures; repeatable.")]
Name = Annotated[str | None, typer.Option(help="Name of the set, first part of every key.")]
Split = Annotated[str, typer.Option(help="Split, second part of every key.")]
Link = Annotated[bool, typer.Option("--link", help="Keep paths in the shards in place of the pictures' bytes.")]
Rows = Annotated[int | None, typer.Option(min=1, help="Images of a shard; none = by size, 256 MB.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove what is in OUT first.")]


@app.command(
    epilog=examples("padt prepare coco -a annotations/instances_val2017.json -i val2017 -o runs/coco-val --split val")
)
def coco(
    annotations: Annotations,
    images: Images,
    out: SetOutput,
    captions: Annotated[str | None, typer.Option(help="Captions JSON of the same images.")] = None,
    name: Name = None,
    split: Split = "train",
    link: Link = False,
    rows_per_shard: Rows = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare COCO: objects with boxes and masks (polygons, compressed and plain run lengths, crowds)."""
    _prepare_files(
        "coco",
        out,
        annotations=annotations,
        images=images,
        captions=captions,
        name=name,
        split=split,
        images_mode="link" if link else "copy",
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
    )


@app.command(
    epilog=examples(
        "padt prepare refcoco -a instances.json -r 'refs(unc).p' -i train2014 -o runs/refcoco-val --split val"
    )
)
def refcoco(
    annotations: Annotations,
    references: Annotated[str, typer.Option("--references", "-r", help="Pickle of references, refs(...).p.")],
    images: Images,
    out: SetOutput,
    name: Name = None,
    split: Split = "train",
    link: Link = False,
    rows_per_shard: Rows = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare RefCOCO, RefCOCO+ or RefCOCOg: the sentences of one split and the images that they speak of."""
    _prepare_files(
        "refcoco",
        out,
        annotations=annotations,
        references=references,
        images=images,
        name=name,
        split=split,
        images_mode="link" if link else "copy",
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
    )


@app.command(epilog=examples("padt prepare ric -a ric_instances_val2017.json -i val2017 -o runs/ric-val --split val"))
def ric(
    annotations: Annotations,
    images: Images,
    out: SetOutput,
    name: Name = None,
    split: Split = "train",
    link: Link = False,
    rows_per_shard: Rows = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare grounded captions (RIC): COCO instances whose images bear captions with object tags."""
    _prepare_files(
        "ric",
        out,
        annotations=annotations,
        images=images,
        name=name,
        split=split,
        images_mode="link" if link else "copy",
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
    )


def show_sets(sets: Sequence[dict[str, Any]]) -> None:
    """A table of prepared sets."""
    columns = ["set", "images>", "objects>", "references>", "captions>", "rejected>"]
    rows = [
        [facts["url"], *(facts[key] for key in ("images", "objects", "references", "captions", "rejected"))]
        for facts in sets
    ]
    console.out.print(console.table("Prepared", columns, rows))
