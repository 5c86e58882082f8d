"""One place where jobs connect to Ray: the cluster named by the environment, else a small local one."""

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.filesize import decimal

from padt.errors import UserError

logger = logging.getLogger(__name__)

MINIMUM_CPUS = 4
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Ray Train's controller polls its workers this often; the default of 2 s is felt in short runs.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Requests go from proxy to ingress to engine by gRPC: as actor calls they cost the processes about a tenth more.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # What a replica has loaded when it is ready stays: collecting garbage need not look through a model's objects.
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
}
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")
"""Where object stores are: a cluster's workers get these from this process. Secrets are the cluster's own affair."""
TEMPORARY_BYTES = 50_000_000
"""Room that a local Ray must find in the temporary folder: the logs of a session of some hours."""
# Ray gives a node 30 seconds to start, which a machine that is busy with other work may not keep.
_TRIES = 3


def ensure_ray(dashboard: bool = False) -> bool:
    """Connect to Ray unless this process already is.

    Takes the cluster of ``RAY_ADDRESS`` where set (a submitted job has it). Otherwise starts a local Ray with at least
    four logical CPUs: with two the readers would wait for ever behind the trainers.

    Args:
        dashboard: start the dashboard of a local Ray.

    Returns:
        True if this call connected, so that the caller is the one to shut it down.

    Raises:
        UserError: the cluster cannot be reached, or a local Ray did not start.
    """
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    # Importing and starting it takes seconds in which nothing else is said.
    logger.info("connecting to Ray at %s" if address else "starting Ray on %s", address or "this machine")
    quiet = {"logging_level": logging.WARNING, "log_to_driver": bool(os.environ.get("PADT_WORKER_LOGS"))}
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    if address:
        _connect(runtime_env={"env_vars": worker_environment()}, **quiet)
        logger.info("connected to Ray at %s", address)
    else:
        _check_temporary_folder()
        cpus = max(MINIMUM_CPUS, os.cpu_count() or 1)
        # This machine goes away all at once or not at all: nobody announces it.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Workers inherit this process's environment through the local Ray's own processes.
        _connect(address="local", num_cpus=cpus, include_dashboard=dashboard, **quiet)
        logger.info("started a local Ray with %d logical CPUs", cpus)
    return True


def _check_temporary_folder() -> None:
    """Refuse to start where there is no room for Ray's own files: it would try its tasks again for ever."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    free = shutil.disk_usage(folder).free if os.path.isdir(folder) else TEMPORARY_BYTES
    if free < TEMPORARY_BYTES:
        raise UserError(
            f"The temporary folder {folder} has {decimal(free)} free, and Ray needs {decimal(TEMPORARY_BYTES)} there "
            "for its logs and sockets: make room, or set TMPDIR to another folder."
        )


def worker_environment() -> dict[str, str]:
    """Variables of a cluster's workers, less those that a submitted job sets itself: Ray takes each from one side."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    wanted = WORKER_ENVIRONMENT | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {name: value for name, value in wanted.items() if name not in given}


def _connect(**options: Any) -> None:
    import ray

    for left in reversed(range(_TRIES)):
        try:
            ray.init(**options)
            return
        except ConnectionError as error:
            place = os.environ.get("RAY_ADDRESS", "this machine")
            raise UserError(
                f"Ray cannot be reached at {place} ({error}): check RAY_ADDRESS, or unset it to work on this machine."
            ) from error
        except Exception as error:
            # Ray raises a plain Exception here.
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if not left:
                raise UserError(
                    f"Ray did not start on this machine in {_TRIES} tries: it is too busy or short of memory. Try "
                    "again when there is less to do."
                ) from error
            logger.warning("Ray was slow to start; trying again")


@contextmanager
def ray_session(dashboard: bool = False) -> Iterator[None]:
    """``ensure_ray`` for the length of a block; a local Ray that it started is shut down at the end."""
    started = ensure_ray(dashboard)
    try:
        yield
    finally:
        if started:
            import ray

            ray.shutdown()
