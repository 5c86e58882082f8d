"""What all tests share: a quiet offline environment, one Ray cluster a run, and the paths of shared material."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports Ray, MLflow or torch.
os.environ.update(
    HF_HUB_OFFLINE="1",
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60",
)

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_path(name: str) -> Path:
    """A folder of the material that lies beside the repository; the test is skipped where it is not there."""
    path = REPOSITORY.parent / "shared" / name
    if not path.exists():
        pytest.skip(f"shared/{name} is not beside the repository")
    return path


@pytest.fixture(scope="session")
def samples() -> Path:
    """Real annotation files and photographs: COCO, RefCOCO, RIC, Objects365 excerpts."""
    return shared_path("samples")


@pytest.fixture(scope="session")
def reference_fixture() -> Path:
    """Tensors and files of the released implementation."""
    return shared_path("reference/fixture")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray of four logical CPUs for the whole run: with fewer, consumers starve the read tasks."""
    ray = pytest.importorskip("ray")
    for attempt in range(3):
        try:
            ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
            break
        except Exception as error:
            # Ray gives a node 30 seconds to start, which a machine busy with other work may not keep.
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == 2:
                raise
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no CUDA device."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
