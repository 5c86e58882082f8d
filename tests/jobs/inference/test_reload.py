"""`padt reload`: what it asks the application for, and how it follows an alias."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve")

from jobs.inference import reload  # noqa: E402
from padt.errors import UserError  # noqa: E402
from serve import control  # noqa: E402
from serve.settings import ModelSource, Release  # noqa: E402


class Application:
    """In the place of a running application: remembers what was to answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release = Release(model="/m/1", version="padt/1")
        self.alias: ModelSource | UserError = self.release.sources[0]
        self.broken: set[str] = set()
        self.tried: list[str] = []
        monkeypatch.setattr(control, "deployed", lambda: None)
        monkeypatch.setattr(control, "release_of", lambda app: self.release)
        monkeypatch.setattr(control, "change", self._change)
        monkeypatch.setattr(reload, "source_of", self._source)

    def _source(self, reference: str) -> ModelSource:
        if isinstance(self.alias, UserError):
            raise self.alias
        return self.alias

    def _change(self, release: Release, tell: Any = None) -> None:
        self.tried.append(release.label)
        if release.label in self.broken:
            raise UserError(f"{release.label} cannot be loaded.")
        self.release = release


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Application:
    return Application(monkeypatch)


def version(number: int) -> ModelSource:
    return ModelSource(model=f"/m/{number}", version=f"padt/{number}")


def test_an_alias_is_followed_when_it_moves_and_only_then(app: Application) -> None:
    watcher = reload.Watcher("models:/padt@champion", "padt/1")
    assert not watcher.look()
    app.alias = version(2)
    assert watcher.look() and not watcher.look()
    assert app.release.label == "padt/2" and app.release.previous == version(1)
    # Somebody goes back: that holds until the alias moves again.
    app.release = reload.release_before(app.release)
    assert not watcher.look()
    app.alias = version(3)
    assert watcher.look()
    assert app.tried == ["padt/2", "padt/3"]


def test_what_cannot_be_loaded_is_told_and_not_tried_again(app: Application, caplog: pytest.LogCaptureFixture) -> None:
    watcher = reload.Watcher("models:/padt@champion", "padt/1")
    app.alias, app.broken = version(2), {"padt/2"}
    assert not watcher.look() and not watcher.look()
    assert app.tried == ["padt/2"] and "padt/2 cannot be loaded" in caplog.text
    app.alias = version(3)
    assert watcher.look()


def test_a_registry_that_is_down_is_asked_again(app: Application, caplog: pytest.LogCaptureFixture) -> None:
    watcher = reload.Watcher("models:/padt@champion", "padt/1")
    app.alias = UserError("The model registry did not answer.")
    assert not watcher.look() and "did not answer" in caplog.text
    app.alias = version(2)
    assert watcher.look()


def test_what_never_moves_cannot_be_watched() -> None:
    for reference in ("models:/padt/3", "runs/model", "s3://bucket@home/model"):
        with pytest.raises(UserError, match="watch an alias"):
            reload.check_watchable(reference)
    reload.check_watchable("models:/padt@champion")


def test_a_model_or_the_way_back_but_not_both() -> None:
    for arguments in ({"model": None}, {"model": "m", "back": True}):
        with pytest.raises(UserError, match="one of the two"):
            reload.run_reload(**arguments)


def test_the_way_back_is_the_release_before() -> None:
    one = Release(model="/m/1")
    two = reload.next_release(one, version(2))
    assert reload.release_before(two).model == "/m/1"
    assert reload.release_before(reload.release_before(two)).model == "/m/2"
    canary = reload.next_release(two, version(3), percent=5)
    assert canary.canary is not None and canary.canary.label == "padt/3"
    assert reload.release_before(canary) == two
    # Whatever answers already is no way back.
    assert reload.next_release(two, version(2)).previous == one.sources[0]
    with pytest.raises(UserError, match="none to go back to"):
        reload.release_before(one)


def test_the_address_of_a_cluster_is_only_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    from jobs.common import ray_session

    monkeypatch.setattr(ray_session, "ray_session", nullcontext)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import os

    with reload.cluster(None):
        assert os.environ["RAY_ADDRESS"] == "auto"
    with reload.cluster("10.0.0.1:6379"):
        assert os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert "RAY_ADDRESS" not in os.environ


def test_a_written_anew_folder_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    first = reload.source_of(str(tmp_path))
    assert first == reload.source_of(str(tmp_path)) and first.label == tmp_path.name
    (tmp_path / "config.json").write_text('{"model_type": "padt"}')
    assert reload.source_of(str(tmp_path)) != first
