"""The verbs below `padt prepare`: one for each kind of source."""

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from jobs.common import console
from jobs.common.console import examples

app = typer.Typer(no_args_is_help=True, help="Turn raw annotations into shards that training and evaluation read.")

SetOutput = Annotated[str, typer.Option("--out", "-o", help="Folder of the prepared set; any URL that fsspec opens.")]
Annotations = Annotated[str, typer.Option("--annotations", "-a", help="Instances JSON of COCO layout; path or URL.")]
Images = Annotated[
    list[str],
    typer.Option("--images", "-i", help="Folder of the pictures, or a zip or tar of them; path or URL; repeatable."),
]
Captions = Annotated[str | None, typer.Option(help="Captions JSON of the same images.")]


@app.command(epilog=examples("padt prepare toy --out runs/toy-data", "padt prepare toy -o /tmp/t --scenes 200"))
def toy(
    out: SetOutput,
    scenes: Annotated[int, typer.Option(min=1, help="Training scenes.")] = 4000,
    heldout: Annotated[int, typer.Option(min=1, help="Scenes kept for evaluation.")] = 240,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove what was prepared in OUT first.")] = False,
) -> None:
    """Draw the built-in toy set and prepare it: OUT/train and OUT/val, from the files in OUT/raw."""
    from jobs.data.prepare import run_prepare_toy, set_facts

    manifests = run_prepare_toy(out, scenes=scenes, heldout=heldout, seed=seed, overwrite=overwrite)
    show_sets([set_facts(f"{out}/{name}", manifest) for name, manifest in manifests.items()])


def _set_options(
    out: SetOutput,
    name: Annotated[str | None, typer.Option(help="Name of the set, first part of every key.")] = None,
    split: Annotated[str, typer.Option(help="Split, second part of every key.")] = "train",
    min_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures with fewer pixels are enlarged for the model; 3,136 if not given."),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Pictures with more are shrunk for the model; 12,845,056 if not given.")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Keep the pictures' places in the shards, not their bytes.")] = (
        False
    ),
    rows_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Images of a shard, in place of --shard-mb.")
    ] = None,
    shard_mb: Annotated[int, typer.Option(min=1, help="Most megabytes of pictures in a shard.")] = 256,
    num_cpus: Annotated[int | None, typer.Option(min=1, help="Most shards at work at once; all CPUs if not given.")] = (
        None
    ),
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET[:SPLIT]",
            help="Leave out images that this prepared set, or list of `padt exclude-list`, holds; repeatable.",
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET[:SPLIT]", help="Say in the report what the set shares with this prepared one; repeatable."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove what is in OUT first.")] = False,
) -> None:
    """The options of every set; each command below has them after its own."""


def _prepares(*lines: str) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., None]]:
    """A command that prepares one set: the function names its own options and returns what they mean to the source.

    Args:
        lines: examples for `--help`.
    """

    def decorate(function: Callable[..., dict[str, Any]]) -> Callable[..., None]:
        own, shared = inspect.signature(function).parameters, inspect.signature(_set_options).parameters

        def command(**given: Any) -> None:
            chosen = function(**{key: given.pop(key) for key in own})
            _prepare(**chosen, **given)

        command.__doc__ = function.__doc__
        together = sorted(
            [*own.values(), *shared.values()], key=lambda each: each.default is not inspect.Parameter.empty
        )
        keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in together]
        command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in together}
        return app.command(function.__name__, epilog=examples(*lines))(command)

    return decorate


def _prepare(
    *,
    link: bool,
    shard_mb: int,
    min_pixels: int | None,
    max_pixels: int | None,
    exclude: list[str] | None,
    against: list[str] | None,
    **options: Any,
) -> None:
    from jobs.data.prepare import run_prepare, set_facts
    from padt.data.image import ResizePolicy
    from pipelines.prepare.run import PrepareOptions

    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    chosen = PrepareOptions(
        policy=ResizePolicy(**{name: limit for name, limit in limits.items() if limit is not None}),
        images_mode="link" if link else "copy",
        shard_bytes=shard_mb * 2**20,
        exclude=exclude or (),
        against=against or (),
        **options,
    )
    show_sets([set_facts(chosen.out, run_prepare(chosen))])


@_prepares(
    "padt prepare coco -a annotations/instances_val2017.json -i val2017 -o runs/coco-val --split val",
    "padt prepare coco -a export/_annotations.coco.json -i export -o runs/mine --name mine",
    "padt prepare coco -a instances_train2017.json -i train2017 -o runs/coco-train --exclude refcoco-eval.json",
    "padt prepare coco -a s3://bucket/instances.json -i s3://bucket/val2017.zip -o s3://bucket/coco-val",
)
def coco(annotations: Annotations, images: Images, captions: Captions = None) -> dict[str, Any]:
    """Prepare COCO, or your own export in its format: boxes, masks (polygons, run lengths), crowds, captions."""
    return {"source": "coco", "annotations": annotations, "images": images, "captions": captions}


@_prepares(
    "padt prepare objects365 -a zhiyuan_objv2_train.json -i train -o runs/objects365",
    "padt prepare objects365 -a zhiyuan_objv2_val.json -i val --drop-fakes --split val -o runs/objects365-val",
)
def objects365(
    annotations: Annotations,
    images: Images,
    drop_fakes: Annotated[
        bool, typer.Option("--drop-fakes", help="Leave out objects marked as drawn or printed (isfake).")
    ] = False,
) -> dict[str, Any]:
    """Prepare Objects365: boxes without masks; names, sizes and places are repaired as its files need it."""
    return {"source": "objects365", "annotations": annotations, "images": images, "drop_fakes": drop_fakes}


@_prepares(
    "padt prepare refcoco -a refcoco/instances.json -r 'refcoco/refs(unc).p' -i train2014 --split val -o runs/rc-val",
    "padt prepare refcoco -a refcocog/instances.json -r 'refcocog/refs(umd).p' -i train2017 --split test -o runs/rg",
)
def refcoco(
    annotations: Annotations,
    references: Annotated[str, typer.Option("--references", "-r", help="Pickle of references, refs(...).p.")],
    images: Images,
) -> dict[str, Any]:
    """Prepare RefCOCO, RefCOCO+ or RefCOCOg: the sentences of one split and the images that they speak of."""
    return {"source": "refcoco", "annotations": annotations, "references": references, "images": images}


@_prepares("padt prepare ric -a ric_instances_val2017.json -i val2017 -o runs/ric-val --split val")
def ric(annotations: Annotations, images: Images, captions: Captions = None) -> dict[str, Any]:
    """Prepare grounded captions (RIC): COCO instances whose images bear captions with object tags."""
    return {"source": "ric", "annotations": annotations, "images": images, "captions": captions}


@_prepares("padt prepare released -a rec_train.jsonl -i train2014 -o runs/released-rec")
def released(
    annotations: Annotated[str, typer.Option("--annotations", "-a", help="JSON lines; path or URL.")], images: Images
) -> dict[str, Any]:
    """Prepare the JSON lines that PaDT's authors published: conversations, answer templates and objects."""
    return {"source": "released", "annotations": annotations, "images": images}


@_prepares(
    "padt prepare messages -a llava_instruct_150k.json -i train2017 -o runs/llava --name llava",
    "padt prepare messages -a chat.jsonl -o runs/chat",
)
def messages(
    annotations: Annotated[
        str, typer.Option("--annotations", "-a", help="JSON array or JSON lines of conversations; path or URL.")
    ],
    images: Annotated[
        list[str] | None,
        typer.Option("--images", "-i", help="Folder of the pictures, zip or tar; not needed for text alone."),
    ] = None,
) -> dict[str, Any]:
    """Prepare conversations, as LLaVA writes them or as chat APIs do: text with any number of pictures."""
    return {"source": "messages", "annotations": annotations, "images": images or ()}


def show_sets(sets: Sequence[dict[str, Any]]) -> None:
    """A table of prepared sets."""
    names = ["images", "objects", "references", "captions", "rejected"]
    if any(facts["excluded"] for facts in sets):
        names.append("excluded")
    columns = ["set", *(f"{name}>" for name in names)]
    rows = [[facts["url"], *(facts[name] for name in names)] for facts in sets]
    console.out.print(console.table("Prepared", columns, rows))
