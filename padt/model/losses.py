"""Losses of PaDT: robust cross-entropy over text and VRTs, boxes, masks and scores of the decoded objects.

Formulas follow the released training (equations of the paper; constants as in the released code). Sums over samples,
objects and masks are divided by their number in the whole optimiser step (``LossCounts``), so that a step's gradient
follows from its samples alone, however these are cut into batches and given to ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from padt.errors import check_range, look_up

OBJECT_EPSILON = 1e-4
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


@dataclass(frozen=True)
class LossCounts:
    """What losses are divided by.

    Attributes:
        samples: with or without objects.
        objects: with or without a mask.
        masks: objects that have one.
        batches: that were counted, of all ranks. The loss of one is scaled by it, since gradients are averaged.
    """

    samples: int
    objects: int
    masks: int
    batches: int = 1


@dataclass(frozen=True)
class LossSettings:
    """Which losses are trained on, and how.

    Attributes:
        weights: weight of each term of ``LOSS_TERMS`` in the total. Terms that are left out have the table's weight; a
            term of weight 0 is reported but not trained on.
        robust: leave an object's other foreground patches out of the softmax at its VRTs (robust cross-entropy).
        punish_repeats: of these patches, keep those that the answer has written already in the softmax, so that greedy
            decoding goes on to others; for groups of different patches (``task.vrt_rule`` ``distinct``).
        box_targets: ``float32``, or ``bfloat16`` to round ground-truth boxes as the released training did.
        average: ``global``, means over all samples (objects, masks) of an optimiser step, or ``rank``, means over each
            rank's own objects and masks of a batch, which the released training then averaged: there an object counts
            the less, the more of them its rank has.
        chunk_rows: positions for which the vocabulary's logits are held at a time.

    Raises:
        UserError: a term is unknown (names the nearest), or a value is out of its bounds.
    """

    weights: dict[str, float] = field(default_factory=dict)
    robust: bool = True
    punish_repeats: bool = False
    box_targets: Literal["float32", "bfloat16"] = "float32"
    average: Literal["global", "rank"] = "global"
    chunk_rows: int = 512

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            look_up("loss.weights: term", name, LOSS_TERMS)
            check_range(f"loss.weights.{name}", weight, 0)
        check_range("loss.chunk_rows", self.chunk_rows, 1)
        # All of them, so that a saved configuration says what was trained on.
        weights = {name: self.weights.get(name, term.weight) for name, term in LOSS_TERMS.items()}
        object.__setattr__(self, "weights", weights)


@dataclass(frozen=True)
class LossInputs:
    """Outputs of the model beside their targets: what terms of the loss are computed from.

    Attributes:
        nll: ``(batch, rows)`` negative log likelihood at supervised positions.
        valid: bool ``(batch, rows)``, which rows are there.
        boxes: ``(objects, 4)`` cxcywh normalised, fp32.
        scores: ``(objects,)`` logits, fp32.
        masks: ``(H, W)`` logits of each object.
        true_boxes: ``(objects, 4)`` xyxy normalised.
        true_masks: bool ``(H, W)`` of each object, or None.
        counts: what sums are divided by; None: what is in this batch.
    """

    nll: Tensor
    valid: Tensor
    boxes: Tensor
    scores: Tensor
    masks: list[Tensor]
    true_boxes: Tensor
    true_masks: list[Tensor | None]
    counts: LossCounts | None = None

    @cached_property
    def own(self) -> LossCounts:
        """What is in this batch."""
        return LossCounts(len(self.nll), len(self.boxes), sum(mask is not None for mask in self.true_masks))

    @cached_property
    def divisors(self) -> LossCounts:
        """What sums are divided by."""
        return self.counts or self.own

    @cached_property
    def box_losses(self) -> tuple[dict[str, Tensor], Tensor]:
        """Parts, scalars, and GIoU ``(objects,)``: see ``box_losses``; the box's and the score's term share it."""
        return box_losses(self.boxes, self.true_boxes, self.divisors.objects)


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss, a row of ``LOSS_TERMS``.

    Attributes:
        compute: the batch's share of the mean under the term's own name, and of its details under theirs: a sum divided
            by ``LossInputs.divisors``.
        mean_over: which of these: ``samples``, or ``objects`` or ``masks`` (which a batch may lack).
        weight: in the total, where the settings do not say otherwise (paper: all 1).
        details: names of further values that are reported beside the term.
    """

    compute: Callable[[LossInputs], dict[str, Tensor]]
    mean_over: Literal["samples", "objects", "masks"]
    weight: float = 1.0
    details: tuple[str, ...] = ()


def total_loss(inputs: LossInputs, settings: LossSettings, anchor: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to differentiate ``()``, and detached values ``()`` of all terms and details by name.

    With ``inputs.counts`` of an optimiser step, the mean of the total over the step's batches is the step's loss. The
    values of its batches add up to the step's means, unless ``settings.average`` is ``rank``: then they are means over
    the batch.

    Args:
        inputs: of one batch; ``boxes`` is empty where it has no objects.
        settings: weights and averages.
        anchor: ``()``, zero that keeps all of the decoder's outputs in the graph, whether a term reads them or not.
    """
    whole = inputs.counts or inputs.own
    factor: float = whole.batches
    if settings.average == "rank":
        # Ranks whose batches hold unlike numbers of samples were never averaged as equals.
        factor = inputs.own.samples * whole.batches / max(1, whole.samples)
        inputs = replace(inputs, counts=None)
    of_samples: Tensor | float = 0.0
    of_objects = anchor
    parts: dict[str, Tensor] = {}
    for name, term in LOSS_TERMS.items():
        on_objects = term.mean_over != "samples"
        if on_objects and not len(inputs.boxes):
            parts |= dict.fromkeys((name, *term.details), anchor.detach())
            continue
        values = term.compute(inputs)
        parts |= {key: value.detach() for key, value in values.items()}
        weight = settings.weights[name]
        # Without the anchor of objects, a sample's terms stay in the graph even when they weigh nothing.
        if on_objects and weight:
            of_objects = of_objects + weight * values[name]
        elif not on_objects:
            of_samples = of_samples + weight * values[name]
    return (of_samples + of_objects) * factor, parts


def token_loss(nll: Tensor, valid: Tensor, samples: int | None = None) -> Tensor:
    """Mean over samples of the mean over their supervised tokens; both ``(batch, rows)``.

    ``samples``, of which the batch may hold a part, is what the sum is divided by; None: those of the batch.
    """
    counts = valid.sum(dim=1)
    return (nll.sum(dim=1) / (counts + OBJECT_EPSILON)).sum() / (len(nll) if samples is None else max(1, samples))


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """``(..., 4)`` centre and size -> corners."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """``(..., 4)`` corners -> centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of paired boxes, ``(objects, 4)`` xyxy each -> two of ``(objects,)``."""
    area_first = (first[:, 2:] - first[:, :2]).clamp(min=0).prod(-1)
    area_second = (second[:, 2:] - second[:, :2]).clamp(min=0).prod(-1)
    overlap = (torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])).clamp(min=0)
    intersection = overlap.prod(-1)
    union = area_first + area_second - intersection
    hull = (torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])).clamp(min=0)
    hull_area = hull.prod(-1)
    tiny = torch.finfo(first.dtype).eps
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (hull_area - union) / hull_area.clamp(min=tiny)


def box_losses(predicted: Tensor, target_xyxy: Tensor, objects: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """Box regression: ``1 - mean GIoU`` plus mean L1 on cxcywh.

    Args:
        predicted: ``(objects, 4)`` cxcywh normalised, fp32.
        target_xyxy: ``(objects, 4)`` xyxy normalised; in bf16 the targets of both terms are rounded, as released.
        objects: what sums are divided by, where these are a part of them; None: their own number.

    Returns:
        Parts ``giou_loss``, ``l1_loss``, their sum ``box``, the means ``giou`` and ``iou``; and each object's GIoU.
    """
    whole = len(predicted) if objects is None else objects
    count = whole + OBJECT_EPSILON
    iou, giou = box_iou(cxcywh_to_xyxy(predicted), target_xyxy.float())
    giou_loss = len(predicted) / whole - giou.sum() / count
    l1_loss = (predicted - xyxy_to_cxcywh(target_xyxy).float()).abs().sum() / count
    means = {"giou": giou.sum() / count, "iou": iou.sum() / count}
    return {"box": giou_loss + l1_loss, "giou_loss": giou_loss, "l1_loss": l1_loss, **means}, giou


def score_loss(logits: Tensor, giou: Tensor, objects: int | None = None) -> Tensor:
    """Squared error between ``2 sigmoid(logit) - 1`` and the box's GIoU (detached); ``(objects,)`` both.

    ``objects`` is what the sum is divided by, where these are a part of them; None: their own number.
    """
    quality = 2 * logits.sigmoid() - 1
    whole = len(logits) if objects is None else objects
    return (quality - giou.detach()).square().sum() / (whole + OBJECT_EPSILON)


def mask_losses(logits: list[Tensor], targets: list[Tensor | None], masks: int | None = None) -> dict[str, Tensor]:
    """Dice plus focal loss over the objects that have a mask.

    Args:
        logits: ``(H, W)`` of each object.
        targets: bool ``(H, W)`` of each object, or None.
        masks: what sums are divided by, where these are a part of them; None: their own number.

    Returns:
        ``mask`` = ``dice`` + ``focal``; zeros where no object has a mask.
    """
    pairs = [(rows, target) for rows, target in zip(logits, targets, strict=True) if target is not None]
    zero = sum((rows.sum() * 0.0 for rows in logits), torch.zeros((), device=logits[0].device))
    dice, focal = zero, zero
    for rows, target in pairs:
        probability, truth = rows.float().sigmoid(), target.float()
        overlap = (probability * truth).sum()
        dice = dice + 1 - (2 * overlap + 1) / (probability.sum() + truth.sum() + 1)
        cross_entropy = F.binary_cross_entropy_with_logits(rows.float(), truth, reduction="none")
        miss = 1 - (probability * truth + (1 - probability) * (1 - truth))
        alpha = FOCAL_ALPHA * truth + (1 - FOCAL_ALPHA) * (1 - truth)
        focal = focal + (alpha * cross_entropy * miss**FOCAL_GAMMA).sum() / (rows.numel() + 1e-5)
    count = max(1, len(pairs) if masks is None else masks)
    return {"mask": (dice + focal) / count, "dice": dice / count, "focal": focal / count}


LOSS_TERMS: dict[str, LossTerm] = {
    "token": LossTerm(
        lambda inputs: {"token": token_loss(inputs.nll, inputs.valid, inputs.divisors.samples)}, "samples"
    ),
    "box": LossTerm(lambda inputs: inputs.box_losses[0], "objects", details=("giou_loss", "l1_loss", "giou", "iou")),
    "mask": LossTerm(
        lambda inputs: mask_losses(inputs.masks, inputs.true_masks, inputs.divisors.masks),
        "masks",
        details=("dice", "focal"),
    ),
    "score": LossTerm(
        lambda inputs: {"score": score_loss(inputs.scores, inputs.box_losses[1], inputs.divisors.objects)}, "objects"
    ),
}
"""Terms of the loss by name. The total, the settings' weights, a run's metrics (``train/loss_<name>``) and its log line
are made of them: a new term is a function and a row."""
