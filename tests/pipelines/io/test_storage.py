"""Files and folders of a run: whole or not there, on disks, in memory and in an object store."""

import errno
import os
from pathlib import Path

import pytest

from padt.errors import UserError
from pipelines.io import storage
from pipelines.io.storage import Folder


@pytest.fixture(params=["local", "memory", "s3"])
def root(request, tmp_path):
    """A fresh place of each kind."""
    if request.param == "local":
        return str(tmp_path / "run")
    if request.param == "memory":
        return f"memory://{tmp_path.name}/run"
    request.getfixturevalue("object_store")
    return f"s3://data/{tmp_path.name}/run"


def filler(text, *names):
    def fill(folder):
        folder.mkdir()
        for name in ("config.json", *names):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)

    return fill


def below(url):
    folder = Folder(url)
    return sorted(path.removeprefix(folder.path() + "/") for path in folder.fs.find(folder.path()))


def test_a_file_appears_whole_or_not_at_all(root):
    folder = Folder(root)
    folder.write("notes/a.txt", "one")
    with pytest.raises(RuntimeError), folder.writing("notes/a.txt") as file:
        # More than an upload's part, so that a part of it has left already.
        file.write(b"x" * 60_000_000)
        raise RuntimeError("killed")
    assert folder.read_text("notes/a.txt") == "one" and folder.names("notes") == ["a.txt"]
    with folder.writing("notes/b.txt") as file:
        file.write(b"x")
        assert not folder.exists("notes/b.txt")
    assert folder.exists("notes/b.txt") and folder.read_text("notes/none") is None


def test_a_folder_appears_whole_and_replaces_what_was_there(root):
    # A model folder that is half there would be loaded by the next stage.
    folder = Folder(f"{root}/model")
    folder.publish(filler("one", "old.txt", "inner/weights"), "config.json")
    assert below(folder.url) == ["config.json", "inner/weights", "old.txt"]

    def fail(path):
        filler("half")(path)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        folder.publish(fail, "config.json")
    assert folder.read_text("config.json") == "one"
    folder.publish(filler("two", "weights"), "config.json")
    assert below(folder.url) == ["config.json", "weights"] and folder.read_text("weights") == "two"
    folder.publish(filler("three"), "config.json", replace=False)
    assert below(folder.url) == ["config.json", "weights"] and folder.read_text("weights") == "two"
    assert {name.partition("/")[0] for name in below(root)} == {"model"}


class Killed(BaseException):
    pass


def once(function, error=None):
    """The function, which the second time does nothing or fails."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) == 1:
            return function(*args)
        if error is not None:
            raise error

    return call


@pytest.mark.parametrize("begun", [False, True])
def test_a_kill_in_the_middle_leaves_no_folder_that_passes_for_whole(root, begun, monkeypatch):
    # As after SIGKILL: nothing is cleaned up.
    folder = Folder(f"{root}/model")
    if begun:
        folder.publish(filler("one", "a", "b"), "config.json")
    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "rmtree", lambda *_, **__: None)
        if storage.is_local(folder.fs):
            patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Killed))
        else:
            patch.setattr(folder.fs, "put", once(folder.fs.put, Killed()))
            patch.setattr(Folder, "_empty", once(Folder._empty))
        with pytest.raises(Killed):
            folder.publish(filler("two", "a", "b"), "config.json")
    if storage.is_local(folder.fs):
        assert below(folder.url) == (["a", "b", "config.json"] if begun else [])
    else:
        assert "config.json" not in below(folder.url)
    folder.publish(filler("three", "a"), "config.json")
    assert below(folder.url) == ["a", "config.json"] and folder.read_text("a") == "three"
    assert {name.partition("/")[0] for name in below(root)} == {"model"}


# The library of weights has errors of its own.
FULL = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("No space left on device (os error 28)")]


@pytest.mark.parametrize("error", FULL)
def test_no_room_while_publishing_is_one_sentence_and_leaves_nothing(root, error):
    def fill(path):
        filler("half")(path)
        raise error

    place = "TMPDIR" if "://" in root else "in "
    with pytest.raises(UserError, match=f"{root}/model cannot be written: no space is left .*{place}"):
        Folder(f"{root}/model").publish(fill, "config.json")
    assert below(root) == []


def test_no_room_at_the_target_is_one_sentence_and_leaves_nothing(root, monkeypatch):
    folder, full = Folder(f"{root}/model"), FULL[0]

    def fail(*_, **__):
        raise full

    if storage.is_local(folder.fs):
        monkeypatch.setattr(storage.tempfile, "mkdtemp", fail)
    else:
        monkeypatch.setattr(folder.fs, "put", once(folder.fs.put, full))
    with pytest.raises(UserError, match=f"{root}/model cannot be written .*No space left.*make room"):
        folder.publish(filler("two", "weights"), "config.json")
    assert below(root) == []


def test_a_bucket_that_is_not_there_is_named_and_never_made(object_store, tmp_path):
    folder = Folder("s3://dta/run")
    with pytest.raises(UserError, match="s3://dta/run cannot be written: there is no bucket dta"):
        folder.check_target()
    with pytest.raises(UserError, match="there is no bucket dta"):
        folder.publish(filler("one"), "config.json")
    with pytest.raises(UserError, match="s3://dta/run/a.txt cannot be written .*bucket does not exist"):
        folder.write("a.txt", "one")
    assert folder.read_text("a.txt") is None and not object_store.exists("dta")
    # A bucket itself may be the target, and stays.
    object_store.mkdir("own")
    for text in ("one", "two"):
        Folder("s3://own").publish(filler(text), "config.json")
    assert below("s3://own") == ["config.json"]


def test_unknown_schemes_are_user_errors():
    with pytest.raises(UserError, match="nosuch"):
        Folder("nosuch://x").read_text("y")
