"""Where a job trains: in a group of Ray Train's workers, or with one worker in this process."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

from jobs.training.checkpoint import FOLDER
from jobs.training.config import TrainConfig
from jobs.training.loop import TrainJob
from jobs.training.metrics_log import Courier, Mailbox, Record, RunLog
from padt.errors import UserError
from pipelines.prepare.execute import on_cluster


def launcher_of(config: TrainConfig) -> Literal["ray", "local"]:
    """Where a configuration trains: ``auto`` needs no Ray for one worker where no cluster is named or connected."""
    if config.launcher != "auto":
        return config.launcher
    return "local" if config.workers == 1 and not on_cluster() else "ray"


def launch(job: TrainJob, log: RunLog) -> list[str]:
    """Train a job to its end, while its records are logged; Ray must be up where it trains there.

    Args:
        job: with the launcher resolved in its configuration.
        log: takes the records.

    Returns:
        What could not be logged, a sentence each.

    Raises:
        UserError: bad input, or a loss that is not finite.
    """
    if job.config.launcher == "local":
        from jobs.training.worker import train_here

        mailbox = Mailbox()
        courier = Courier(mailbox.take, log)
        courier.start()
        try:
            train_here(replace(job, send=mailbox.put), courier.deliver)
        finally:
            not_logged = courier.close()
        return not_logged
    import ray

    actor = ray.remote(num_cpus=0)(Mailbox).remote()
    courier = Courier(lambda: ray.get(actor.take.remote()), log)
    courier.start()
    try:
        _fit(replace(job, send=partial(_put, actor)))
    finally:
        not_logged = courier.close()
        ray.kill(actor)
    return not_logged


def _put(actor: Any, record: Record) -> None:
    actor.put.remote(record)


def _fit(job: TrainJob) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    from jobs.training.worker import train_on_ray

    config = job.config
    trainer = TorchTrainer(
        train_on_ray,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            # The same name and path mean: go on with what lies there.
            name=FOLDER,
            storage_path=config.output,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.checkpoint.keep),
            callbacks=[_user_errors_end_the_run()],
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        reason = user_error_in(error)
        if reason is not None:
            raise reason from None
        raise


def _user_errors_end_the_run() -> Any:
    """Callback in Ray Train's controller: an error that the user must mend is raised, not retried."""
    import ray.train

    class EndOnUserError(ray.train.UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                reason = user_error_in(error)
                if reason is not None:
                    raise reason

    return EndOnUserError()


def user_error_in(error: BaseException | None, depth: int = 0) -> UserError | None:
    """The user's error inside the wrappers of Ray, or None."""
    if error is None or depth > 8:
        return None
    if isinstance(error, UserError):
        return UserError(str(error))
    inner: list[Any] = list(getattr(error, "worker_failures", {}).values())
    inner += [getattr(error, name, None) for name in ("controller_failure", "cause", "_base_exc", "__cause__")]
    for candidate in inner:
        if isinstance(candidate, BaseException):
            found = user_error_in(candidate, depth + 1)
            if found is not None:
                return found
    return None
