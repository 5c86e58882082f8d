"""Losses on numbers that can be worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from padt.data.collate import SupervisedRows
from padt.errors import UserError
from padt.model.head import DynamicVocabularyHead
from padt.model.losses import (
    LossCounts,
    LossInputs,
    LossSettings,
    box_iou,
    box_losses,
    cxcywh_to_xyxy,
    mask_losses,
    score_loss,
    token_loss,
    total_loss,
    xyxy_to_cxcywh,
)


def test_token_loss_is_a_mean_over_samples_not_over_tokens():
    nll = torch.tensor([[1.0, 2.0, 3.0], [8.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    assert token_loss(nll, valid).item() == pytest.approx((6 / 3.0001 + 8 / 1.0001) / 2)
    assert token_loss(nll * 0, torch.zeros_like(valid)).item() == 0


def test_boxes_there_and_back():
    corners = torch.tensor([[0.1, 0.2, 0.5, 0.8]])
    torch.testing.assert_close(xyxy_to_cxcywh(corners), torch.tensor([[0.3, 0.5, 0.4, 0.6]]))
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(corners)), corners)


def test_iou_and_giou_of_boxes_that_overlap_touch_and_miss():
    first = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.0, 0.0, 0.1, 0.1], [0.3, 0.3, 0.6, 0.7], [0.5, 0.5, 0.5, 0.5]])
    second = torch.tensor([[0.1, 0.0, 0.3, 0.2], [0.9, 0.0, 1.0, 0.1], [0.3, 0.3, 0.6, 0.7], [0.1, 0.1, 0.2, 0.2]])
    iou, giou = box_iou(first, second)
    torch.testing.assert_close(iou, torch.tensor([1 / 3, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(giou, torch.tensor([1 / 3, -0.8, 1.0, 0.01 / 0.16 - 1]), atol=1e-5, rtol=1e-5)


def test_box_loss_is_giou_plus_l1_over_the_objects():
    target = torch.tensor([[0.0, 0.0, 0.2, 0.2]])
    parts, giou = box_losses(torch.tensor([[0.2, 0.1, 0.2, 0.2]]), target)
    assert giou.item() == pytest.approx(1 / 3, abs=1e-5)
    assert parts["l1_loss"].item() == pytest.approx(0.1, abs=1e-4)
    assert parts["box"].item() == pytest.approx(1 - 1 / 3 + 0.1, abs=2e-4)
    rounded, _ = box_losses(torch.tensor([[0.3, 0.3, 0.2, 0.2]]), torch.tensor([[0.2, 0.2, 0.4, 0.4]]).bfloat16())
    assert rounded["l1_loss"].item() > 1e-4, "bf16 rounds 0.2 and 0.4"


def test_score_loss_compares_twice_the_score_less_one_with_giou():
    giou = torch.tensor([0.5, -1.0], requires_grad=True)
    logits = torch.tensor([0.0, math.log(3)], requires_grad=True)
    loss = score_loss(logits, giou)
    assert loss.item() == pytest.approx((0.25 + 1.5**2) / 2.0001, abs=1e-5)
    loss.backward()
    assert giou.grad is None, "the box must not learn to please the score"


def test_mask_losses_of_two_pixels():
    logits = torch.tensor([[0.0, 0.0]])
    target = torch.tensor([[True, False]])
    parts = mask_losses([logits], [target])
    assert parts["dice"].item() == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1))
    focal = (0.25 * math.log(2) * 0.25 + 0.75 * math.log(2) * 0.25) / 2
    assert parts["focal"].item() == pytest.approx(focal, abs=1e-5)
    assert parts["mask"].item() == pytest.approx(parts["dice"].item() + focal, abs=1e-5)


def test_masks_count_only_objects_that_have_one():
    logits = [torch.randn(4, 4), torch.randn(8, 4)]
    target = torch.rand(8, 4) > 0.5
    both = mask_losses(logits, [None, target])
    alone = mask_losses(logits[1:], [target])
    torch.testing.assert_close(both["mask"], alone["mask"])
    assert mask_losses(logits, [None, None])["mask"].item() == 0


def loss_inputs(samples, objects, masked):
    """Random outputs and targets; the first ``masked`` objects have a mask."""
    corners = torch.rand(objects, 2, 2).sort(dim=1).values.flatten(1)
    masks = [torch.rand(4, 4) > 0.5 if number < masked else None for number in range(objects)]
    decoded = torch.rand(objects, 4), torch.randn(objects), [torch.randn(4, 4) for _ in range(objects)]
    return LossInputs(torch.rand(samples, 3), torch.ones(samples, 3, dtype=torch.bool), *decoded, corners, masks)


def joined(*parts):
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("nll", "valid", "boxes", "scores")}
    lists = {name: sum((getattr(part, name) for part in parts), []) for name in ("masks", "true_masks")}
    return LossInputs(**tensors, **lists, true_boxes=torch.cat([part.true_boxes for part in parts]))


def test_parts_of_a_step_have_the_step_s_loss_however_it_is_cut():
    # Means of each rank's own objects made the gradient depend on how many GPUs a run has.
    torch.manual_seed(0)
    parts = [loss_inputs(2, 4, 1), loss_inputs(1, 9, 0), loss_inputs(3, 0, 0), loss_inputs(2, 1, 1)]
    whole, values = total_loss(joined(*parts), LossSettings(), torch.zeros(()))
    counts = LossCounts(samples=8, objects=14, masks=2, batches=4)
    cut = [total_loss(replace(part, counts=counts), LossSettings(), torch.zeros(())) for part in parts]
    torch.testing.assert_close(sum(total for total, _ in cut) / 4, whole)
    for name, value in values.items():
        torch.testing.assert_close(sum(part[name] for _, part in cut), value)


def test_averages_of_ranks_are_the_released_ones():
    torch.manual_seed(0)
    parts = [loss_inputs(2, 4, 1), loss_inputs(2, 9, 9)]
    counts, settings = LossCounts(samples=4, objects=13, masks=10, batches=2), LossSettings(average="rank")
    for part in parts:
        alone, _ = total_loss(part, LossSettings(), torch.zeros(()))
        torch.testing.assert_close(total_loss(replace(part, counts=counts), settings, torch.zeros(()))[0], alone)
    # Batches of unlike size count by their samples.
    counts = LossCounts(samples=8, objects=13, masks=10, batches=2)
    half, _ = total_loss(replace(parts[0], counts=counts), settings, torch.zeros(()))
    torch.testing.assert_close(half, total_loss(parts[0], settings, torch.zeros(()))[0] / 2)


def head_case():
    torch.manual_seed(0)
    head = DynamicVocabularyHead(8, 11, bias=False)
    hidden, prototypes = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    rows = SupervisedRows(
        positions=torch.tensor([[0, 2, 3], [1, 0, 0]]),
        targets=torch.tensor([[3, 11 + 2, 11 + 0], [11 + 1, -100, -100]]),
        groups=torch.tensor([[-1, 0, 0], [1, -1, -1]]),
    )
    return head, hidden, prototypes, mask, rows


@pytest.mark.parametrize("chunk_rows", [1, 2, 512])
def test_the_head_at_supervised_rows_is_cross_entropy_over_all_logits(chunk_rows):
    head, hidden, prototypes, mask, rows = head_case()
    ours = head(hidden, prototypes, mask, rows, chunk_rows=chunk_rows)
    logits = head(hidden, prototypes, mask)
    assert logits.shape == (2, 5, 11 + 4) and logits[1, :, 13:].eq(float("-inf")).all()
    for sample, row, position, target in [(0, 0, 0, 3), (0, 1, 2, 13), (0, 2, 3, 11), (1, 0, 1, 12)]:
        theirs = -logits[sample, position].log_softmax(-1)[target]
        torch.testing.assert_close(ours[sample, row], theirs, atol=1e-5, rtol=1e-5)
    assert ours[1, 1:].eq(0).all()


def test_robust_rows_leave_out_the_object_s_other_patches():
    head, hidden, prototypes, mask, rows = head_case()
    excluded = torch.zeros(2, 3, 4, dtype=torch.bool)
    excluded[0, 1, [0, 3]] = True
    ours = head(hidden, prototypes, mask, rows, excluded)
    logits = head(hidden, prototypes, mask)[0, 2].clone()
    logits[[11, 14]] = float("-inf")
    torch.testing.assert_close(ours[0, 1], -logits.log_softmax(-1)[13], atol=1e-5, rtol=1e-5)


def test_gradients_of_chunks_are_those_of_the_whole():
    gradients = []
    for chunk_rows in (1, 512):
        head, hidden, prototypes, mask, rows = head_case()
        hidden.requires_grad_()
        prototypes.requires_grad_()
        head(hidden, prototypes, mask, rows, chunk_rows=chunk_rows).sum().backward()
        gradients.append((head.weight.grad, hidden.grad, prototypes.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
        assert one.isfinite().all()


def test_settings_name_their_terms():
    assert LossSettings({"mask": 0}).weights == {"token": 1.0, "box": 1.0, "mask": 0, "score": 1.0}
    with pytest.raises(UserError, match=r"loss\.weights: term 'maks' is unknown: did you mean mask"):
        LossSettings({"maks": 1.0})
    with pytest.raises(UserError, match=r"loss\.weights\.box is -1"):
        LossSettings({"box": -1.0})
    with pytest.raises(UserError, match=r"loss\.chunk_rows is 0"):
        LossSettings(chunk_rows=0)
