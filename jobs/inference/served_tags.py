"""Tags on the registered versions that an endpoint serves, for as long as it does."""

import logging
import os
import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import urlsplit

from padt.errors import UserError

logger = logging.getLogger(__name__)

SERVED_TAG = "padt.served"
"""Before the host and port of the endpoint."""


class ServedTags:
    """Tags what is served. The tag is ``padt.served/HOST:PORT``, one for each endpoint; its value says since when.

    A registry that does not answer is told of in the log, and hinders no serving.
    """

    def __init__(self, url: str) -> None:
        """Tag nothing yet.

        Args:
            url: of the endpoint.
        """
        self._key = f"{SERVED_TAG}/{socket.gethostname()}:{urlsplit(url).port}"
        self._tagged: set[str] = set()

    def __enter__(self) -> "ServedTags":
        return self

    def __exit__(self, *_: object) -> None:
        self.follow(())

    def follow(self, versions: Iterable[str]) -> None:
        """Tag the versions that answer now, and take the tag away from those that do not any more.

        Args:
            versions: as answers call them: ``padt/7``; plain folders, which have no ``/``, are in no registry.
        """
        wanted = {version for version in versions if "/" in version}
        since = f"since {datetime.now(UTC).isoformat(timespec='seconds')}"
        for version in sorted(self._tagged - wanted):
            self._tag(version, None)
        for version in sorted(wanted - self._tagged):
            self._tag(version, since)
        self._tagged = wanted

    def _tag(self, version: str, value: str | None) -> None:
        """Set the tag of a version, or take it away."""
        # An endpoint that stops does not wait minutes for a registry that is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            from mlflow.exceptions import MlflowException

            from jobs.common.model_reference import registry
        except ImportError as error:
            logger.warning("%s is not tagged as served: %s", version, error)
            return
        name, _, number = version.rpartition("/")
        try:
            client = registry()
            if value is None:
                client.delete_model_version_tag(name, number, self._key)
            else:
                client.set_model_version_tag(name, number, self._key, value)
        except (MlflowException, UserError, OSError) as error:
            logger.warning("The registry was not told whether %s is served (tag %s): %s", version, self._key, error)
