"""The verbs that train: train (one stage) and run (a recipe)."""

import json
from typing import Annotated, Any

import typer

from jobs.cli.stage_lines import StageLines, stages_table
from jobs.cli.verb import config_names, examples, recipe_names
from jobs.common import console
from padt.errors import UserError

app = typer.Typer()

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes, by dotted path.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="Run folder in place of the recipe's own; any URL.")]
Redo = Annotated[
    list[str] | None, typer.Option(help="Stage to make again, with everything that builds on it; repeatable.")
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print it with everything written out, and leave.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan (lengths, memory, disk, time), and leave.")]
AsJson = Annotated[bool, typer.Option("--json", help="With --dry-run: the plan as JSON.")]
Rates = Annotated[
    str | None, typer.Option(help="With --dry-run: measured rates for its times, a JSON file or the folder of a run.")
]
Schema = Annotated[bool, typer.Option("--schema", help="Print the JSON schema of its file, and leave.")]


@app.command(
    **examples(
        "padt train --config toy_pretrain model=pipelines/toy/base output=runs/pretrain data.sets.0.url=runs/toy/train",
        "padt train -c paper model=/models/Qwen2.5-VL-3B output=s3://bucket/run data.sets.0.url=s3://bucket/coco-train",
        "padt train -c finetune_lora model=/models/PaDT_Pro_3B output=runs/lora data.sets.0.url=data/own/train",
    )
)
def train(
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="YAML file, or the name of a packaged one.", autocompletion=config_names),
    ] = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    rates: Rates = None,
    print_config: PrintConfig = False,
    schema: Schema = False,
) -> None:
    """Train one stage with Ray Train and DeepSpeed; run it again to go on after an interruption."""
    from jobs.training.config import TrainConfig, load_config

    if schema:
        from jobs.common.config_tree import schema_of

        return _print_json(schema_of(TrainConfig))
    if config is None:
        raise UserError("Missing option '--config': name a YAML file or a packaged configuration, such as paper.")
    loaded = load_config(config, overrides or ())
    if print_config:
        return typer.echo(loaded.to_yaml(), nl=False)

    if dry_run:
        from jobs.cli.plan_tables import show_train_plan
        from jobs.planning.plan import plan_training
        from jobs.planning.rates import load_rates

        plan = plan_training(loaded, load_rates(rates) if rates else ())
        return _print_json(plan.to_json()) if as_json else show_train_plan(loaded.output, plan)

    from jobs.planning.plan import warn_of_memory
    from jobs.training.train import run_train

    warn_of_memory(loaded)
    result = run_train(loaded)
    rows = sorted(result.metrics.items())
    console.out.print(console.table(f"{result.steps:,} steps in {result.seconds:.0f} s", ["metric", "last>"], rows))
    console.out.print(f"model: {result.model_path}")
    for sentence in result.not_logged:
        console.err.print(f"warning: {sentence}")


@app.command(
    **examples(
        "padt run --list",
        "padt run pro_3b raw=/data/raw --dry-run",
        "padt run toy finetune.optimizer.lr=1e-3 --output runs/higher-lr",
        "padt run pro_3b raw=/data/raw -o s3://bucket/pro --only prepare",
        "padt run recipe.yaml --redo finetune",
        "padt run toy_ablation --jobs 4",
    )
)
def run(
    recipe: Annotated[
        str | None, typer.Argument(help="YAML file, or the name of a packaged recipe.", autocompletion=recipe_names)
    ] = None,
    overrides: Overrides = None,
    output: Output = None,
    redo: Redo = None,
    first: Annotated[str | None, typer.Option("--from", help="Leave out the stages before this one.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="Leave out all stages but this one.")] = None,
    jobs: Annotated[int, typer.Option(help="Cells of an ablation at work at once.", min=1)] = 1,
    list_all: Annotated[bool, typer.Option("--list", help="List the packaged recipes, and leave.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    rates: Rates = None,
    print_config: PrintConfig = False,
    schema: Schema = False,
) -> None:
    """Run the stages of a recipe, or the cells of an ablation, that are not done yet.

    A stage that was done under other options is never replaced silently: say `--redo STAGE`, or another `--output`.
    """
    if list_all:
        from jobs.recipes.load import about_recipes

        return console.out.print(console.table("Recipes", ["name", "what it is"], list(about_recipes().items())))
    if schema:
        from jobs.recipes.schema import recipe_schema

        return _print_json(recipe_schema())
    if recipe is None:
        raise UserError("Missing argument 'RECIPE': name a YAML file or a packaged recipe (padt run --list).")
    from jobs.recipes.ablation.plan import is_ablation

    if is_ablation(recipe):
        from jobs.cli.ablation_table import show_ablation

        unfit = {"--redo": redo, "--from": first, "--only": only, "--print-config": print_config}
        return show_ablation(recipe, overrides or (), output, jobs, [name for name, value in unfit.items() if value])
    if print_config:
        from jobs.recipes.load import load_recipe

        return typer.echo(load_recipe(recipe, overrides or (), output).to_yaml(), nl=False)

    if dry_run:
        from jobs.cli.plan_tables import show_recipe_plan
        from jobs.planning.rates import load_rates
        from jobs.recipes.plan import plan_recipe

        known = load_rates(rates) if rates else ()
        plan = plan_recipe(recipe, overrides or (), output=output, redo=redo or (), first=first, only=only, rates=known)
        return _print_json(plan.to_json()) if as_json else show_recipe_plan(plan)

    from jobs.recipes.run import run_recipe

    result = run_recipe(
        recipe, overrides or (), output=output, redo=redo or (), first=first, only=only, observer=StageLines()
    )
    console.out.print(stages_table(result))
    console.out.print(console.metrics_table("Scores", result.scores))
    console.out.print(f"summary: {result.summary_path}")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
