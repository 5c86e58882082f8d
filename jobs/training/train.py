"""``padt train``: one training stage, on Ray Train or in this process."""

import json
import logging
import posixpath
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from jobs.common.mlflow_run import TrackedRun, check_server, start_run, tracking_uri
from jobs.common.model_reference import fetched, is_remote, resolve_model
from jobs.common.ray_session import ray_session
from jobs.common.shared_output import check_shared
from jobs.training.checkpoint import starting_point, written_with
from jobs.training.config import TrainConfig
from jobs.training.contamination import overlap_tags, warn_of_overlap
from jobs.training.engine.backend import engine_of
from jobs.training.launch import launch, launcher_of
from jobs.training.loop import TrainJob
from jobs.training.metrics_log import QUARANTINED, Record, RunLog
from jobs.training.run_identity import RUN, RunIdentity
from padt.data.image import ResizePolicy
from padt.pretrained.hub import is_hub_id
from pipelines.io.reading import is_local
from pipelines.io.storage import Folder
from pipelines.loader.plan import Plan, make_plan

if TYPE_CHECKING:
    from padt.data.processor import PaDTProcessor

logger = logging.getLogger(__name__)

SUMMARY = "train_summary.json"


@dataclass(frozen=True)
class TrainResult:
    """What a training stage left.

    Attributes:
        model_path: folder of the trained model.
        metrics: last metrics (``train/*``, ``perf/*``).
        run_id: MLflow run, or None.
        seconds: wall clock of this call (of the earlier one, where nothing was left to do).
        steps: optimiser steps of the whole run.
        samples: samples seen in the whole run.
        skipped: the run was finished already and nothing was done.
        timings: seconds of the parts of this call.
        not_logged: what could not be written to the metrics file or MLflow, a sentence each.
    """

    model_path: str
    metrics: dict[str, float]
    run_id: str | None
    seconds: float
    steps: int
    samples: int
    skipped: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    not_logged: list[str] = field(default_factory=list)


def run_train(config: TrainConfig, on_record: Callable[[Record], None] | None = None) -> TrainResult:
    """Train a model, or go on with a training that was interrupted, or return at once if it is finished.

    Args:
        config: the resolved configuration.
        on_record: called in the driver with each metric record.

    Raises:
        UserError: bad input, a run of another configuration in the output folder, or a loss that is not finite.
    """
    begun = time.monotonic()
    config = with_absolute_paths(config)
    Folder(config.output).check_target()
    finished = _finished(config)
    if finished is not None:
        logger.info("%s is finished already: nothing to do", config.output)
        return finished
    if config.tracking.enabled:
        check_server(tracking_uri())
    job_plan, total, warm = prepare_job(config)
    if config.data.eval_sets:
        overlaps = warn_of_overlap([each.url for each in config.data.sets], config.data.eval_sets)
        tags = {**config.tracking.tags, **overlap_tags(overlaps)}
        config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"tags": tags})})
    identity, run_id = _claim_output(config)
    engine = written_with(config.output) if config.engine == "auto" else None
    config = config.model_copy(update={"launcher": launcher_of(config), "engine": engine or engine_of(config)})
    timings = {"plan": time.monotonic() - begun}
    with ThreadPoolExecutor(1) as pool:
        # MLflow opens its database while Ray starts: both take seconds.
        tracked = pool.submit(_start_tracking, config, identity, run_id) if config.tracking.enabled else None
        with ray_session() if config.launcher == "ray" else nullcontext():
            if config.launcher == "ray":
                check_shared(config.output, config.gpu)
            timings["ray"] = time.monotonic() - begun - timings["plan"]
            run = tracked.result() if tracked else None
            timings["ray_and_mlflow"] = time.monotonic() - begun - timings["plan"]
            return _train(config, identity, job_plan, total, warm, run, begun, timings, on_record)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration with aliases resolved and local paths absolute: Ray's workers run in folders of their own.

    Raises:
        UserError: the model is a registry alias that is not there.
    """

    def absolute(url: str) -> str:
        folder = Folder(url)
        return folder.path() if is_local(folder.fs) else url

    sets = [replace(each, url=absolute(each.url)) for each in config.data.sets]
    eval_sets = [absolute(each) for each in config.data.eval_sets]
    return config.model_copy(
        update={
            "model": _model(config.model, absolute),
            "output": absolute(config.output),
            "data": config.data.model_copy(update={"sets": sets, "eval_sets": eval_sets}),
        }
    )


def _model(reference: str, absolute: Callable[[str], str]) -> str:
    if reference.startswith("models:"):
        return resolve_model(reference)
    return reference if is_remote(reference) or is_hub_id(reference) else absolute(reference)


def order_of_samples(config: TrainConfig, policy: ResizePolicy, measure: "PaDTProcessor | None") -> Plan:
    """The plan that a configuration means.

    Args:
        config: the resolved configuration.
        policy: how pictures are resized.
        measure: counts tokens; only ``data.batching`` needs it.

    Raises:
        UserError: a set is missing or does not fit.
    """
    return make_plan(
        config.data.sets,
        seed=config.seed,
        batch_size=config.batch_size,
        micro_batches=config.micro_batches,
        policy=policy,
        window=config.data.window,
        last=config.data.last,
        batching=config.data.batching,
        augment=config.data.augment,
        measure=measure,
        task=config.task,
    )


def prepare_job(config: TrainConfig) -> tuple[Plan, int, int]:
    """Plan, optimiser steps and prototype warm-up steps of a configuration; reads only small columns of the data.

    Raises:
        UserError: model folder or data set missing or not fitting.
    """
    from jobs.training.trainable import check_parameter_names
    from padt.data.processor import load_processor

    model = fetched(config.model)
    check_parameter_names(config.model_copy(update={"model": model}))
    processor = load_processor(model, max_pixels=config.max_pixels)
    plan = order_of_samples(config, processor.policy, processor)
    for (name, task), (lost, count) in plan.skipped().items():
        logger.warning(
            "%s: %d of %d samples of task %s are longer than data.batching allows and are left out",
            name,
            lost,
            count,
            task,
        )
    if config.steps is not None:
        total = config.steps
    else:
        assert config.epochs is not None  # the configuration holds one of the two
        total = max(1, plan.batches_until(config.epochs))
    # The workers get the plan with its epochs counted, and need not do it again.
    plan.locate(total)
    warm = min(int(config.prototype_warmup.share * total), config.prototype_warmup.max_steps)
    return plan, total, warm


def _samples_until(plan: Plan, steps: int) -> int:
    """Samples of the first steps of a run."""
    if plan.batching is None:
        return steps * plan.samples_per_step
    view = plan.reader()
    return sum(int(view.sizes(number).sum()) for number in range(steps))


def _finished(config: TrainConfig) -> TrainResult | None:
    text = Folder(config.output).read_text(SUMMARY)
    if text is None:
        return None
    summary = json.loads(text)
    saved = RunIdentity.from_json(summary["identity"])
    RunIdentity.of(config, saved).check_same(
        saved, f"{config.output} holds a finished run", "give another output folder, or remove it."
    )
    result = summary["result"]
    return TrainResult(**{**result, "model_path": posixpath.join(config.output, "model"), "skipped": True})


def _claim_output(config: TrainConfig) -> tuple[RunIdentity, str | None]:
    """Write the resolved configuration, or refuse where an unfinished run of another one lies.

    Returns:
        What the run is, and the MLflow run of an earlier attempt.
    """
    folder = Folder(config.output)
    record = json.loads(folder.read_text(RUN) or "{}")
    saved = RunIdentity.from_json(record["identity"]) if record else None
    identity = RunIdentity.of(config, saved)
    if saved is not None:
        fix = "set the values back to go on with it, or give another output folder, or remove it."
        identity.check_same(saved, f"{config.output} holds an unfinished run", fix)
    folder.write("config.yaml", config.to_yaml())
    run_id = record.get("run_id")
    _write_record(config, identity, run_id)
    return identity, run_id


def _write_record(config: TrainConfig, identity: RunIdentity, run_id: str | None) -> None:
    record = {"identity": identity.to_json(), "run_id": run_id}
    Folder(config.output).write(RUN, json.dumps(record, indent=1))


def _start_tracking(config: TrainConfig, identity: RunIdentity, run_id: str | None) -> TrackedRun:
    options = config.tracking
    name = options.run_name or config.output.rstrip("/").rsplit("/", 1)[-1]
    run = start_run(
        options.experiment,
        name,
        parent_run_id=options.parent_run_id,
        run_id=run_id,
        tags={"padt.stage": "train", "padt.output": config.output, **options.tags},
    )
    if run.run_id != run_id:
        run.log_params(config.model_dump(mode="json"))
        run.log_text(config.to_yaml(), "config.yaml")
        _write_record(config, identity, run.run_id)
    return run


def _train(
    config: TrainConfig,
    identity: RunIdentity,
    plan: Plan,
    total: int,
    warm: int,
    run: TrackedRun | None,
    begun: float,
    timings: dict[str, float],
    on_record: Callable[[Record], None] | None,
) -> TrainResult:
    label = config.tracking.run_name or config.output.rstrip("/").rsplit("/", 1)[-1]
    logger.info(
        "%s: %d samples an epoch, %d steps of %s%d samples, %d worker(s), %s, %s",
        label,
        plan.samples_per_epoch,
        total,
        "up to " if plan.batching is not None else "",
        plan.samples_per_step,
        config.workers,
        "PyTorch" if config.engine == "torch" else f"ZeRO {config.zero_stage}",
        config.precision,
    )
    log = RunLog(config.output, label, run, on_record)
    start = starting_point(config.output, with_ray=config.launcher == "ray")
    job = TrainJob(config, plan, total, warm, run.run_id if run else None, start=start)
    fitting = time.monotonic()
    try:
        not_logged = launch(job, log)
    except BaseException as error:
        if run is not None:
            tell_mlflow(run, partial(run.finish, "FAILED" if isinstance(error, Exception) else "KILLED"))
        raise
    timings["fit"] = time.monotonic() - fitting
    return _finish(config, identity, plan, total, run, log, begun, timings, not_logged)


def tell_mlflow(run: TrackedRun, action: Callable[[], None]) -> list[str]:
    """Do something to the run at its end; what fails is told, since it must not undo a training."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - MLflow's stores raise errors of many libraries
        sentence = f"MLflow run {run.run_id} could not be closed ({type(error).__name__}: {error})."
        logger.error("%s", sentence)
        return [sentence]
    return []


def _finish(
    config: TrainConfig,
    identity: RunIdentity,
    plan: Plan,
    total: int,
    run: TrackedRun | None,
    log: RunLog,
    begun: float,
    timings: dict[str, float],
    not_logged: list[str],
) -> TrainResult:
    result = TrainResult(
        model_path=posixpath.join(config.output, "model"),
        metrics={name: value for name, value in log.latest.items() if name != "step"},
        run_id=run.run_id if run else None,
        seconds=time.monotonic() - begun,
        steps=total,
        samples=_samples_until(plan, total),
        timings={name: round(value, 2) for name, value in timings.items()},
        not_logged=not_logged,
    )
    summary = {
        "identity": identity.to_json(),
        "data_fingerprint": plan.mixture.fingerprint(),
        "samples_per_epoch": plan.samples_per_epoch,
        "left_out": {f"{name} {task}": lost for (name, task), (lost, _) in plan.skipped().items()},
        "quarantined": int(log.latest.get(QUARANTINED, 0)),
        "result": {k: v for k, v in vars(result).items() if k not in ("skipped", "model_path")},
    }
    if run is not None:

        def close() -> None:
            run.log_text(json.dumps(summary, indent=2), "train_summary.json")
            run.set_tags({"padt.data_fingerprint": plan.mixture.fingerprint(), "padt.model": result.model_path})
            indices = zip(plan.mixture.names, plan.mixture.indices, strict=True)
            run.log_sets({name: {"url": index.url, "fingerprint": index.fingerprint} for name, index in indices})
            run.finish()

        not_logged += tell_mlflow(run, close)
    # Last: this file is the sign that the run is finished.
    Folder(config.output).write(SUMMARY, json.dumps(summary, indent=2))
    return result
