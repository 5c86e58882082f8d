"""Whether the machines of a cluster see the folder of a run, before one of them fails to write a checkpoint there."""

import logging
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from padt.errors import UserError
from pipelines.io.reading import is_local
from pipelines.io.storage import Folder

logger = logging.getLogger(__name__)

# A node that is busy starting answers within this many seconds, or is not asked further.
_SECONDS = 60.0


def check_shared(output: str, gpu: bool) -> None:
    """Make sure that all nodes which may train see a local output folder; Ray must be up.

    Args:
        output: folder of the run, which is there already.
        gpu: only nodes with a GPU train.

    Raises:
        UserError: some do not see it.
    """
    import ray

    if not is_local(Folder(output).fs):
        return
    resource = "GPU" if gpu else "CPU"
    nodes = {
        node["NodeID"]: node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get(resource, 0) > 0
    }
    if set(nodes) - {ray.get_runtime_context().get_node_id()}:
        refuse_unseen(output, nodes, _nodes_that_see)


def refuse_unseen(output: str, nodes: Mapping[str, str], seen_by: Callable[[str, list[str]], set[str]]) -> None:
    """Write a marker into the folder, and refuse nodes that do not find it.

    Args:
        output: local folder.
        nodes: host names by node id.
        seen_by: which of some nodes find a file.

    Raises:
        UserError: names the hosts that do not.
    """
    folder = Folder(output)
    marker = f".seen-{uuid.uuid4().hex}"
    folder.write(marker, b"")
    try:
        seen = seen_by(folder.path(marker), list(nodes))
    finally:
        folder.remove(marker)
    blind = sorted({host for node, host in nodes.items() if node not in seen})
    if blind:
        raise UserError(
            f"output {output} is a folder that {', '.join(blind[:5])}{' and others' if len(blind) > 5 else ''} cannot "
            "see, so checkpoints cannot be put together there: give a folder that all nodes share, or a URL (s3://...)."
        )


def _nodes_that_see(path: str, nodes: list[str]) -> set[str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look: Any = ray.remote(num_cpus=0, max_retries=0)(os.path.exists)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(path): node
        for node in nodes
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_SECONDS)
    if silent:
        logger.warning("%d node(s) did not say whether they see %s; going on without their answer", len(silent), path)
    return {asked[answer] for answer in silent} | {asked[answer] for answer in answered if ray.get(answer)}
