"""One place where jobs connect to Ray: the cluster named by the environment, else a small local one."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

MINIMUM_CPUS = 4
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Ray Train's controller polls its workers this often; the default of 2 s is felt in short runs.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


def ensure_ray(dashboard: bool = False) -> bool:
    """Connect to Ray unless this process already is.

    Takes the cluster of ``RAY_ADDRESS`` where set (a submitted job has it). Otherwise starts a local Ray with at least
    four logical CPUs: with two the readers would wait for ever behind the trainers.

    Args:
        dashboard: start the dashboard of a local Ray.

    Returns:
        True if this call connected, so that the caller is the one to shut it down.
    """
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    quiet = {"logging_level": logging.WARNING, "log_to_driver": bool(os.environ.get("PADT_WORKER_LOGS"))}
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env={"env_vars": WORKER_ENVIRONMENT}, **quiet)
        logger.info("connected to Ray at %s", os.environ["RAY_ADDRESS"])
    else:
        cpus = max(MINIMUM_CPUS, os.cpu_count() or 1)
        # This machine goes away all at once or not at all: nobody announces it.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Workers inherit this process's environment through the local Ray's own processes.
        ray.init(address="local", num_cpus=cpus, include_dashboard=dashboard, **quiet)
        logger.info("started a local Ray with %d logical CPUs", cpus)
    return True


@contextmanager
def ray_session(dashboard: bool = False) -> Iterator[None]:
    """``ensure_ray`` for the length of a block; a local Ray that it started is shut down at the end."""
    import ray

    started = ensure_ray(dashboard)
    try:
        yield
    finally:
        if started:
            ray.shutdown()
