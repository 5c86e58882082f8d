"""The whole path against an object store: prepare from it and to it, inspect, and read for training."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from padt.data.image import ResizePolicy
from padt.data.tasks import TaskOptions
from padt.errors import UserError
from pipelines.dataset.index import load_index
from pipelines.inspection.inspect import inspect
from pipelines.io.storage import Folder
from pipelines.loader.mixture import SetSpec
from pipelines.loader.plan import make_plan
from pipelines.loader.reader import ReaderOptions, TrainingReader
from pipelines.loader.sample_source import RowReader
from pipelines.prepare.claim import _Claim, claimed
from pipelines.prepare.execute import execute_here
from pipelines.prepare.run import PrepareOptions, prepare
from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.coco_files import options_for, prepare_here, write_coco


@pytest.fixture
def raw(object_store, tmp_path, request):
    """COCO files on disk and, the same, below ``s3://data/TEST/raw``."""
    folder = write_coco(tmp_path / "raw", count=7)
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for path in (folder / "images").iterdir():
            archive.write(path, f"images/{path.name}")
    place = f"data/{request.node.name.replace('[', '-').replace(']', '')}"
    object_store.put(str(folder), f"{place}/raw", recursive=True)
    return folder, f"s3://{place}"


def _remote(place, images="images", **more):
    return PrepareOptions(
        annotations=f"{place}/raw/instances.json",
        images=f"{place}/raw/{images}",
        out=f"{place}/set",
        rows_per_shard=3,
        **more,
    )


def _files(object_store, place):
    return sorted(
        path.removeprefix(place.removeprefix("s3://") + "/set/") for path in object_store.find(f"{place}/set")
    )


@pytest.mark.parametrize("images", ["images", "pictures.zip"])
def test_a_set_prepared_there_is_the_one_prepared_here(object_store, raw, tmp_path, images):
    folder, place = raw
    manifest = prepare_here(_remote(place, images))
    local = prepare_here(options_for(folder, tmp_path / "local"))
    assert manifest.fingerprint == local.fingerprint and manifest.counts == local.counts
    here = sorted(
        str(path.relative_to(tmp_path / "local")) for path in (tmp_path / "local").rglob("*") if path.is_file()
    )
    assert _files(object_store, place) == here
    for name in here:
        if name.startswith("shards/"):
            assert Folder(f"{place}/set").read(name) == (tmp_path / "local" / name).read_bytes()
    assert prepare_here(_remote(place, images)) == manifest
    assert inspect(f"{place}/set", count=2, out=str(tmp_path / "sheet.png"))


def test_it_is_read_for_training(object_store, raw, tmp_path):
    folder, place = raw
    prepare_here(_remote(place))
    prepare_here(options_for(folder, tmp_path / "local"))
    model = write_tiny_model(tmp_path / "tiny")
    read = []
    for url in (f"{place}/set", str(tmp_path / "local")):
        spec = SetSpec(url, {"detect": 1.0})
        plan = make_plan([spec], seed=1, batch_size=3, micro_batches=1, policy=ResizePolicy())
        reader = TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=2, options=ReaderOptions(ray=False))
        read.append([(batch.keys, float(batch.pixels.sum())) for _, batch in reader])
    assert read[0] == read[1] and len(read[0]) == 2


def test_linked_images_stay_there_and_are_read(object_store, raw):
    folder, place = raw
    prepare_here(_remote(place, images_mode="link"))
    index = load_index(f"{place}/set")
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        image = RowReader(index).row(number)["image"]
        assert image["path"] == f"{place}/raw/images/{path.name}" and image["bytes"] == path.read_bytes()


def test_a_killed_preparation_goes_on_there(object_store, raw, monkeypatch):
    _, place = raw
    whole = prepare_here(_remote(place)).fingerprint
    object_store.rm(f"{place}/set", recursive=True)

    class Killed(BaseException):
        pass

    def die_after_one(tasks):
        yield next(execute_here(tasks))
        raise Killed

    with pytest.raises(Killed):
        prepare(_remote(place), execute=die_after_one)
    assert "manifest.json" not in _files(object_store, place)
    done = []

    def count(tasks):
        for task in tasks:
            done.append(task.number)
            yield from execute_here([task])

    manifest = prepare(_remote(place), execute=count)
    assert done == [1, 2] and manifest.fingerprint == whole


def test_what_is_not_there_or_not_allowed_is_one_sentence(object_store, raw, monkeypatch):
    _, place = raw
    with pytest.raises(UserError, match=r"annotations s3://data/none/instances\.json is not a file"):
        prepare_here(PrepareOptions("s3://data/none/instances.json", f"{place}/raw/images", f"{place}/set"))
    with pytest.raises(UserError, match="image folder s3://data/none does not exist"):
        prepare_here(PrepareOptions(f"{place}/raw/instances.json", "s3://data/none", f"{place}/set"))
    with pytest.raises(UserError, match="s3://no-such-bucket/set.* cannot be written"):
        prepare_here(PrepareOptions(f"{place}/raw/instances.json", f"{place}/raw/images", "s3://no-such-bucket/set"))


@pytest.mark.slow
def test_the_command_and_its_workers_find_the_store(object_store, raw):
    _, place = raw
    words = ["prepare", "coco", "-a", f"{place}/raw/instances.json", "-i", f"{place}/raw/images", "-o", f"{place}/set"]
    run = subprocess.run(
        [sys.executable, "-m", "jobs.cli.main", *words, "--rows-per-shard", "3"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    manifest = json.loads(object_store.cat(f"{place}/set/manifest.json"))
    assert manifest["counts"]["rows"] == 7 and len(manifest["shards"]) == 3


def test_a_set_there_is_replaced_when_the_new_one_is_whole_and_claims_are_given_back(object_store, raw):
    _, place = raw
    prepare_here(_remote(place))
    files = _files(object_store, place)
    with pytest.raises(UserError):
        prepare_here(_remote(place, "nowhere", split="val", overwrite=True))
    assert _files(object_store, place) == files and inspect(f"{place}/set").manifest.splits == ("train",)
    manifest = prepare_here(_remote(place, split="val", overwrite=True))
    assert _files(object_store, place) == files and manifest == inspect(f"{place}/set").manifest
    assert manifest.splits == ("val",)
    with claimed(Folder(f"{place}/set")):
        # Its second creation is refused by the store itself.
        assert not _Claim(Folder(f"{place}/set"))._create()
    assert _files(object_store, place) == files
