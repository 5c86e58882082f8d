"""Losses as the log shows them: means over all ranks and batches, or over objects."""

import pytest
import torch

from jobs.training.meter import Meter, added_over_ranks, batch_counts, mean_losses
from jobs.training.metrics_log import Record, RunLog
from padt.model.losses import LOSS_TERMS, LossCounts, LossTerm

OBJECT_TERMS = ("box", "mask", "score")


def parts(token, of_objects):
    return {"token": torch.tensor(token), **dict.fromkeys(OBJECT_TERMS, torch.tensor(of_objects)), "giou": 0.5}


def add(meter, total, token, of_objects, objects, tokens=10, divisors=None):
    own = LossCounts(2, objects, objects)
    meter.add(torch.tensor(total), parts(token, of_objects), own=own, divisors=divisors or own, tokens=tokens)


def over_ranks(*meters):
    """What all ranks' sums add up to, without processes."""
    each = [meter.sums(0.2 * (rank + 1)) for rank, meter in enumerate(meters)]
    return added_over_ranks({name: sum(sums[name] for sums in each) for name in each[0]}, 1)


def test_batches_without_objects_do_not_lower_the_losses_of_objects():
    # With conversations mixed in, half of the batches may have no boxes: their zeros would look like learning.
    one, other = Meter(), Meter()
    add(one, 3.0, 1.0, 0.6, objects=1)
    add(one, 1.0, 1.0, 0.0, objects=0, tokens=20)
    add(other, 2.0, 2.0, 0.2, objects=3)
    add(other, 2.0, 0.0, 0.0, objects=0)
    sums = over_ranks(one, other)
    mean = (0.6 + 3 * 0.2) / 4
    expected = {"train/loss": 2.0, "train/loss_token": 1.0, **{f"train/loss_{name}": mean for name in OBJECT_TERMS}}
    assert mean_losses(sums) == pytest.approx(expected)
    assert (sums["objects"], sums["samples"], sums["tokens"]) == (4, 8, 50)
    assert sums["wait_share"] == pytest.approx(0.6)


def test_shares_of_a_step_s_means_add_up():
    one, other = Meter(), Meter()
    step = LossCounts(samples=4, objects=6, masks=6, batches=2)
    add(one, 1.5, 0.5, 0.25, objects=2, divisors=step)
    add(other, 2.5, 1.0, 1.0, objects=4, divisors=step)
    means = mean_losses(over_ranks(one, other))
    assert (means["train/loss"], means["train/loss_token"], means["train/loss_box"]) == (2.0, 1.5, 1.25)


def test_a_record_of_conversations_alone_leaves_objects_out():
    meter = Meter()
    add(meter, 1.0, 1.0, 0.0, objects=0)
    assert mean_losses(over_ranks(meter)) == {"train/loss": 1.0, "train/loss_token": 1.0}


def test_a_new_term_of_the_loss_shows_up_without_another_edit(monkeypatch, tmp_path, caplog):
    # A term that someone adds and never sees in the log is tuned blindly.
    from tests.padt.model.test_modeling import batches
    from tests.padt.tiny import tiny_model, tiny_processor

    sizes = LossTerm(lambda inputs: {"sizes": inputs.boxes[:, 2:].mean()}, "objects", weight=0.5)
    monkeypatch.setitem(LOSS_TERMS, "sizes", sizes)
    batch = batches(tiny_processor())["objects"]
    output = tiny_model()(batch=batch)
    four = sum(output.parts[name] for name in ("token", *OBJECT_TERMS))
    torch.testing.assert_close(output.total.detach(), four + 0.5 * output.parts["sizes"])
    meter = Meter()
    own = batch_counts(batch)
    meter.add(output.total.detach(), output.parts, own=own, divisors=own, tokens=1)
    metrics = mean_losses(over_ranks(meter))
    assert metrics["train/loss_sizes"] == pytest.approx(float(output.parts["sizes"]))
    caplog.set_level("INFO")
    tracked: list[dict[str, float]] = []

    class Run:
        run_id = "r1"

        def log_metrics(self, step, values):
            tracked.append(values)

    log = RunLog(str(tmp_path), "run", Run())
    log.write(Record(1, 2, metrics))
    log.flush()
    assert f"sizes {metrics['train/loss_sizes']:.3f}" in caplog.text
    assert "train/loss_sizes" in (tmp_path / "metrics.jsonl").read_text()
    assert "train/loss_sizes" in tracked[0]
