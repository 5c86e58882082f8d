"""The verbs about models that are there already: compare, predict, register."""

from typing import Annotated

import typer

from jobs.cli.verb import Refine, RefineModel, RefinePrompt, examples
from jobs.common import console
from padt.errors import UserError

app = typer.Typer()


@app.command(
    **examples(
        "padt compare runs/demo/evaluate_base runs/demo/evaluate_pretrain",
        "padt compare runs/scores-old runs/scores-new --out runs/compared",
        "padt compare models:/padt/1 runs/x",
    )
)
def compare(
    sources: Annotated[list[str], typer.Argument(help="Folders of `padt evaluate`, or models:/padt/VERSION.")],
    contains: Annotated[str, typer.Option(help="Only metrics whose name contains this.")] = "",
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Folder for compare.html, with pictures, and compare.json; any URL."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="The set, where it lies elsewhere now than it was evaluated.")
    ] = None,
    synonyms: Annotated[
        str | None, typer.Option(help="YAML of other names of classes that answers use: `traffic light: [stoplight]`.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    pictures: Annotated[int, typer.Option(min=0, help="Of each task and each way of disagreeing.")] = 6,
) -> None:
    """Scores side by side; of two evaluations of one set also their differences, with intervals, and who did better.

    Images are drawn anew with replacement, the same for both, and both are scored on each draw.
    """
    from jobs.evaluation.comparison.run import compare_evaluations
    from jobs.registry.compare import run_compare

    result = run_compare(sources, contains=contains)
    console.out.print(console.metrics_table("Scores", result.scores))
    for warning in result.warnings:
        console.err.print(f"warning: {warning}")
    asked = out is not None or data is not None or synonyms is not None
    if len(sources) != 2 or any(source.startswith("models:") for source in sources):
        if asked:
            raise UserError("Differences are those of two folders of `padt evaluate`: give two, or leave --out away.")
        return
    first, second = result.scores
    try:
        found = compare_evaluations(
            sources, (first, second), out, data, draws=draws, seed=seed, synonyms=synonyms, pictures=pictures
        )
    except UserError as error:
        if asked:
            raise
        console.err.print(f"no differences with intervals: {error}")
        return
    for table in found.tables((first, second), contains):
        console.out.print(table)
    if out is not None:
        console.out.print(f"results: {out}")


@app.command(
    **examples(
        'padt predict photo.jpg --model models:/padt@champion --detect "person,dog" --out answers',
        'padt predict photo.jpg --model runs/demo/finetune/model --refer "the red circle"',
        'padt predict before.jpg after.jpg --together --model models:/padt@champion --ask "What has changed?"',
    )
)
def predict(
    images: Annotated[list[str], typer.Argument(help="Pictures.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model folder or its URL, or models:/padt@champion.")],
    detect: Annotated[str | None, typer.Option(help="Classes to find, separated by commas.")] = None,
    refer: Annotated[str | None, typer.Option(help="A sentence that describes one object.")] = None,
    caption: Annotated[bool, typer.Option("--caption", help="Describe the picture.")] = False,
    ask: Annotated[str | None, typer.Option(help="Any other words.")] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for JSON and pictures; none = JSON here.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of a beam search; 1 = greedy.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 = the likeliest answer, else sampling.")] = 0.0,
    forbid_repeats: Annotated[bool, typer.Option(help="No VRT twice in one group.")] = False,
    false_alarms: Annotated[
        float | None,
        typer.Option(help="Leave out objects, so that mistakes are no more frequent (`padt calibrate --thresholds`)."),
    ] = None,
    refine: Refine = None,
    refine_prompt: RefinePrompt = None,
    refine_model: RefineModel = None,
    together: Annotated[bool, typer.Option("--together", help="One question about all pictures.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures answered at the same time.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
) -> None:
    """Ask a model about pictures: JSON, and pictures with boxes, masks, VRT patches and scores."""
    import json

    from jobs.inference.predict import PicturePrediction, make_request, run_predict
    from padt.inference.refine import Refinement
    from padt.inference.requests import GenerationSettings

    def tell(result: PicturePrediction) -> None:
        if out is not None:
            found = ", ".join(f"{thing['label']} {thing['score']:.2f}" for thing in result.objects)
            console.out.print(f"{result.image}: {found or result.record['text']} -> {result.picture_path}")
        elif not (together and result.number):
            typer.echo(json.dumps(result.record, ensure_ascii=False))

    run_predict(
        model,
        images,
        make_request(detect, refer, caption, ask),
        out,
        settings=GenerationSettings(
            max_new_tokens=max_new_tokens, num_beams=num_beams, temperature=temperature, forbid_repeats=forbid_repeats
        ),
        batch_size=batch_size,
        together=together,
        false_alarms=false_alarms,
        refine=Refinement.asked(refine, refine_prompt, refine_model),
        load_options={"device": device} if device else None,
        on_result=tell,
    )


@app.command(
    **examples(
        "padt register runs/toy/finetune/model --evaluation runs/toy/evaluate",
        "padt register models:/padt/2 --alias champion --force",
    )
)
def register(
    model: Annotated[
        str, typer.Argument(help="Model folder or its URL, or models:/padt/3 for a version that is there already.")
    ],
    evaluation: Annotated[
        list[str] | None, typer.Option("--evaluation", "-e", help="Folder of `padt evaluate`; repeatable.")
    ] = None,
    alias: Annotated[str, typer.Option(help="champion (through the gate), candidate, or any other.")] = "champion",
    force: Annotated[bool, typer.Option(help="Give the alias against the gate's objections.")] = False,
) -> None:
    """Enter a model with its scores in the MLflow registry, and promote it if it passes the gate."""
    from jobs.registry.register import run_register

    version = run_register(model, alias=alias, evaluations=evaluation or (), force=force)
    for objection in version.objections:
        console.err.print(f"gate: {objection}")
    console.out.print(f"{version.uri} ({', '.join(version.aliases) or 'no alias'}): {version.source}")
    if not version.promoted:
        raise UserError(f"Version {version.version} did not become {alias}: see the gate's objections, or use --force.")
