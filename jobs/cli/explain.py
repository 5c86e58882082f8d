"""The verb that looks inside an answer."""

from typing import Annotated

import typer

from jobs.cli.verb import examples
from jobs.common import console

app = typer.Typer()


@app.command(
    **examples(
        'padt explain photo.jpg --refer "the red circle" --model runs/demo/finetune/model --out why',
        'padt explain photo.jpg --detect "person,dog" --model models:/padt@champion --out why',
    )
)
def explain(
    image: Annotated[str, typer.Argument(help="Picture.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model folder or its URL, or models:/padt@champion.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the sheets and the JSON file.")],
    detect: Annotated[str | None, typer.Option(help="Classes to find, separated by commas.")] = None,
    refer: Annotated[str | None, typer.Option(help="A sentence that describes one object.")] = None,
    caption: Annotated[bool, typer.Option("--caption", help="Describe the picture.")] = False,
    ask: Annotated[str | None, typer.Option(help="Any other words.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    forbid_repeats: Annotated[bool, typer.Option(help="No VRT twice in one group.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Likeliest patches of each step in the JSON file.")] = 10,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
) -> None:
    """Look inside an answer: where the probability of each VRT lay over the picture, and what the decoder made of it.

    One sheet for each object shows its box, mask, score and VRTs, and a map of probability for each step of its group.
    """
    from jobs.inference.explain import run_explain
    from jobs.inference.predict import make_request
    from padt.inference.requests import GenerationSettings

    result = run_explain(
        model,
        image,
        make_request(detect, refer, caption, ask),
        out,
        settings=GenerationSettings(max_new_tokens=max_new_tokens, forbid_repeats=forbid_repeats),
        top=top,
        load_options={"device": device} if device else None,
    )
    console.out.print(result.record["text"])
    for sheet in result.sheets:
        console.out.print(f"sheet: {sheet}")
    console.out.print(f"numbers: {result.json_path}")
