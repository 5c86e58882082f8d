"""A tag on the registered version that an endpoint serves, for as long as it does."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

from jobs.common.model_reference import ResolvedModel

logger = logging.getLogger(__name__)

SERVED_TAG = "padt.served"
"""Before the host and port of the endpoint."""


@contextmanager
def served_tag(model: ResolvedModel, url: str) -> Iterator[None]:
    """Tag the version that is served for the length of a block; does nothing for a model that is in no registry.

    The tag is ``padt.served/HOST:PORT``, its value since when: one for each endpoint. A registry that does not answer
    is told of in the log, and hinders no serving.

    Args:
        model: what is served.
        url: of the endpoint.
    """
    if model.name is None or model.version is None:
        yield
        return
    key = f"{SERVED_TAG}/{socket.gethostname()}:{urlsplit(url).port}"
    _tag(model, key, f"since {datetime.now(UTC).isoformat(timespec='seconds')}")
    try:
        yield
    finally:
        _tag(model, key, None)


def _tag(model: ResolvedModel, key: str, value: str | None) -> None:
    """Set a tag of a version, or take it away."""
    from mlflow.exceptions import MlflowException

    from jobs.common.mlflow_run import client

    try:
        if value is None:
            client().delete_model_version_tag(model.name, model.version, key)
        else:
            client().set_model_version_tag(model.name, model.version, key, value)
    except (MlflowException, OSError) as error:
        version = f"{model.name}/{model.version}"
        logger.warning("The registry was not told what is served (tag %s of %s): %s", key, version, error)
