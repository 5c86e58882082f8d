"""Files and folders of a run: whole or not there."""

import pytest

from jobs.common import storage
from padt.errors import UserError


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_folders_appear_whole(scheme, tmp_path):
    # A model folder that is half there would be loaded by the next stage.
    root = str(tmp_path / "run") if scheme == "local" else "memory://storage-test/run"

    def write(text):
        def fill(folder):
            folder.mkdir()
            (folder / "a.txt").write_text(text)

        return fill

    def fail(folder):
        write("half")(folder)
        raise RuntimeError("killed")

    url = storage.join(root, "model")
    storage.publish_folder(url, write("one"))
    assert storage.read_text(storage.join(url, "a.txt")) == "one"
    with pytest.raises(RuntimeError):
        storage.publish_folder(url, fail)
    assert storage.read_text(storage.join(url, "a.txt")) == "one"
    storage.publish_folder(url, write("two"))
    assert storage.read_text(storage.join(url, "a.txt")) == "two"
    if scheme == "local":
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["model"]


def test_unknown_schemes_are_user_errors():
    with pytest.raises(UserError, match="nosuch"):
        storage.read_text("nosuch://x/y")
