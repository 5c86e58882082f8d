"""MLflow with one writer: a run that is started once, resumed after a restart, and never gets a step twice."""

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from jobs.common.config_tree import flatten
from padt.errors import UserError

logger = logging.getLogger(__name__)

PARAM_LENGTH = 500
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI`` where set, else a SQLite file in the working folder (MLflow refuses plain folders)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def check_server(uri: str, seconds: float = 5.0) -> None:
    """Make sure, within seconds, that a tracking server is there; MLflow itself would try for minutes.

    Args:
        uri: of the server; a database or a folder is not asked.
        seconds: how long one of two tries may take.

    Raises:
        UserError: nobody answers.
    """
    if not uri.startswith(("http://", "https://")):
        return
    for last in (False, True):
        try:
            urlopen(f"{uri.rstrip('/')}/health", timeout=seconds).close()
            return
        except HTTPError:
            # Whoever refuses is there.
            return
        except OSError as error:
            if last:
                reason = getattr(error, "reason", error)
                raise UserError(
                    f"The MLflow server {uri} does not answer ({reason}): start it, correct MLFLOW_TRACKING_URI, or "
                    "set tracking.enabled=false."
                ) from error
        time.sleep(1)


def client() -> Any:
    """MLflow client on ``tracking_uri()``; the registry lives in the same place."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Whoever writes keeps what fails and tries again; MLflow's own seven times would hold up all else for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(), registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri())


class TrackedRun:
    """One MLflow run. Every metric is written once: records of a step at or before ``last_step`` are left out."""

    def __init__(self, mlflow_client: Any, run_id: str, last_step: int = -1) -> None:
        self.client = mlflow_client
        self.run_id = run_id
        self.last_step = last_step

    def log_params(self, tree: Mapping[str, Any]) -> None:
        """Log a nested configuration as dotted parameters; values are cut to MLflow's limits."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in flatten(tree).items()]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            self.client.log_batch(self.run_id, params=params[start : start + PARAMS_PER_BATCH])

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log a record of optimiser step ``step``; does nothing where that step is already there."""
        if step <= self.last_step:
            return
        self._write(step, metrics)
        self.last_step = step

    def log_summary(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log closing figures (evaluation, totals), whatever step was last."""
        self._write(step, metrics)

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(k, float(v), now, step) for k, v in metrics.items() if math.isfinite(float(v))]
        for start in range(0, len(entries), METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=entries[start : start + METRICS_PER_BATCH])

    def log_text(self, text: str, name: str) -> None:
        """Store a small text as an artifact."""
        self.client.log_text(self.run_id, text, name)

    def log_file(self, name: str, content: bytes) -> None:
        """Store a file as an artifact."""
        with TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            self.client.log_artifact(self.run_id, str(path))

    def log_sets(self, sets: Mapping[str, Mapping[str, Any]]) -> None:
        """Enter prepared sets as the run's inputs, by name: ``url`` and ``fingerprint`` of each."""
        from mlflow.entities import Dataset, DatasetInput

        inputs = [
            DatasetInput(Dataset(name, str(facts["fingerprint"])[:36], "padt", json.dumps({"url": facts["url"]})))
            for name, facts in sets.items()
        ]
        self.client.log_inputs(self.run_id, datasets=inputs)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, str(value))

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run: ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self.client.set_terminated(self.run_id, status)


def start_run(
    experiment: str,
    name: str,
    *,
    parent_run_id: str | None = None,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrackedRun:
    """Start a run, or go on with an earlier one.

    Args:
        experiment: created if needed.
        name: name of the run.
        parent_run_id: run of the recipe that this is a stage of.
        run_id: an earlier run to go on with; a new one is started where it is gone.
        tags: further tags.
    """
    mlflow_client = client()
    if run_id is not None:
        resumed = _resume(mlflow_client, run_id)
        if resumed is not None:
            return resumed
    all_tags = {**git_tags(), **(tags or {})}
    if parent_run_id is not None:
        all_tags["mlflow.parentRunId"] = parent_run_id
    run = mlflow_client.create_run(experiment_id(mlflow_client, experiment), run_name=name, tags=all_tags)
    return TrackedRun(mlflow_client, run.info.run_id)


def experiment_id(mlflow_client: Any, name: str) -> str:
    """Id of an experiment, created if needed."""
    found = mlflow_client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(mlflow_client.create_experiment(name, artifact_location=_artifact_folder(mlflow_client.tracking_uri)))


def _resume(mlflow_client: Any, run_id: str) -> TrackedRun | None:
    from mlflow.exceptions import MlflowException

    try:
        run = mlflow_client.get_run(run_id)
    except MlflowException:
        logger.warning("MLflow at %s has no run %s any more: a new one is started", tracking_uri(), run_id)
        return None
    last = -1
    if "train/loss" in run.data.metrics:
        last = max(entry.step for entry in mlflow_client.get_metric_history(run_id, "train/loss"))
    mlflow_client.update_run(run_id, status="RUNNING")
    return TrackedRun(mlflow_client, run_id, last)


def _artifact_folder(uri: str) -> str | None:
    """Beside the SQLite file, wherever later commands are started; None = a server decides itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlruns").as_uri()


def git_tags() -> dict[str, str]:
    """Commit of the code that runs, and whether its files are as committed, where it is a git checkout."""
    import subprocess

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "padt.git.clean": str(not changed).lower()}
