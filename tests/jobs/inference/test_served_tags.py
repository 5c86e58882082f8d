"""The registry says which version is served, and a registry that is gone hinders no serving."""

import logging
from pathlib import Path

import pytest

mlflow = pytest.importorskip("mlflow")

from jobs.inference.served_tags import SERVED_TAG, ServedTags  # noqa: E402

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with two versions, copied for each test: making its tables takes seconds."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    uri = f"sqlite:///{path}"
    client = mlflow.MlflowClient(uri, uri)
    client.create_registered_model("padt")
    for _ in range(2):
        client.create_model_version("padt", source=str(path.parent))
    return str(path)


@pytest.fixture
def registry(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "mlflow.MlflowClient":
    (tmp_path / "mlflow.db").write_bytes(Path(database).read_bytes())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow.MlflowClient(uri, uri)


def tagged(registry: "mlflow.MlflowClient", version: str) -> list[str]:
    """Ports of the endpoints that serve a version, by its tags."""
    tags = registry.get_model_version("padt", version).tags
    assert all(key.startswith(f"{SERVED_TAG}/") and tags[key].startswith("since 20") for key in tags)
    return sorted(key.rpartition(":")[2] for key in tags)


def test_a_version_is_tagged_by_each_endpoint_while_it_is_served(registry: "mlflow.MlflowClient") -> None:
    with ServedTags(URL) as one, ServedTags("http://127.0.0.1:8001") as other:
        one.follow(["padt/1"])
        other.follow(["padt/1"])
        assert tagged(registry, "1") == ["8000", "8001"]
    assert tagged(registry, "1") == []


def test_the_tag_follows_a_canary_and_the_change_to_it(registry: "mlflow.MlflowClient") -> None:
    with ServedTags(URL) as tags:
        tags.follow(["padt/1", "padt/2"])
        assert tagged(registry, "1") == tagged(registry, "2") == ["8000"]
        tags.follow(["padt/2"])
        assert (tagged(registry, "1"), tagged(registry, "2")) == ([], ["8000"])


def test_an_error_while_serving_takes_the_tag_away_and_is_raised(registry: "mlflow.MlflowClient") -> None:
    with pytest.raises(RuntimeError, match="its own"), ServedTags(URL) as tags:
        tags.follow(["padt/1"])
        raise RuntimeError("its own")
    assert tagged(registry, "1") == []


def test_a_registry_without_the_version_is_told_of_and_hinders_nothing(
    registry: "mlflow.MlflowClient", caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), ServedTags(URL) as tags:
        tags.follow(["padt/7"])
    assert caplog.text.count("The registry was not told whether padt/7 is served") == 2


def test_a_plain_folder_asks_no_registry(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING), ServedTags(URL) as tags:
        tags.follow(["my-model"])
    assert not caplog.text
