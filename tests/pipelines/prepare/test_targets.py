"""Where a set is written: full disks and targets that cannot be written cost the work in hand and nothing else."""

import errno
import os

import pytest

from padt.errors import UserError
from pipelines.io import storage
from pipelines.prepare.plan import _Spills
from pipelines.prepare.run import execute_here, prepare
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
    spills = _Spills(tmp_path, 1, buffer_bytes=10)
    (tmp_path / "0").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"temporary folder .*No space left.*TMPDIR"):
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
