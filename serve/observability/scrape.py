"""The text of ``/metrics``: what the exporters of all nodes say of this project's metrics, for whoever asks an ingress.

Ray collects the metrics of every process at its node's exporter. The ingress that is asked reads them all, so that the
answer is about all replicas, whichever ingress gives it, and no second way of collecting is needed.
"""

import asyncio
import logging
import time
import urllib.error
import urllib.request

from serve.observability.metrics import PREFIX

logger = logging.getLogger("ray.serve")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FAMILY = f"{PREFIX}padt_"
NODE_TIMEOUT_S = 3.0
# Prometheus asks every few seconds, and Ray's exporters hear of news less often than that.
FRESH_S = 1.0


class ClusterMetrics:
    """Reads the exporters of the cluster's nodes; once for all who ask within a second."""

    def __init__(self) -> None:
        self._asking = asyncio.Lock()
        self._text = ""
        self._until = 0.0

    async def text(self) -> str:
        """The project's metrics of all alive nodes, in Prometheus's text format."""
        async with self._asking:
            if time.monotonic() >= self._until:
                addresses = await asyncio.to_thread(exporters)
                answers = await asyncio.gather(*(asyncio.to_thread(_read, address) for address in addresses))
                self._text = merged([answer for answer in answers if answer is not None])
                self._until = time.monotonic() + FRESH_S
        return self._text


def exporters() -> list[str]:
    """Addresses of the exporters of all alive nodes."""
    import ray

    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node["MetricsExportPort"]
    ]


def merged(texts: list[str]) -> str:
    """The project's metrics of several exporters' texts, each family once with the samples of all."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for text in texts:
        told: list[str] = []
        name = ""
        for line in text.splitlines():
            if line.startswith("# "):
                _, kind, name, *_ = line.split(" ", 3)
                told = [*told, line] if kind == "TYPE" else [line]
                if name.startswith(FAMILY):
                    families.setdefault(name, ([], []))
                    families[name] = (told, families[name][1])
            elif name.startswith(FAMILY) and line:
                families[name][1].append(line)
    return "".join(f"{line}\n" for name in sorted(families) for part in families[name] for line in part)


def _read(address: str) -> str | None:
    try:
        with urllib.request.urlopen(address, timeout=NODE_TIMEOUT_S) as answer:
            return answer.read().decode("utf-8", "replace")
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        # The others' metrics are worth having; what is missing is told, and seen in Prometheus as a gap.
        logger.warning("The exporter %s does not answer: %s", address, error)
        return None
