"""The command line `padt`: a thin dispatcher.

Each verb imports what it needs when it runs, so that help is instant and `padt predict` works where only the model
library is installed.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobs.cli.calibrate import app as calibrate_app
from jobs.cli.data import app as data_app
from jobs.cli.evaluation import app as evaluation_app
from jobs.cli.evaluation import kinds_table
from jobs.cli.explain import app as explain_app
from jobs.cli.export import app as export_app
from jobs.cli.models import app as models_app
from jobs.cli.prepare import app as prepare_app
from jobs.cli.serve import app as serve_app
from jobs.cli.stage_lines import StageLines, stages_table
from jobs.cli.training import Overrides, Redo
from jobs.cli.training import app as training_app
from jobs.cli.verb import examples, recipe_names
from jobs.common import console
from padt import __version__
from padt.errors import UserError, install_command

# In the order of the help, with the extra that brings the packages which a verb may miss.
EXTRAS = {
    "demo": "all",
    "prepare": "data",
    "inspect": "data",
    "exclude-list": "data",
    "export-data": "data",
    "train": "train",
    "run": "all",
    "evaluate": "eval",
    "score": "eval",
    "calibrate": "eval",
    "compare": "train",
    "register": "train",
    "predict": "train",  # only for models of the registry
    "explain": "train",
    "export": "train",  # only for models of the registry
    "serve": "serve",
    "reload": "serve",
    "submit": "train",
}
VERBS = tuple(EXTRAS)
INTERRUPTED = 130  # what shells give a process that Ctrl-C has ended


class InOrderOfUse(TyperGroup):
    """Lists the verbs in the order in which a user meets them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all verbs; those that ``VERBS`` does not know come last."""
        return sorted(self.commands, key=lambda name: VERBS.index(name) if name in VERBS else len(VERBS))


app = typer.Typer(
    name="padt",
    cls=InOrderOfUse,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="**PaDT on Ray**: from raw annotations to a served model that answers with pieces of the picture.\n\n"
    "Start with `padt demo` (about ten minutes on two cores); every verb's `--help` shows examples.",
)
app.add_typer(prepare_app, name="prepare")
app.add_typer(data_app)
app.add_typer(training_app)
app.add_typer(evaluation_app)
app.add_typer(models_app)
app.add_typer(export_app)
app.add_typer(calibrate_app)
app.add_typer(explain_app)
app.add_typer(serve_app)

OPTIONAL_PACKAGES = {
    *("ray", "deepspeed", "accelerate", "mlflow"),
    *("pyarrow", "fsspec", "pydantic", "pycocotools", "faster_coco_eval"),
    *("fastapi", "starlette", "multipart"),
}

# What libraries are told, unless the user has said otherwise.
ENVIRONMENT = {
    # No reports home, and no bars of their own between ours.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Serve kills a proxy that is not up within 5 seconds, which a busy small machine does not keep.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 (failure), 2 (wrong use or input), 130 (interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = app(words, standalone_mode=False)
    except UserError as error:
        console.fail(str(error))
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL_PACKAGES:
            raise
        verb = next((word for word in words if not word.startswith("-")), "")
        console.fail(f"'padt {verb}' needs {package}: {install_command(EXTRAS.get(verb, 'all'))}")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        # Click's own errors (typer vendors them under another name in some versions): wrong options and arguments.
        if not hasattr(error, "format_message"):
            raise
        error.show()  # type: ignore[attr-defined]
        return int(getattr(error, "exit_code", 2))
    if status == INTERRUPTED:
        console.fail("interrupted; run the same command again to go on")
    return status if isinstance(status, int) else 0


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"padt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More log lines.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of all verbs."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    console.set_up_logging(verbose)


@app.command(
    **examples(
        "padt submit toy --address http://HEAD:8265 --output s3://bucket/runs/toy",
        "padt submit recipes/pro.yaml finetune.workers=16 --no-follow",
    )
)
def submit(
    recipe: Annotated[
        str,
        typer.Argument(help="Packaged name, or a YAML file inside the working directory.", autocompletion=recipe_names),
    ],
    overrides: Overrides = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Job address of the cluster's head.")
    ] = "http://127.0.0.1:8265",
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Run folder that the cluster can write to; any URL.")
    ] = None,
    redo: Redo = None,
    working_dir: Annotated[str, typer.Option(help="Folder with the code, sent along (at most 100 MB).")] = ".",
    submission_id: Annotated[str | None, typer.Option(help="In place of the one made from the arguments.")] = None,
    follow: Annotated[bool, typer.Option(help="Pass the job's log on and wait for its end.")] = True,
    again: Annotated[bool, typer.Option(help="Run it although the same submission has succeeded.")] = False,
) -> None:
    """Run a recipe as a Ray Job on a cluster; submitting the same thing again follows the job that runs."""
    from jobs.recipes.submit import run_submit

    result = run_submit(
        recipe,
        overrides or (),
        address=address,
        output=output,
        working_dir=working_dir,
        submission_id=submission_id,
        redo=redo or (),
        follow=follow,
        again=again,
        write=lambda text: typer.echo(text, nl=False),
    )
    console.err.print(f"{result.submission_id}: {result.status} {result.message}".rstrip())
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@app.command(**examples("padt demo", "padt demo --fresh finetune.steps=1200 --output runs/longer"))
def demo(
    overrides: Overrides = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Run folder.")] = "runs/demo",
    fresh: Annotated[bool, typer.Option(help="Throw an earlier demo away first.")] = False,
) -> None:
    """The whole story on two cores: data, training, scores, a registered model, pictures, a served answer.

    Run it again to go on where it stopped, or to see the table once more.
    """
    from jobs.recipes.demo import run_demo
    from padt.metrics.table import title

    result = run_demo(output, overrides or (), fresh=fresh, observer=StageLines())
    console.out.print(stages_table(result.recipe))
    console.out.print(
        console.metrics_table("Held-out scores before and after each stage", result.shown_scores(), named=title)
    )
    by_kind = result.recipe["evaluate"].result["by_kind"]
    if by_kind:
        console.out.print(kinds_table(by_kind))
    tracking = result.recipe.tracking_uri
    done = "Everything was done already" if result.worked_s is None else f"Done in {result.worked_s:.0f} s"
    console.out.print(f"{done}. Look at")
    for what, where in (
        *(("picture", console.shorter(str(path))) for path in result.pictures),
        ("scored answers", console.shorter(f"{result.recipe['evaluate'].folder}/predictions.parquet")),
        ("summary", console.shorter(result.recipe.summary_path)),
        ("all runs", f"mlflow ui --backend-store-uri {tracking}"),
        ("serve it", f"MLFLOW_TRACKING_URI={tracking} padt serve {result.model}"),
    ):
        console.out.print(f"  {what}: {where}")


if __name__ == "__main__":
    sys.exit(main())
