"""Preparation is killed now and then: the same command finishes the rest, and nothing half-written passes for whole."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pipelines.prepare.shards
from padt.errors import UserError
from pipelines.dataset.manifest import open_set
from pipelines.prepare.run import PrepareOptions, prepare
from tests.pipelines.coco_files import annotation, content_of, options_for, prepare_here, write_coco


class _Killed(BaseException):
    """Stands for the death of the driver."""


def _die_after(count):
    def on_progress(progress):
        if progress.shards_done >= count:
            raise _Killed

    return on_progress


def test_a_killed_preparation_is_not_a_set_and_the_rerun_does_only_what_is_left(tmp_path):
    folder = write_coco(tmp_path / "raw", annotations=[annotation(1, 1), annotation(2, 5, (0, 0, 0, 0))])
    undisturbed = tmp_path / "undisturbed"
    prepare_here(options_for(folder, undisturbed))
    out = tmp_path / "set"
    with pytest.raises(_Killed):
        prepare_here(options_for(folder, out), on_progress=_die_after(2))
    with pytest.raises(UserError, match=r"no manifest\.json"):
        open_set(str(out))
    # One finished shard is lost, and killed writers have left halves behind.
    (out / "shards" / "shard-00001-of-00004.parquet").unlink()
    (out / "shards" / "shard-00002-of-00004.parquet.tmp-0123").write_bytes(b"half")
    written = []

    def spy(task):
        written.append(task.number)
        return pipelines.prepare.shards.write_shard(task)

    plans = []
    prepare(options_for(folder, out), execute=lambda tasks: map(spy, tasks), on_plan=plans.append)
    assert written == [1, 2, 3] and plans[0].done == 1
    assert content_of(out) == content_of(undisturbed)


_DRIVER = """
import sys, time
from pipelines.prepare.execute import execute_here
from pipelines.prepare.run import PrepareOptions, prepare
options = PrepareOptions(annotations=sys.argv[1], images=sys.argv[2], out=sys.argv[3], rows_per_shard=2)
print("ready", flush=True)
prepare(options, execute=execute_here, on_progress=lambda progress: print(progress.shards_done, flush=True))
"""


@pytest.mark.slow
def test_kills_at_random_moments_leave_nothing_wrong(samples, tmp_path):
    notes = samples / "coco/annotations/instances_val2017.json"
    photos = samples / "coco/val2017"
    out, undisturbed = tmp_path / "set", tmp_path / "undisturbed"
    options = PrepareOptions(annotations=str(notes), images=str(photos), out=str(undisturbed), rows_per_shard=2)
    prepare_here(options)
    command = [sys.executable, "-c", _DRIVER, str(notes), str(photos), str(out)]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
        # The first is killed while it plans, the others a moment after some shard.
        for _ in range(1 if seed == 0 else int(rng.integers(2, 6))):
            assert process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
        process.stdout.close()
        assert not (out / "manifest.json").exists()
    prepare_here(replace(options, out=str(out)))
    assert content_of(out) == content_of(undisturbed)


@pytest.mark.parametrize("name", ["shards/shard-00000-of-00004.parquet", "rejected/shard-00000-of-00004.parquet"])
def test_a_shard_whose_files_are_not_whole_is_written_again(tmp_path, name):
    folder = write_coco(tmp_path / "raw", annotations=[annotation(1, 1), annotation(2, 1, (0, 0, 0, 0))])
    prepare_here(options_for(folder, tmp_path / "undisturbed"))
    out = tmp_path / "set"
    with pytest.raises(_Killed):
        prepare_here(options_for(folder, out), on_progress=_die_after(1))
    (out / name).write_bytes((out / name).read_bytes()[:-5])
    prepare_here(options_for(folder, out))
    assert content_of(out) == content_of(tmp_path / "undisturbed")


def test_a_preparation_killed_while_planning_starts_afresh(tmp_path, monkeypatch):
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"

    def die(*args, **kwargs):
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.prepare.plan.gzip.compress", die)
        with pytest.raises(_Killed):
            prepare_here(options_for(folder, out))
    assert prepare_here(options_for(folder, out)).counts.rows == 10


def test_a_finished_set_is_never_touched(tmp_path):
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"
    manifest = prepare_here(options_for(folder, out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare_here(options_for(folder, out)) == manifest
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(UserError, match="--overwrite"):
        prepare_here(options_for(folder, out, split="val"))
    write_coco(folder, count=11)
    with pytest.raises(UserError, match="--overwrite"):
        prepare_here(options_for(folder, out))
    assert prepare_here(options_for(folder, out, overwrite=True)).counts.rows == 11


def test_a_begun_set_with_other_options_is_refused(tmp_path):
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"
    with pytest.raises(_Killed):
        prepare_here(options_for(folder, out), on_progress=_die_after(1))
    with pytest.raises(UserError, match="begun with other"):
        prepare_here(options_for(folder, out, rows_per_shard=4))
    assert len(prepare_here(options_for(folder, out, rows_per_shard=4, overwrite=True)).shards) == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_something_else_is_never_touched(tmp_path, overwrite):
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a data set"):
        prepare_here(options_for(folder, out, overwrite=overwrite))
    assert (out / "thesis.txt").read_text() == "years of work"
