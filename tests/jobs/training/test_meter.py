"""Losses as the log shows them: means over all ranks and batches, or over objects."""

import pytest
import torch

from jobs.training.loop import Meter


def parts(token, box):
    return {name: torch.tensor(value) for name, value in (("token", token), ("box", box), ("giou", 0.5))}


def test_batches_without_objects_do_not_lower_the_losses_of_objects():
    # With conversations mixed in, half of the batches may have no boxes: their zeros would look like learning.
    one, other = Meter(), Meter()
    one.add(torch.tensor(3.0), parts(1.0, 0.6), samples=2, tokens=10, objects=1)
    one.add(torch.tensor(1.0), parts(1.0, 0.0), samples=2, tokens=20, objects=0)
    other.add(torch.tensor(2.0), parts(2.0, 0.2), samples=2, tokens=10, objects=3)
    other.add(torch.tensor(2.0), parts(0.0, 0.0), samples=2, tokens=10, objects=0)
    joined = (one.sums(0.2) + other.sums(0.4)).tolist()
    expected = {"train/loss": 2.0, "train/loss_token": 1.0, "train/loss_box": (0.6 + 3 * 0.2) / 4}
    assert one.means(joined, 2) == pytest.approx(expected)
    assert joined[-4:] == pytest.approx([4, 8, 50, 0.6])


def test_a_record_of_conversations_alone_leaves_objects_out():
    meter = Meter()
    meter.add(torch.tensor(1.0), parts(1.0, 0.0), samples=1, tokens=5, objects=0)
    assert meter.means(meter.sums(0.0).tolist(), 1) == {"train/loss": 1.0, "train/loss_token": 1.0}
