"""An evaluation that is no recipe's stage in MLflow: a run of its own with scores, counts and files."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from jobs.common.mlflow_run import check_server, start_run, tracking_uri
from jobs.evaluation.store import METRICS_FILE, PICTURES_FILE, REPORT_FILE
from padt.errors import UserError, install_command
from pipelines.io.storage import Folder

logger = logging.getLogger(__name__)

EXPERIMENT = "padt-evaluations"
_PARAMETERS = ("set", "data", "data_fingerprint", "model", "model_version", "model_fingerprint", "tasks", "settings")


def wanted_tracking(asked: bool | None) -> bool:
    """Whether an evaluation is tracked: as asked, else where the environment names a tracking server."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) if asked is None else asked


def check_tracking() -> None:
    """Make sure that MLflow is there, before the first answer.

    Raises:
        UserError: it is not installed, or its server does not answer.
    """
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Tracking needs MLflow: install it with `{install_command('eval')}`, or give --no-mlflow."
        ) from error
    check_server(tracking_uri())


def track(summary: Mapping[str, Any], out: str | None) -> str | None:
    """Enter an evaluation as a run.

    Args:
        summary: content of ``metrics.json``.
        out: folder of the evaluation, whose scores, pictures and report become artifacts, or None.

    Returns:
        The run's id; None where MLflow refused it, which is logged: what was found is in the folder.
    """
    try:
        run = start_run(EXPERIMENT, f"evaluate {summary['set']}", tags={"padt.stage": "evaluate"})
        run.log_params({name: summary[name] for name in _PARAMETERS if summary.get(name) is not None})
        run.log_summary(0, summary["metrics"])
        run.log_summary(0, {f"eval/{summary['set']}/counts/{name}": n for name, n in summary["counts"].items()})
        for name in (METRICS_FILE, PICTURES_FILE, REPORT_FILE):
            if out is not None and Folder(out).exists(name):
                run.log_file(name, Folder(out).read(name))
        run.finish()
    except Exception as error:
        # The answers and scores are on disk by now, and a server that went away must not cost them.
        logger.warning(
            "MLflow at %s did not take the evaluation (%s): enter it again with `padt score`", tracking_uri(), error
        )
        return None
    return run.run_id
