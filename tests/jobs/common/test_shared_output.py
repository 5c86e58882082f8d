"""A local output folder of a cluster with several nodes."""

import os

import pytest

from jobs.common.shared_output import refuse_unseen
from padt.errors import UserError

NODES = {"a": "head", "b": "worker-1"}


def test_a_folder_that_all_nodes_see_is_taken(tmp_path):
    refuse_unseen(str(tmp_path), NODES, lambda path, nodes: set(nodes) if os.path.exists(path) else set())
    assert not list(tmp_path.iterdir()), "the marker is gone"


def test_a_folder_of_one_machine_is_refused_before_anything_is_trained(tmp_path):
    # Each rank would write its part of a checkpoint on its own disk.
    with pytest.raises(UserError, match=r"that worker-1 cannot see.*that all nodes share, or a URL"):
        refuse_unseen(str(tmp_path), NODES, lambda path, nodes: {"a"})
    assert not list(tmp_path.iterdir())
