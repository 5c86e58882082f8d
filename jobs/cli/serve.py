"""The verbs that put a model behind HTTP and change which one answers."""

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.verb import Refine, RefineModel, RefinePrompt, examples
from jobs.common import console

if TYPE_CHECKING:
    from jobs.inference.serve import Served

app = typer.Typer()

Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="Ray that the application runs on, as padt serve prints it."),
]


@app.command(
    **examples(
        "padt serve models:/padt@champion --watch 30",
        'curl -F image=@photo.jpg -F task=detect -F names="person,dog" http://127.0.0.1:8000/v1/predict',
    )
)
def serve(
    model: Annotated[str, typer.Argument(help="Model folder or its URL, or a registered one: models:/padt@champion.")],
    host: Annotated[str, typer.Option(help="Interface to listen on; 0.0.0.0 = all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    engine_replicas: Annotated[int, typer.Option(min=1)] = 1,
    max_engine_replicas: Annotated[
        int | None, typer.Option(min=1, help="More engines come and go with the load, up to so many.")
    ] = None,
    engine_gpus: Annotated[float, typer.Option(min=0, help="GPUs of one engine.")] = 0.0,
    keys_file: Annotated[
        str | None,
        typer.Option(help="File of keys, NAME:KEY in lines; read again when it changes. More are in PADT_API_KEYS."),
    ] = None,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Answer other machines without keys too.")
    ] = False,
    max_rows: Annotated[int, typer.Option(min=1, help="Most answers that an engine writes at a time.")] = 16,
    refine: Refine = None,
    refine_prompt: RefinePrompt = None,
    refine_model: RefineModel = None,
    request_log: Annotated[
        str, typer.Option(metavar="FILE", help="Add a line of JSON for each request, without words and pictures.")
    ] = "",
    sample_folder: Annotated[
        str, typer.Option(metavar="FOLDER", help="Keep questions, pictures and answers here, for `padt prepare`.")
    ] = "",
    sample_share: Annotated[float, typer.Option(min=0, max=1, help="Part of the questions that is kept.")] = 0.0,
    trace_share: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the requests of which MLflow gets a trace.")
    ] = 0.0,
    watch: Annotated[
        float, typer.Option(min=0, help="Seconds between looks at the model's alias; a new version is served. 0: none.")
    ] = 0.0,
) -> None:
    """Serve a model over HTTP until Ctrl-C, which finishes what has been asked; once more ends at once."""
    from jobs.inference.serve import run_serve

    def announce(served: "Served") -> None:
        console.out.print(f"{served.model} answers at {served.url}/ (requests: /v1/predict, description: /docs)")
        console.out.print(f"another model in its place: padt reload MODEL --address {served.cluster}")

    scaling = {
        "min_replicas": engine_replicas,
        "max_replicas": max_engine_replicas,
        "target_ongoing_requests": max_rows,
    }
    run_serve(
        model,
        host,
        port,
        announce,
        watch_s=watch,
        engine_replicas=engine_replicas if max_engine_replicas is None else scaling,
        engine_gpus=engine_gpus,
        max_rows=max_rows,
        refine=refine or "",
        refine_prompt=refine_prompt or "",
        refine_model=refine_model or "",
        keys_file=keys_file,
        allow_anyone=allow_anyone,
        request_log=request_log,
        sample_folder=sample_folder,
        sample_share=sample_share,
        trace_share=trace_share,
    )


@app.command(
    **examples(
        "padt reload models:/padt@candidate --canary 5",
        "padt reload models:/padt@champion",
        "padt reload --back",
        "padt reload --watch models:/padt@champion --every 30",
    )
)
def reload(
    model: Annotated[str | None, typer.Argument(help="Folder or URL of a model, or models:/padt@champion.")] = None,
    canary: Annotated[
        float | None,
        typer.Option(min=0.01, max=100, help="Percentage of the requests that it answers, beside the other."),
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Drop the canary, or go back to the model before.")] = False,
    watch: Annotated[
        str | None, typer.Option(metavar="ALIAS", help="Follow an alias of the registry until Ctrl-C.")
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at the alias.")] = 30.0,
    address: Address = None,
) -> None:
    """Let another model answer in the running application: loaded beside the old one, no request fails or waits.

    Returns when every engine answers with it. Where one cannot load it, the old model stays everywhere.
    """
    from jobs.inference.reload import run_reload, run_watch
    from padt.errors import UserError

    if watch is not None:
        if model is not None or back or canary is not None:
            raise UserError("--watch takes no other model, --canary or --back: follow an alias, or change once.")
        run_watch(watch, every, address=address)
        return
    release = run_reload(model, canary=canary, back=back, address=address, tell=console.err.print)
    beside = "" if release.canary is None else f", {release.canary.label} {release.canary.percent:g} % of the requests"
    console.out.print(f"{release.label} answers{beside}")
