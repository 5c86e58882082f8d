"""The processes of an application's replicas: which they are, the processor time they took, the memory they hold."""

import os
from pathlib import Path

from ray.serve.context import _get_global_client

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def replicas(application: str, deployment: str) -> list[int]:
    """Process ids of the replicas that run."""
    # Serve's own status has no process ids.
    details = _get_global_client().get_serve_details()["applications"][application]["deployments"][deployment]
    return [one["pid"] for one in details["replicas"] if one["state"] == "RUNNING" and one["pid"]]


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 1e6
