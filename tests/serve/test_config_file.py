"""The config file that ships with the application, deployed as `serve deploy` does, and again with another model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytest.importorskip("ray.serve")

from ray import serve  # noqa: E402
from ray.serve.context import _get_global_client  # noqa: E402
from ray.serve.schema import ServeDeploySchema  # noqa: E402

from padt import save_model  # noqa: E402
from serve import control  # noqa: E402
from serve.settings import Release  # noqa: E402
from tests.padt.tiny import tiny_model  # noqa: E402
from tests.serve.test_app import CONFIG  # noqa: E402
from tests.serve.test_change import SETTINGS, Load, engines  # noqa: E402
from tests.serve.test_http import free_port  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def url(ray_cluster: None) -> Iterator[str]:
    port = free_port()
    serve.shutdown()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_the_file_deploys_and_an_edited_model_restarts_nothing(url: str, tmp_path: Path) -> None:
    for number in (1, 2):
        model = tiny_model(seed=number)
        save_model(model, model.processor, tmp_path / f"v{number}")
    described: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    (application,) = described["applications"]
    application["args"] |= {"engine_gpus": 0, **SETTINGS}
    release = application["deployments"][0]["user_config"]
    release |= {"model": str(tmp_path / "v1"), "version": "padt/1"}
    client = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate(described))
    control.deploy(control.deployed(), timeout_s=300)
    assert Load(url).ask(0).json()["version"] == "padt/1"
    before = set(engines(1))

    release |= {"model": str(tmp_path / "v2"), "version": "padt/2"}
    client.deploy_apps(ServeDeploySchema.model_validate(described))
    assert control._wait_for(Release.model_validate(release), 240, None) == ""
    assert Load(url).ask(0).json()["version"] == "padt/2"
    assert set(engines(1)) == before
    assert httpx.get(f"{url}/v1/models", timeout=120).json()["data"][0]["version"] == "padt/2"
