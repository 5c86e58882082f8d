"""Mixture and plan: which samples an epoch visits, on small sets written without Ray."""

import numpy as np
import pytest

from padt.data.image import ResizePolicy
from padt.data.tasks import GROUNDED_TASKS
from padt.errors import UserError
from pipelines.dataset.index import load_index
from pipelines.loader.mixture import SetSpec
from pipelines.loader.plan import make_plan
from tests.pipelines.mini_set import scene_row, write_mini_set, write_set


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return write_mini_set(tmp_path_factory.mktemp("sets") / "mini", 12)


def plan_of(*specs, batch_size=4, micro_batches=1, **options):
    return make_plan(
        specs, seed=5, batch_size=batch_size, micro_batches=micro_batches, policy=ResizePolicy(), **options
    )


def identities(plan, epoch=0):
    """Identities of all samples of an epoch over all ranks, in order of batches."""
    view = plan.reader()
    first = epoch * plan.batches_per_epoch
    return [
        ref.identity
        for number in range(first, first + plan.batches_per_epoch)
        for rank in range(plan.micro_batches)
        for ref in view.batch(number, rank)[1]
    ]


def test_index_counts_what_the_rows_hold(mini):
    # Wrong counts would leave sentences out of training, or ask rows for items they do not have.
    index = load_index(mini)
    rows = [scene_row(i) for i in range(12)]
    assert index.keys.to_pylist() == [row["key"] for row in rows]
    assert index.objects.tolist() == [len(row["objects"]) for row in rows]
    assert index.objects_with_patches.tolist() == [len(row["objects"]) for row in rows]
    assert index.references.tolist() == [len(row["references"]) for row in rows]
    assert index.captions.tolist() == [len(row["captions"]) for row in rows]
    assert (index.shard.tolist(), index.row.tolist()) == ([0] * 10 + [1] * 2, [*range(10), 0, 1])
    assert [index.grid_h[0], index.grid_w[0]] == [rows[0]["grid_h"], rows[0]["grid_w"]]


def test_references_to_invisible_objects_are_not_trained(tmp_path):
    # Such a sentence would be answered with "no objects", although its object is in the picture.
    row = scene_row(0)
    row["objects"][0]["patches"] = bytes(len(row["objects"][0]["patches"]))
    row["references"].append({"ref_id": 99, "sent_id": 99, "text": "the green dog", "objects": []})
    index = load_index(write_set(tmp_path / "set", [row]))
    expected = [i for i, reference in enumerate(row["references"]) if reference["objects"] != [0]]
    assert index.items("refer")[1].tolist() == expected
    assert index.objects_with_patches[0] == len(row["objects"]) - 1


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_epoch_visits_each_sample_once(mini, micro_batches):
    plan = plan_of(SetSpec(mini), micro_batches=micro_batches, last="fill")
    seen = identities(plan)
    assert len(set(seen)) == plan.samples_per_epoch
    # The last batch is completed from the epoch's start.
    assert len(seen) == plan.batches_per_epoch * 4 * micro_batches
    index = load_index(mini)
    assert plan.samples_per_epoch == sum(len(index.items(task)[0]) for task in GROUNDED_TASKS)


def test_one_and_two_ranks_see_the_same_global_batches(mini):
    # Training on more workers with the same global batch must be the same training.
    one, two = plan_of(SetSpec(mini), batch_size=4), plan_of(SetSpec(mini), batch_size=2, micro_batches=2)
    for number in range(one.batches_per_epoch):
        whole = {ref.identity for ref in one.reader().batch(number, 0)[1]}
        parts = [ref.identity for rank in range(2) for ref in two.reader().batch(number, rank)[1]]
        assert whole == set(parts)


def test_fractions_walk_through_the_set(mini):
    # A weight of 0.25 must not train the same quarter in every epoch.
    plan = plan_of(SetSpec(mini, {"detect": 0.25}))
    assert plan.samples_per_epoch == 3
    seen = [identity for epoch in range(4) for identity in identities(plan, epoch)[:3]]
    assert len({tuple(sorted(identities(plan, epoch))) for epoch in range(4)}) == 4
    assert len(set(seen)) >= 10


def test_repeats_are_other_samples(mini):
    # The second listing of a set must bring other class lists and VRTs, not the same sample twice.
    plan = plan_of(SetSpec(mini, {"detect": 1.0}, repeat=2))
    assert plan.samples_per_epoch == 24
    assert len(set(identities(plan))) == 24
    view = plan.reader()
    refs = [ref for number in range(plan.batches_per_epoch) for ref in view.batch(number, 0)[1]]
    pair = [ref for ref in refs if ref.key == "mini/train/0"]
    assert pair[0].rng(5, 0).random() != pair[1].rng(5, 0).random()


def test_items_of_an_image_take_turns(mini):
    plan = plan_of(SetSpec(mini, {"refer": 1.0}, items_per_image=2))
    index = load_index(mini)
    assert plan.samples_per_epoch == int(np.minimum(index.references, 2).sum())
    seen = {identity for epoch in range(int(index.references.max())) for identity in identities(plan, epoch)}
    assert len(seen) == int(index.references.sum())


def test_fingerprint_follows_content_and_mixture(mini, tmp_path):
    # A resumed run must notice that its data changed.
    same = write_mini_set(tmp_path / "copy", 12)
    other = write_mini_set(tmp_path / "other", 12, seed=1)
    prints = [plan_of(SetSpec(url)).fingerprint()["data"] for url in (mini, same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert plan_of(SetSpec(mini, repeat=2)).fingerprint()["data"] != prints[0]


def test_a_set_without_named_tasks_is_trained_on_what_it_holds(mini, tmp_path):
    # A set of boxes alone, which most users bring first, needs no list of what it lacks.
    bare = write_mini_set(tmp_path / "bare", 2, texts=False)
    assert plan_of(SetSpec(bare)).mixture.specs[0].tasks == {"detect": 1.0}
    assert set(plan_of(SetSpec(mini)).mixture.specs[0].tasks) == {"detect", "refer", "caption"}


def test_bad_sets_are_refused(mini, tmp_path):
    with pytest.raises(UserError, match="manifest"):
        (tmp_path / "empty").mkdir()
        plan_of(SetSpec(str(tmp_path / "empty")))
    with pytest.raises(UserError, match="--max-pixels 4000"):
        make_plan([SetSpec(mini)], seed=0, batch_size=1, micro_batches=1, policy=ResizePolicy(max_pixels=4000))
    with pytest.raises(UserError, match="no captions"):
        bare = write_mini_set(tmp_path / "bare", 2, texts=False)
        plan_of(SetSpec(bare, {"caption": 1.0}))
    with pytest.raises(UserError, match="no samples"):
        plan_of(SetSpec(mini, {"detect": 0.0}))
    with pytest.raises(UserError, match="fewer than one global batch"):
        plan_of(SetSpec(mini, {"detect": 1.0}), batch_size=100, last="drop")
