"""The verbs below `padt prepare`: one for each kind of source."""

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_type_hints

import typer

from jobs.cli.verb import examples
from jobs.common import console
from pipelines.prepare.options import PrepareOptions
from pipelines.sources.table import OWN_OPTIONS, SOURCES, SourceKind

app = typer.Typer(no_args_is_help=True, help="Turn raw annotations into shards that training and evaluation read.")


@app.command(**examples("padt prepare toy --out runs/toy-data", "padt prepare toy -o /tmp/t --scenes 200"))
def toy(
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the prepared sets; a local one.")],
    scenes: Annotated[int, typer.Option(min=1, help="Training scenes.")] = 4000,
    heldout: Annotated[int, typer.Option(min=1, help="Scenes kept for evaluation.")] = 240,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove what was prepared in OUT first.")] = False,
) -> None:
    """Draw the built-in toy set and prepare it: OUT/train and OUT/val, from the files in OUT/raw."""
    from jobs.data.prepare import run_prepare_toy, set_facts

    manifests = run_prepare_toy(out, scenes=scenes, heldout=heldout, seed=seed, overwrite=overwrite)
    show_sets([set_facts(f"{out}/{name}", manifest) for name, manifest in manifests.items()])


def _add(name: str, kind: SourceKind) -> None:
    """Make a source a command: its options are those of ``PrepareOptions`` that it takes."""
    own = [field for field in fields(PrepareOptions) if field.name not in OWN_OPTIONS or field.name in kind.options]
    options = [_option(kind, field) for field in own if field.name != "source"]
    options.sort(key=lambda each: each.default is not inspect.Parameter.empty)

    def command(**given: Any) -> None:
        from jobs.data.prepare import run_prepare, set_facts

        values = {"images": ()} | {key: value for key, value in given.items() if value is not None}
        chosen = PrepareOptions(source=name, **values)
        show_sets([set_facts(chosen.out, run_prepare(chosen))])

    command.__doc__ = kind.about
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in options}
    app.command(name, **examples(*(f"padt prepare {example}" for example in kind.examples)))(command)


def _option(kind: SourceKind, field: Field[Any]) -> inspect.Parameter:
    facts, hint, default = field.metadata, _HINTS[field.name], field.default
    text = kind.annotations if field.name == "annotations" else facts["help"]
    flags = [f"--{field.name.replace('_', '-')}", *filter(None, [facts["short"]])]
    if default == () or hint == str | Sequence[str]:
        hint, default = list[str] | None, None if default == () or not kind.pictures else MISSING
    elif field.name in kind.required:
        default = MISSING
    declared = typer.Option(*flags, help=text, metavar=facts["metavar"] or None)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[hint, declared],
    )


def show_sets(sets: Sequence[dict[str, Any]]) -> None:
    """A table of prepared sets."""
    names = ["images", "objects", "references", "captions", "rejected"]
    if any(facts["excluded"] for facts in sets):
        names.append("excluded")
    columns = ["set", *(f"{name}>" for name in names)]
    rows = [[facts["url"], *(facts[name] for name in names)] for facts in sets]
    console.out.print(console.table("Prepared", columns, rows))


_HINTS = get_type_hints(PrepareOptions)
for _name, _kind in SOURCES.items():
    _add(_name, _kind)
