"""The registry says which version is served, and a registry that is gone hinders no serving."""

import logging
from pathlib import Path

import pytest

mlflow = pytest.importorskip("mlflow")

from jobs.common.model_reference import ResolvedModel  # noqa: E402
from jobs.inference.served_tag import SERVED_TAG, served_tag  # noqa: E402

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with one version, copied for each test: making its tables takes seconds."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    uri = f"sqlite:///{path}"
    client = mlflow.MlflowClient(uri, uri)
    client.create_registered_model("padt")
    client.create_model_version("padt", source=str(path.parent))
    return str(path)


@pytest.fixture
def registry(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "mlflow.MlflowClient":
    (tmp_path / "mlflow.db").write_bytes(Path(database).read_bytes())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow.MlflowClient(uri, uri)


def test_the_version_is_tagged_while_it_is_served(registry: "mlflow.MlflowClient", tmp_path: Path) -> None:
    model = ResolvedModel("models:/padt@champion", tmp_path, "padt", "1")
    with served_tag(model, URL), served_tag(model, "http://127.0.0.1:8001"):
        tags = registry.get_model_version("padt", "1").tags
        assert sorted(key.rpartition(":")[2] for key in tags) == ["8000", "8001"]
        assert all(key.startswith(f"{SERVED_TAG}/") and tags[key].startswith("since 20") for key in tags)
    assert registry.get_model_version("padt", "1").tags == {}


def test_an_error_while_serving_takes_the_tag_away_and_is_raised(
    registry: "mlflow.MlflowClient", tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="its own"), served_tag(ResolvedModel("m", tmp_path, "padt", "1"), URL):
        raise RuntimeError("its own")
    assert registry.get_model_version("padt", "1").tags == {}


def test_a_registry_without_the_version_is_told_of_and_hinders_nothing(
    registry: "mlflow.MlflowClient", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), served_tag(ResolvedModel("m", tmp_path, "padt", "7"), URL):
        pass
    assert caplog.text.count("The registry was not told what is served") == 2


def test_a_plain_folder_asks_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with served_tag(ResolvedModel("folder", tmp_path), URL):
        pass
