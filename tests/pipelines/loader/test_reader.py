"""Training reader: exact on resume, the same with and without Ray, clear about broken rows."""

import threading
import time

import numpy as np
import pytest

from padt.data.image import ResizePolicy
from padt.data.processor import load_processor
from padt.data.tasks import TaskOptions
from padt.errors import UserError
from pipelines.loader.augment import AugmentOptions
from pipelines.loader.batching import Batching
from pipelines.loader.mixture import SetSpec
from pipelines.loader.plan import make_plan
from pipelines.loader.reader import ReaderOptions, TrainingReader
from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.mini_set import scene_row, write_mini_set, write_set


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return write_mini_set(tmp_path_factory.mktemp("sets") / "mini", 12)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def read(model, url, start, stop, *, rank=0, world_size=1, **options):
    plan = make_plan([SetSpec(url)], seed=1, batch_size=4, micro_batches=world_size, policy=ResizePolicy())
    chosen = ReaderOptions(**{"ray": False, **options})
    reader = TrainingReader(
        plan, rank, model, TaskOptions(), world_size=world_size, start=start, stop=stop, options=chosen
    )
    return list(reader)


def assert_equal(first, second):
    for (number, batch), (other_number, other) in zip(first, second, strict=True):
        assert number == other_number
        assert batch.keys == other.keys and batch.tasks == other.tasks
        assert np.array_equal(batch.input_ids, other.input_ids)
        assert np.array_equal(batch.pixels, other.pixels)
        assert np.array_equal(batch.objects.vrt_patches, other.objects.vrt_patches)


def test_a_restart_reads_the_next_batches(mini, model):
    # After a kill at batch 6 a run must see exactly what it would have seen.
    whole = read(model, mini, 0, 10)
    assert [number for number, _ in whole] == list(range(10))
    assert_equal(whole[6:], read(model, mini, 6, 10))


def test_draws_change_from_epoch_to_epoch(mini, model):
    plan = make_plan([SetSpec(mini, {"detect": 1.0})], seed=1, batch_size=12, micro_batches=1, policy=ResizePolicy())
    reader = TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=2, options=ReaderOptions(ray=False))
    (_, first), (_, second) = reader
    assert sorted(first.keys) == sorted(second.keys)
    rows = [[tuple(b.input_ids[b.keys.index(key)].tolist()) for key in sorted(b.keys)] for b in (first, second)]
    assert sum(a != b for a, b in zip(*rows, strict=True)) >= 10


def test_waiting_is_measured(mini, model):
    plan = make_plan([SetSpec(mini)], seed=1, batch_size=4, micro_batches=1, policy=ResizePolicy())
    reader = TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=3, options=ReaderOptions(ray=False))
    list(reader)
    assert 0 < reader.wait_seconds < 60


def test_a_broken_image_is_named(model, tmp_path):
    # With thousands of shards "cannot identify image file" alone would not help anybody.
    row = scene_row(3)
    row["image"]["bytes"] = row["image"]["bytes"][:200]
    url = write_set(tmp_path / "broken", [row])
    with pytest.raises(UserError, match=r"mini/train/3.*shards/00000\.parquet"):
        read(model, url, 0, 1, quarantine=0)


def test_a_missing_shard_is_named(mini, model, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.loader.sample_source._PAUSES", (0.01,))
    url = write_mini_set(tmp_path / "set", 4)
    plan = make_plan([SetSpec(url)], seed=1, batch_size=4, micro_batches=1, policy=ResizePolicy())
    (tmp_path / "set" / "shards" / "00000.parquet").unlink()
    with pytest.raises(UserError, match=r"mini/train/\d.*shards/00000\.parquet"):
        list(TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=1, options=ReaderOptions(ray=False)))


def test_linked_images_are_read_where_they_lie(mini, model, tmp_path, monkeypatch):
    # Sets of link mode hold paths; a moved folder must be named with the row that misses it.
    rows = [scene_row(i) for i in range(2)]
    for row in rows:
        path = tmp_path / row["image"]["path"]
        path.write_bytes(row["image"]["bytes"])
        row["image"] = {"bytes": None, "path": str(path)}
    url = write_set(tmp_path / "links", rows)
    assert len(read(model, url, 0, 2)) == 2
    for row in rows:
        (tmp_path / row["image"]["path"]).unlink()
    monkeypatch.setattr("pipelines.loader.sample_source._PAUSES", (0.01,))
    with pytest.raises(UserError, match=r"mini/train/\d.*does not exist.*reader\.quarantine"):
        read(model, url, 0, 1, quarantine=0)


def test_pictures_that_are_away_for_two_seconds_end_nothing(model, tmp_path):
    # A mount that hiccups ended the run, and preparing again lost its checkpoint.
    row = scene_row(0)
    place, content = tmp_path / "0.png", row["image"]["bytes"]
    row["image"] = {"bytes": None, "path": str(place)}
    url = write_set(tmp_path / "links", [row])
    timer = threading.Timer(2.0, place.write_bytes, [content])
    timer.start()
    ((_, batch),) = read(model, url, 0, 1, quarantine=0)
    timer.join()
    assert set(batch.keys) == {"mini/train/0"}


def test_samples_that_stay_bad_are_left_out_up_to_a_quota(model, tmp_path):
    rows = [scene_row(i) for i in range(4)]
    for row in rows[2:]:
        row["image"]["bytes"] = b"no image"
    url = write_set(tmp_path / "some", rows)
    plan = make_plan([SetSpec(url, {"detect": 1})], seed=1, batch_size=1, micro_batches=1, policy=ResizePolicy())

    def reader(quota):
        options = ReaderOptions(ray=False, quarantine=quota)
        return TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=12, options=options)

    patient = reader(2)
    batches = [batch for _, batch in patient]
    assert len(batches) == 12, "the same batches on every rank, whatever is in them"
    # Each epoch has the two good samples, and two batches that lost their only one; they count once.
    assert sorted(batch.keys[0] for batch in batches) == [""] * 6 + ["mini/train/0"] * 3 + ["mini/train/1"] * 3
    assert len(patient.quarantined) == 2
    with pytest.raises(UserError, match=r"2 sample\(s\).*lets 1 of a run.*mini/train/[23].*mini/train/[23]"):
        list(reader(1))


def test_a_batch_that_lost_all_samples_has_no_loss_and_no_gradient(model, tmp_path):
    from padt.checkpoints.loading import load_model
    from padt.model.losses import LossCounts

    row = scene_row(0)
    row["image"]["bytes"] = b"no image"
    ((_, batch),) = read(model, write_set(tmp_path / "bad", [row]), 0, 1)
    trained = load_model(model, device="cpu").train()
    output = trained(batch=batch, counts=LossCounts(samples=3, objects=5, masks=5, batches=2))
    output.total.backward()
    assert output.total.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in trained.parameters() if p.requires_grad)


def test_a_reader_that_starves_says_so_and_ends(mini, model, monkeypatch):
    # With a node lost the run stood still for as long as anybody let it.
    monkeypatch.setattr("pipelines.loader.reader._PATIENCE", 0.2)
    monkeypatch.setattr("pipelines.loader.sample_source.SampleSource.readable", lambda *_: time.sleep(60))
    plan = make_plan([SetSpec(mini)], seed=1, batch_size=4, micro_batches=1, policy=ResizePolicy())
    said = []
    options = ReaderOptions(ray=False, wait_limit=0.5)
    starving = TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=2, options=options, notify=said.append)
    with pytest.raises(UserError, match=r"rank 0 has waited 0 s for a batch: .*storage.*raise reader\.wait_limit"):
        list(starving)
    assert len(said) == 2 and "has waited" in said[0]


@pytest.mark.slow
def test_readers_without_a_free_cpu_name_it(ray_cluster, mini, model):
    import ray

    all_of_them = ray.util.placement_group([{"CPU": 1}] * int(ray.available_resources()["CPU"]))
    ray.get(all_of_them.ready())
    try:
        with pytest.raises(UserError, match=r"need a CPU each, and 0 of \d+ are free\. Add CPUs"):
            read(model, mini, 0, 1, ray=True, wait_limit=5)
    finally:
        ray.util.remove_placement_group(all_of_them)


@pytest.mark.slow
def test_ray_reads_the_same_batches(ray_cluster, mini, model, tmp_path):
    # Two processes and several segments must neither reorder nor lose a batch.
    expected = read(model, mini, 3, 12, rank=1, world_size=2)
    got = read(model, mini, 3, 12, rank=1, world_size=2, ray=True, processes=2, batches_per_task=2, segment=5)
    assert_equal(expected, got)
    # So with everything that shapes a batch switched on, from within a run.
    specs = [SetSpec(mini, {"detect": 1.5, "refer": 1}, sentences_per_sample=2, negatives={"refer": 0.3})]
    options = {
        "augment": AugmentOptions(flip=0.5, crop=0.5),
        "batching": Batching(600),
        "measure": load_processor(model),
    }
    plan = make_plan(specs, seed=1, batch_size=8, micro_batches=2, policy=ResizePolicy(), **options)
    # Three ranks for two micro-batches: one has nothing to do.
    for rank in (1, 2):
        expected, got = (
            list(
                TrainingReader(
                    plan,
                    rank,
                    model,
                    TaskOptions(),
                    world_size=3,
                    start=5,
                    stop=9,
                    options=ReaderOptions(ray=ray, processes=2),
                )
            )
            for ray in (False, True)
        )
        assert_equal(expected, got)
        assert all(any(batch.keys) == (rank == 1) for _, batch in got)
    # An error in a reading process arrives as what it is.
    row = scene_row(3)
    row["image"]["bytes"] = b"no image"
    with pytest.raises(UserError, match="mini/train/3"):
        read(model, write_set(tmp_path / "broken", [row]), 0, 1, ray=True, quarantine=0)
    some = write_set(tmp_path / "some", [*(scene_row(i) for i in range(3)), row])
    assert_equal(*(read(model, some, 0, 6, ray=ray) for ray in (False, True)))
