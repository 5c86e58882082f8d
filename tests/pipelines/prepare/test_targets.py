"""Where a set is written: full disks and targets that cannot be written cost the work in hand and nothing else."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from padt.errors import UserError
from pipelines.dataset.manifest import open_set
from pipelines.io import storage
from pipelines.io.storage import Folder
from pipelines.prepare import claim
from pipelines.prepare.claim import CLAIM_NAME, claimed
from pipelines.prepare.execute import execute_here
from pipelines.prepare.plan import _Spills
from pipelines.prepare.run import prepare
from tests.pipelines.coco_files import content_of, options_for, prepare_here, write_coco


class _Disk:
    """Room for so many bytes; what is removed does not come back."""

    def __init__(self, monkeypatch, room):
        self.room = room
        write = storage.HashingFile.write

        def limited(file, data):
            self.room -= memoryview(data).nbytes
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(file, data)

        monkeypatch.setattr(storage.HashingFile, "write", limited)


def test_a_full_disk_keeps_what_is_whole_and_the_rerun_finishes(tmp_path, monkeypatch):
    folder = write_coco(tmp_path / "raw")
    whole = prepare_here(options_for(folder, tmp_path / "undisturbed"))
    undisturbed = content_of(tmp_path / "undisturbed")
    options = options_for(folder, tmp_path / "set")
    disk = _Disk(monkeypatch, 0)
    shards: dict[str, str] = {}
    for room in (100, 3_000, 25_000, 40_000, 60_000):
        disk.room = room
        with pytest.raises(UserError, match=r"set/.* cannot be written .*No space left.*run the command again"):
            prepare_here(options)
        kept = content_of(tmp_path / "set") if (tmp_path / "set").exists() else {}
        assert "manifest.json" not in kept and not [name for name in kept if ".tmp-" in name]
        assert shards.items() <= kept.items()
        shards = {name: digest for name, digest in kept.items() if name.startswith("shards/")}
        assert shards.items() <= undisturbed.items()
    assert 0 < len(shards) < len(whole.shards)
    disk.room = 10**9
    done = []

    def count(tasks):
        for task in tasks:
            done.append(task.path)
            yield from execute_here([task])

    assert prepare(options, execute=count).fingerprint == whole.fingerprint
    assert not set(done) & set(shards)
    assert content_of(tmp_path / "set").keys() == undisturbed.keys()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_temporary_folder_is_named_with_the_variable_that_moves_it(tmp_path):
    spills = _Spills(tmp_path, 1, buffer_bytes=10, needed=3_000_000)
    (tmp_path / "0").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"temporary folder .*No space left.*about 3.0 MB.*TMPDIR"):
        spills.add(0, b"x" * 100_000)


@pytest.mark.slow
def test_a_full_disk_under_workers_is_said_without_a_traceback(tmp_path, ray_cluster):
    """A file stands where the shards' folder belongs: no worker can write."""
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"

    def block(plan):
        (out / "shards").write_text("")

    with pytest.raises(UserError, match=r"shards/.*cannot be written .*run the command again") as caught:
        prepare(options_for(folder, out), on_plan=block)
    assert "Traceback" not in str(caught.value)
    (out / "shards").unlink()
    assert prepare_here(options_for(folder, out)).counts.rows == 10


def test_a_target_that_cannot_be_a_folder_is_an_error(tmp_path):
    folder = write_coco(tmp_path / "raw", count=2)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "set"):
        with pytest.raises(UserError, match=r"cannot be written|not a data set|give"):
            prepare_here(options_for(folder, out))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_target_without_rights_is_an_error(tmp_path):
    folder = write_coco(tmp_path / "raw", count=2)
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        prepare_here(options_for(folder, tmp_path / "locked" / "set"))


@pytest.mark.parametrize("out", ["a::b", "simplecache::s3://bucket/set", "https://example.org/set"])
def test_an_address_that_means_something_else_or_cannot_be_written_is_refused(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        prepare_here(options_for(write_coco(tmp_path / "raw", count=2), out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def _cut_off(folder):
    os.truncate(folder / "instances.json", 900)


def _without_pictures(folder):
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()


def _all_broken(folder):
    for path in (folder / "images").iterdir():
        path.write_bytes(b"no picture")


@pytest.mark.parametrize("spoil", [_cut_off, _without_pictures, _all_broken])
def test_overwrite_leaves_the_finished_set_where_the_new_one_fails(tmp_path, spoil):
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"
    prepare_here(options_for(folder, out))
    before = content_of(out)
    spoil(folder)
    with pytest.raises(UserError) as caught:
        prepare_here(options_for(folder, out, overwrite=True, split="val"))
    assert content_of(out) == before and not (out / ".next").exists() and ".next" not in str(caught.value)
    assert open_set(str(out)).splits == ("train",)


class _Killed(BaseException):
    """Stands for the death of the process."""


def test_a_killed_overwrite_keeps_the_old_set_and_the_rerun_goes_on(tmp_path):
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"
    prepare_here(options_for(folder, out))
    old = content_of(out)

    def die(progress):
        if progress.shards_done == 2:
            raise _Killed

    with pytest.raises(_Killed):
        prepare_here(options_for(folder, out, overwrite=True, split="val"), on_progress=die)
    assert old.items() <= content_of(out).items()
    plans = []
    prepare_here(options_for(folder, out, overwrite=True, split="val"), on_plan=plans.append)
    assert plans[0].done == 2 and plans[0].out == str(out)
    prepare_here(options_for(folder, tmp_path / "undisturbed", split="val"))
    assert content_of(out) == content_of(tmp_path / "undisturbed")
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "report.html", "shards"]


def test_what_a_killed_overwrite_has_begun_goes_when_the_old_set_is_asked_for_again(tmp_path):
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"
    prepare_here(options_for(folder, out))
    old = content_of(out)

    def die(progress):
        raise _Killed

    with pytest.raises(_Killed):
        prepare_here(options_for(folder, out, overwrite=True, split="val"), on_progress=die)
    assert (out / ".next").exists()
    prepare_here(options_for(folder, out))
    assert content_of(out) == old and not (out / ".next").exists()


def test_what_was_begun_for_other_options_is_not_taken_for_the_replacement(tmp_path):
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"
    prepare_here(options_for(folder, out))

    def die(progress):
        raise _Killed

    with pytest.raises(_Killed):
        prepare_here(options_for(folder, out, overwrite=True, split="val"), on_progress=die)
    prepare_here(options_for(folder, out, overwrite=True, split="test"))
    prepare_here(options_for(folder, tmp_path / "undisturbed", split="test"))
    assert content_of(out) == content_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("files", [0, 2, 7, 10])
def test_a_replacement_that_is_killed_half_way_is_ended_by_the_next_command(tmp_path, monkeypatch, files):
    """Killed after so many of its steps, removals and moves, the new set is there after the next command."""
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"
    prepare_here(options_for(folder, out))
    prepare_here(options_for(folder, tmp_path / "undisturbed", split="val"))
    steps, fs = [], type(Folder(str(out)).fs)
    move, remove = fs.mv, Folder.remove

    def step():
        steps.append(1)
        if len(steps) > files:
            raise _Killed

    def killed_move(self, *args, **kwargs):
        if ".next/" in str(args[0]) and ".next/" not in str(args[1]):
            step()
        return move(self, *args, **kwargs)

    def killed_removal(self, name=""):
        if self.url == str(out) and name != ".next" and "claim" not in name:
            step()
        return remove(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "mv", killed_move)
        patch.setattr(Folder, "remove", killed_removal)
        with pytest.raises(_Killed):
            prepare_here(options_for(folder, out, overwrite=True, split="val"))
    # Before the first step the old set is there still, and has to be asked away once more.
    again = options_for(folder, out, split="val", overwrite=files == 0)
    assert prepare_here(again).splits == ("val",)
    assert content_of(out) == content_of(tmp_path / "undisturbed")


def test_the_message_of_a_full_disk_gives_true_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.prepare.run._free_bytes", lambda folder: 3_000)
    with pytest.raises(UserError, match=r"has 3\.0 kB free and the images take \d+\.\d kB"):
        prepare_here(options_for(write_coco(tmp_path / "raw"), tmp_path / "set"))


def test_a_temporary_folder_without_room_for_ray_is_an_error_before_ray_starts(tmp_path, monkeypatch):
    from jobs.common.ray_session import _check_temporary_folder

    usage = namedtuple("usage", "total used free")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100_000, 0, 100_000))
    with pytest.raises(UserError, match=rf"{tmp_path} has 100.0 kB free, and Ray needs 50.0 MB .*TMPDIR"):
        _check_temporary_folder()


def test_the_second_preparation_waits_for_the_first_and_takes_its_set(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(claim, "_POLL_SECONDS", 0.02)
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"
    begun, go_on, sets = threading.Event(), threading.Event(), []

    def slowly(tasks):
        begun.set()
        assert go_on.wait(30)
        return execute_here(tasks)

    def never(tasks):
        raise AssertionError("the second has nothing to do")

    first = threading.Thread(target=lambda: sets.append(prepare(options_for(folder, out), execute=slowly)))
    second = threading.Thread(target=lambda: sets.append(prepare(options_for(folder, out), execute=never)))
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        first.start()
        assert begun.wait(30)
        second.start()
        while "waiting for its end" not in caplog.text:
            time.sleep(0.01)
            assert second.is_alive()
        go_on.set()
        first.join()
        second.join()
    assert f"is being prepared by process {os.getpid()} on" in caplog.text
    assert len(sets) == 2 and sets[0] == sets[1]
    assert not (out / CLAIM_NAME).exists()


def _claim_of(pid, host, **more):
    return json.dumps({"id": "other", "host": host, "pid": pid, "since": "then", "beat": 0} | more)


@pytest.fixture
def ended_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_claim_of_a_process_that_is_no_more_is_taken_over_at_once(tmp_path, ended_pid):
    import socket

    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"
    out.mkdir()
    for pid in (ended_pid, os.getpid()):
        (out / CLAIM_NAME).write_text(_claim_of(pid, socket.gethostname()))
        start = time.monotonic()
        assert prepare_here(options_for(folder, out, overwrite=True)).counts.rows == 10
        assert time.monotonic() - start < claim.STALE_SECONDS / 2


@pytest.mark.parametrize("content", [_claim_of(1, "elsewhere"), "", "[]", "{half"])
def test_a_claim_that_nobody_renews_is_taken_over_after_a_while(tmp_path, monkeypatch, content):
    monkeypatch.setattr(claim, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(claim, "STALE_SECONDS", 0.2)
    (tmp_path / CLAIM_NAME).write_text(content)
    start = time.monotonic()
    with claimed(Folder(str(tmp_path))):
        assert time.monotonic() - start >= 0.2
    assert not list(tmp_path.iterdir())


def test_a_claim_that_is_renewed_is_respected_however_long_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(claim, "STALE_SECONDS", 0.3)
    over, taken = threading.Event(), threading.Event()

    def renew():
        beat = 0
        while not over.wait(0.05):
            beat += 1
            Folder(str(tmp_path)).write(CLAIM_NAME, _claim_of(1, "elsewhere", beat=beat))
        (tmp_path / CLAIM_NAME).unlink()

    def take():
        with claimed(Folder(str(tmp_path))):
            taken.set()

    (tmp_path / CLAIM_NAME).write_text(_claim_of(1, "elsewhere"))
    threads = [threading.Thread(target=renew), threading.Thread(target=take)]
    for thread in threads:
        thread.start()
    assert not taken.wait(1.0)
    over.set()
    for thread in threads:
        thread.join()
    assert taken.is_set()


def test_a_claim_beats_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.02)
    with claimed(Folder(str(tmp_path / "new"))):
        while json.loads(Path(tmp_path / "new" / CLAIM_NAME).read_text())["beat"] < 3:
            time.sleep(0.01)
    assert not (tmp_path / "new").exists()
