"""The plan of a run with a budget, absent things and shared conversations: exact, within its estimates, resumable."""

from dataclasses import replace

import numpy as np
import pytest

from padt.data.image import ResizePolicy
from padt.data.processor import load_processor
from padt.data.tasks import NO_OBJECTS, TASKS, TaskOptions, refer_prompt, render
from padt.errors import UserError
from pipelines.dataset.index import load_index
from pipelines.loader.augment import AugmentOptions
from pipelines.loader.batching import Batching
from pipelines.loader.length_estimates import set_lengths
from pipelines.loader.mixture import SetSpec
from pipelines.loader.negatives import sentence_pool
from pipelines.loader.plan import make_plan
from pipelines.loader.reader import ReaderOptions, TrainingReader
from pipelines.loader.sample import Drawer, joined
from pipelines.loader.sample_source import RowReader, SampleSource
from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.mini_set import scene_row, write_mini_set

VIEWS = AugmentOptions(flip=0.5, scale=(0.7, 1.3), crop=0.5)
BUDGET = Batching(max_tokens=900, max_patches=160)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return [write_mini_set(root / "a", 10), write_mini_set(root / "b", 8, seed=1, name="other", masks=False)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def processor(model):
    return load_processor(model)


def mixed(sets):
    """Everything at once: two sets, shares, absent things, several sentences in a conversation."""
    return [
        SetSpec(sets[0], {"detect": 1.5, "refer": 1.0, "caption": 1.0}, negatives={"detect": 0.4, "refer": 0.4}),
        SetSpec(sets[1], {"refer": 0.5, "detect": 1.0}, sentences_per_sample=3, negatives={"refer": 0.2}),
    ]


def plan_of(specs, processor, **options):
    chosen = {"batch_size": 16, "micro_batches": 2, "batching": BUDGET, "measure": processor, **options}
    return make_plan(specs, seed=7, policy=ResizePolicy(), **chosen)


@pytest.mark.parametrize("rule", ["random", "all"])
def test_no_batch_exceeds_the_budget(sets, processor, rule):
    # The plan knows estimates only; what counts is what the processor makes of the samples.
    options = TaskOptions(vrt_rule=rule)
    plan = plan_of(mixed(sets), processor, augment=VIEWS, task=options)
    source, view = SampleSource(plan, processor, options), plan.reader()
    for number in range(plan.batches_per_epoch):
        for rank in range(plan.micro_batches):
            samples = source.batch(number, rank)
            assert len(samples) == len(view.batch(number, rank)[1])
            assert len(samples) * max(sample.num_tokens for sample in samples) <= BUDGET.max_tokens
            assert sum(h * w // 4 for sample in samples for h, w in sample.grids) <= BUDGET.max_patches


@pytest.mark.parametrize("rule", ["random", "all"])
def test_estimates_are_close(sets, processor, rule):
    # Estimates far above the truth would fill batches half.
    options = TaskOptions(vrt_rule=rule)
    plan = plan_of([SetSpec(sets[0])], processor, task=options)
    source = SampleSource(plan, processor, options)
    samples = plan.samples(0)
    tokens, patches = plan.sizes(samples)
    encoded = [source.sample(plan.mixture.ref(samples, i), 0) for i in range(len(samples))]
    ratio = np.array([sample.num_tokens for sample in encoded]) / tokens
    assert ratio.max() <= 1 and ratio.mean() > 0.6
    assert patches.tolist() == [sum(h * w // 4 for h, w in sample.grids) for sample in encoded]


def test_a_run_with_everything_goes_on_with_the_very_next_batches(sets, model, processor):
    # After a kill: budget, mixture, absent things and views must all come back as they would have been.
    plan = plan_of(mixed(sets), processor, augment=VIEWS)
    stop = plan.batches_per_epoch + 3

    def read(start):
        # A plan made anew, as a restarted process makes it.
        fresh = plan_of(mixed(sets), processor, augment=VIEWS)
        assert fresh.fingerprint() == plan.fingerprint()
        options = ReaderOptions(ray=False)
        return list(
            TrainingReader(fresh, 1, model, TaskOptions(), world_size=2, start=start, stop=stop, options=options)
        )

    whole = read(0)
    for start in (3, plan.batches_per_epoch - 1, plan.batches_per_epoch + 1):
        for (number, batch), (other_number, other) in zip(whole[start:], read(start), strict=True):
            assert number == other_number and batch.keys == other.keys
            assert np.array_equal(batch.input_ids, other.input_ids) and np.array_equal(batch.pixels, other.pixels)
            assert np.array_equal(batch.objects.boxes, other.objects.boxes)


@pytest.mark.parametrize("batching", [None, Batching(max_tokens=600)])
def test_any_number_of_ranks_sees_the_same_samples_in_the_same_steps(sets, processor, batching):
    # "8 GPUs" and "4 GPUs, accumulation 2" were never the same run.
    plan = plan_of(mixed(sets), processor, batch_size=2, micro_batches=8, batching=batching)
    view, steps = plan.reader(), plan.batches_per_epoch + 2
    assert plan.batches_per_epoch > 2

    def seen(world_size):
        """Micro-batches of each step, as identities with their epoch, in the order of their places."""
        found = {}
        for rank in range(world_size):
            for number in range(steps * plan.turns(world_size)):
                step, part = plan.place(number, rank, world_size)
                epoch, refs = view.batch(step, part)
                assert bool(refs) == (part < 8)
                if refs:
                    found[step, part] = [(epoch, ref.identity) for ref in refs]
        return found

    whole = seen(1)
    assert len(whole) == steps * 8
    for world_size in (2, 3, 4, 8, 9):
        assert seen(world_size) == whole
    # A single worker may as well take larger micro-batches, unless a budget says what fits into one.
    if batching is None:
        larger = plan_of(mixed(sets), processor, batch_size=8, micro_batches=2, batching=None)
        assert larger.fingerprint() == plan.fingerprint()
        for step in range(steps):
            cuts = [
                [each.reader().batch(step, part)[1] for part in range(each.micro_batches)] for each in (plan, larger)
            ]
            assert len({tuple(sorted(ref.identity for part in cut for ref in part)) for cut in cuts}) == 1


def test_epochs_of_unequal_length_are_counted(sets, processor):
    plan = plan_of(mixed(sets), processor, batching=Batching(max_tokens=500))
    counts = [plan.batches_in(epoch) for epoch in range(6)]
    assert plan.batches_until(3) == sum(counts[:3])
    assert plan.batches_until(2.5) == sum(counts[:2]) + round(0.5 * counts[2])
    for epoch in range(5):
        first = sum(counts[:epoch])
        assert plan.locate(first) == (epoch, 0) and plan.locate(first + counts[epoch] - 1) == (epoch, counts[epoch] - 1)


def test_samples_above_the_budget_are_left_out_and_counted(sets, processor):
    spec = SetSpec(sets[0], {"refer": 1.0, "caption": 1.0})
    free = plan_of([spec], processor, batching=Batching(10_000))
    samples = free.mixture.samples(0)
    tokens, _ = free.sizes(samples)
    limit = int(np.quantile(tokens, 0.7))
    plan = plan_of([spec], processor, batching=Batching(limit))
    left_out = sum(lost for lost, _ in plan.skipped().values())
    assert left_out == int((tokens > limit).sum()) > 0
    assert plan.samples_per_epoch == len(samples) - left_out
    with pytest.raises(UserError, match=r"smaller than every sample of task 'refer'.*the smallest has \d+ tokens"):
        plan_of([spec], processor, batching=Batching(20))


def test_sentences_of_an_image_share_a_conversation(sets, processor):
    spec = SetSpec(sets[0], {"refer": 1.0}, sentences_per_sample=3)
    plan = plan_of([spec], processor)
    index = load_index(sets[0])
    samples = plan.samples(0)
    asked = sorted(
        (int(r), int(i)) for r, items in zip(samples.row, samples.items, strict=True) for i in items if i >= 0
    )
    assert asked == sorted(zip(*(part.tolist() for part in index.items("refer")), strict=True))
    assert len(samples) == int(np.ceil(index.references / 3).sum())
    source = SampleSource(plan, processor, TaskOptions())
    number = int(np.argmax((samples.items >= 0).sum(axis=1)))
    sample = source.sample(plan.mixture.ref(samples, number), 0)
    text = processor.decode_ids(sample.input_ids, skip_special_tokens=False)
    assert text.count("this sentence describes") == 3 and text.count("<|vision_start|>") == 1
    assert len(sample.grids) == 1 and len(sample.groups) == 3
    # Another epoch groups other sentences.
    assert not np.array_equal(samples.items, plan.samples(1).items)


def drawn(sets, processor, spec, epoch=0):
    """Rows and samples of an epoch's first-set questions."""
    plan = plan_of([spec], processor)
    index, samples = plan.mixture.indices[0], plan.samples(epoch)
    drawer, rows = Drawer(plan, 0, TaskOptions(class_names=index.class_names)), RowReader(index)
    refs = [plan.mixture.ref(samples, i) for i in range(len(samples))]
    return [(rows.row(ref.row), drawer.sample(rows.row(ref.row), ref, epoch)) for ref in refs]


def test_absent_things_are_absent(sets, processor):
    # A question called unanswerable although its answer is in the picture would teach the model to look away.
    share = {"detect": 0.5, "refer": 0.5}
    spec = SetSpec(sets[0], {"detect": 3.0, "refer": 1.0}, negatives=share)
    negative = {"detect": 0, "refer": 0}
    total = {"detect": 0, "refer": 0}
    for row, sample in drawn(sets, processor, spec):
        labels = {entry["label"] for entry in row["objects"]}
        total[sample.task] += 1
        if sample.groups:
            continue
        negative[sample.task] += 1
        assert sample.answer == (NO_OBJECTS,)
        assert not any(f'"{label}"' in sample.prompt or f" {label}" in sample.prompt for label in labels)
        if sample.task == "refer":
            kinds = {"circle", "square", "triangle", "cross"} - labels
            assert any(kind in sample.prompt for kind in kinds)
    assert 0.25 < negative["refer"] / total["refer"] < 0.65
    assert 0.25 < negative["detect"] / total["detect"] < 0.65


def test_absent_things_change_from_epoch_to_epoch_and_nothing_else_does(sets, processor):
    spec = SetSpec(sets[0], {"refer": 1.0}, negatives={"refer": 0.5})
    first, again, other = (drawn(sets, processor, spec, epoch) for epoch in (0, 0, 1))
    assert [sample for _, sample in first] == [sample for _, sample in again]
    empty = [[not sample.groups for _, sample in part] for part in (first, other)]
    assert empty[0] != empty[1]
    # The questions that stay are word for word those of a run without any.
    plain = drawn(sets, processor, SetSpec(sets[0], {"refer": 1.0}))
    assert all(a == b for (_, a), (_, b) in zip(first, plain, strict=True) if a.groups)


def test_sentences_that_name_nothing_are_never_asked_elsewhere(sets):
    # "the leftmost shape" is there in every picture.
    pool = sentence_pool(load_index(sets[0]))
    texts = pool.texts.to_pylist()
    assert texts and all(any(kind in text for kind in pool.names) for text in texts)
    sentences = [entry["text"] for i in range(10) for entry in scene_row(i)["references"]]
    assert len(texts) < len(sentences)


def test_joined_samples_keep_their_answers():
    row = scene_row(0)
    parts = [render(row, "refer", item, np.random.default_rng(item), TaskOptions()) for item in range(2)]
    whole = joined(parts)
    assert [turn.role for turn in whole.turns] == ["user", "assistant"] * 2
    assert whole.groups == parts[0].groups + parts[1].groups and len(whole.images) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {"refer": -1.0}}, "tasks.refer of the data set set is -1.0: give a number from 0"),
        ({"tasks": {"reffer": 1.0}}, "'reffer'.*unknown"),
        ({"negatives": {"caption": 0.1}}, "task 'caption' is unknown: known are detect, refer"),
        ({"negatives": {"refer": 1.5}}, "negatives.refer of the data set set is 1.5: give a number from 0 to 1"),
        ({"sentences_per_sample": 0}, "sentences_per_sample of the data set set is 0"),
    ],
)
def test_wrong_mixtures_say_what_to_change(options, message):
    with pytest.raises(UserError, match=message):
        SetSpec("set", **options)


def test_estimates_follow_the_wording_of_the_table_and_its_rows(sets, processor, monkeypatch):
    """A question that is worded longer, or one more task over sentences, needs no edit of the estimates."""
    index, options = load_index(sets[0]), TaskOptions(class_names=("circle",))
    before = set_lengths(index, options, processor).by_task
    longer = replace(TASKS["refer"], prompt=lambda sentence: f"Now now now {refer_prompt(sentence)}")
    monkeypatch.setitem(TASKS, "refer", longer)
    monkeypatch.setitem(TASKS, "other", TASKS["caption"])
    after = set_lengths(index, options, processor)
    more = len(processor.tokenize(longer.prompt("x"))) - len(processor.tokenize(refer_prompt("x")))
    assert more > 0 and (after.by_task["refer"] - before["refer"] == more).all()
    assert (after.by_task["other"] == before["caption"]).all() and "other" in after.first
