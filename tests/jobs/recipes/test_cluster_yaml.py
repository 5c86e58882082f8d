"""`ray up cluster.yaml` must not fail on a misspelt key an hour before a training run."""

import copy

import pytest
import yaml
from jsonschema import ValidationError

from tests.conftest import REPOSITORY

util = pytest.importorskip("ray.autoscaler._private.util")


@pytest.fixture
def cluster() -> dict:
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8"))


def test_the_installed_ray_accepts_it(cluster: dict) -> None:
    util.validate_config(util.prepare_config(cluster))


def test_a_misspelt_key_would_be_noticed(cluster: dict) -> None:
    broken = copy.deepcopy(cluster)
    broken["available_node_types"]["gpu_pool"]["max_worker"] = 4
    with pytest.raises(ValidationError, match="'max_worker' was unexpected"):
        util.validate_config(util.prepare_config(broken))


def test_the_head_takes_no_work_and_ray_is_the_pinned_one(cluster: dict) -> None:
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"] == {"CPU": 0}
    constraints = (REPOSITORY / "constraints-cpu.txt").read_text(encoding="utf-8")
    version = next(line.removeprefix("ray==") for line in constraints.splitlines() if line.startswith("ray=="))
    assert f":{version}-" in cluster["docker"]["image"]
    limits = [kind.get("max_workers", 0) for kind in cluster["available_node_types"].values()]
    assert sum(limits) <= cluster["max_workers"]
