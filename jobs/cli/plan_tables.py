"""How the command line shows plans."""

from collections.abc import Iterator

from rich.filesize import decimal
from rich.table import Table

from jobs.common.console import err, out, shorter, table
from jobs.planning.plan import GIB, TrainPlan
from jobs.recipes.plan import RecipePlan


def show_recipe_plan(plan: RecipePlan) -> None:
    """Stages, then what each training that is ahead needs."""
    rows = [[each.name, each.kind, each.state, each.seconds, shorter(each.folder)] for each in plan.stages]
    out.print(table(f"Plan of {plan.name}", ["stage", "kind", "", "seconds>", "folder"], rows))
    for stage in plan.stages:
        if stage.refused:
            err.print(f"would be refused: {stage.refused}")
        if stage.problem:
            err.print(f"no plan of {stage.name}: {stage.problem}")
        if stage.train is not None:
            show_train_plan(stage.name, stage.train)


def show_train_plan(name: str, plan: TrainPlan) -> None:
    """Samples, sizes, memory, disk and time of a training."""
    out.print(table(f"{name}: {plan.model}", ["what", "value>"], list(_facts(plan))))
    out.print(_parts_table(plan))
    out.print(_memory_table(plan))
    for sentence in plan.assumed:
        out.print(f"assumed: {sentence}")
    for warning in plan.warnings:
        err.print(f"warning: {warning}")


def _facts(plan: TrainPlan) -> Iterator[tuple[str, str]]:
    yield "samples of an epoch", _known(plan.samples_per_epoch)
    yield "samples of a step", f"{plan.samples_per_step:,} on {plan.workers} worker(s)"
    yield "steps", _known(plan.steps)
    disk = plan.disk
    yield "disk", f"{disk['checkpoints']} checkpoints of {decimal(disk['checkpoint'])}, model {decimal(disk['model'])}"
    if plan.rate is None:
        yield "time", "no rate of this size is known (--rates FILE or RUN)"
        return
    measured = f"{plan.rate.samples_per_s:,.1f} samples/s a worker in {plan.rate.source} {plan.rate.device}".rstrip()
    yield "time", f"{_hours(plan.seconds)} by {measured}"
    read = "not measured" if plan.read_measured is None else f"{plan.read_measured:,.1f} measured"
    yield "reading", f"{plan.read_needed:,.1f} samples/s needed, {read}"


def _known(number: int | None) -> str:
    return "not known yet" if number is None else f"{number:,}"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "not known yet"
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"


def _parts_table(plan: TrainPlan) -> Table:
    sizes = plan.sizes
    rows = [[part, count, sizes.trained[part]] for part, count in sizes.parameters.items()]
    rows.append(["all", sizes.total, f"{sizes.total_trained:,} ({100 * plan.trained_share:.1f} %)"])
    return table("Parameters", ["part", "parameters>", "trained>"], rows)


def _memory_table(plan: TrainPlan) -> Table:
    work = plan.work
    parts = {name: size for name, size in plan.memory.to_json().items() if name != "total"}
    rows = [[name, f"{size / GIB:,.2f}"] for name, size in parts.items()]
    rows.append(["together", f"{plan.memory.total / GIB:,.2f}"])
    rows += [[f"together at ZeRO {stage}", f"{size / GIB:,.2f}"] for stage, size in plan.by_zero_stage.items()]
    if plan.gpu_gib is not None:
        rows.append(["of (gpu_gib)", f"{plan.gpu_gib:,.2f}"])
    out.print(
        f"Memory is that of one worker and a batch of {work.samples} samples of {work.tokens:,} tokens "
        f"({work.patches:,} patches of a picture) and {work.objects} objects each; computed again in backward: "
        f"{', '.join(plan.recomputed) or 'nothing'}."
    )
    return table("Memory", ["part", "GiB>"], rows)
