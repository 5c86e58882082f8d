"""What all tests share: a quiet offline environment, one Ray cluster a run, and the paths of shared material."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.common.ray_session import WORKER_ENVIRONMENT

# Before anything imports Ray, MLflow or torch.
os.environ.update(
    WORKER_ENVIRONMENT,
    HF_HUB_OFFLINE="1",
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60",
    # Replicas follow the load within seconds, and what the proxy itself says is seen as behind `padt serve`.
    RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S="0.5",
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH="serve.ingress.proxy:middlewares",
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


@pytest.fixture(scope="session")
def _object_store() -> Iterator[str]:
    """Address of a local S3 server, for the whole run."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def object_store(_object_store) -> Iterator[Any]:
    """A local S3 server with a bucket ``data``; this process and what it starts are told of it by the environment."""
    s3fs = pytest.importorskip("s3fs")
    told = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**told, "AWS_ENDPOINT_URL": _object_store}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem()
        if not fs.exists("data"):
            fs.mkdir("data")
        yield fs
    s3fs.S3FileSystem.clear_instance_cache()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no CUDA device; where processes share the tests, begin with the slow files."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        # A process takes one file after the other. Two that take a minute are not to be left to the last one.
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
