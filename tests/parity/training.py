"""Parity of the training step: tokenised samples, VRT picks, targets, every loss run, gradients."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from padt.data.collate import Batch, collate
from padt.data.conversation import Group, ObjectTarget
from padt.data.image import open_image
from padt.data.tasks import Sample, merge_text
from padt.data.vrt import VRTRule, choose_vrts
from padt.errors import UserError
from padt.model.losses import LossSettings
from padt.model.modeling import PaDTForConditionalGeneration
from tests.parity.fixture import Fixture, our_key
from tests.parity.table import MASK_TOLERANCE, Report

# Released names of the parts and ours; "total" is an output of its own.
PARTS = {
    "sft_loss": "token",
    "bbox_loss": "box",
    "mask_loss": "mask",
    "score_loss": "score",
    "giou_loss": "giou_loss",
    "l1_loss": "l1_loss",
    "dice": "dice",
    "focal": "focal",
    "iou": "iou",
    "giou": "giou",
}
KNOWN_ARGUMENTS = {
    "use_warm_up", "epoch", "num_train_epochs", "global_step", "use_sft_vp_mask", "random_select_patch",
    "random_select_patch_num", "use_bbox_loss", "use_score_loss", "use_mask_loss",
}  # fmt: skip
_PLACEHOLDER = re.compile(r"<\|Obj_(\d+)\|>")


def compare_training(fixture: Fixture, model: PaDTForConditionalGeneration, report: Report) -> None:
    """Each run of each loss file: ids, loss parts, and gradients where the fixture has them."""
    for name in fixture.names("loss*.json"):
        tag = name.removeprefix("loss")
        loss = fixture.json(name)
        for run in loss["runs"]:
            report.part = f"{name} {run['name']}"
            batch = batch_of_run(fixture, model, loss["items"], run)
            _compare_ids(fixture, tag, run, batch, model.processor.pad_token_id, report)
            model.zero_grad()
            settings, warm_up = settings_of_run(run["args"])
            output = model(batch=batch, loss=settings, prototypes_to_decoder=warm_up)
            assert output.total is not None and output.parts is not None
            for part, theirs in run["losses"].items():
                ours = output.total.detach() if part == "total" else output.parts[PARTS[part]]
                report.close(part, ours, theirs)
            output.total.backward()
            _compare_gradients(fixture, tag, run, model, report)
            if run["name"] == "base":
                _compare_targets(fixture, tag, batch, report)
    model.zero_grad()


def batch_of_run(fixture: Fixture, model: PaDTForConditionalGeneration, items: list[dict], run: dict) -> Batch:
    """The run's samples with the very VRTs that the released code drew, through our own processor and collation."""
    arguments = run["args"]
    unknown = set(arguments) - KNOWN_ARGUMENTS
    if unknown:
        raise UserError(f"Run {run['name']!r} has arguments {sorted(unknown)} that parity does not know.")
    rule: VRTRule = "random" if arguments.get("random_select_patch", True) else "extreme"
    count = arguments.get("random_select_patch_num", 5)
    if count == -1:
        rule = "all"
    rng = np.random.RandomState(run["np_seed"])
    processor = model.processor
    samples = [_sample(fixture, model, item, rule, count, rng) for item in items]
    return collate([processor.encode(sample) for sample in samples], processor.pad_token_id)


def _sample(fixture: Fixture, model, item: dict, rule: VRTRule, count: int, rng: np.random.RandomState) -> Sample:
    path = fixture.root / item["image_path"][0]
    image = open_image(path)
    grid_w = model.processor.policy.grid(image.height, image.width)[1]
    solution = item["solution"]
    pieces: list[str | Group] = []
    for position, part in enumerate(_PLACEHOLDER.split(solution["text"])):
        if position % 2 == 0:
            pieces.append(part)
            continue
        entry = solution["objects"][int(part)]
        target = ObjectTarget(entry["label"], tuple(entry["bbox"]), tuple(entry["patches"]), entry.get("rle"))
        pieces.append(Group(target, choose_vrts(np.asarray(entry["patches"]), grid_w, rule, count, rng)))
    return Sample.single(str(path), "detect", path, item["problem"], merge_text(pieces))


def settings_of_run(arguments: dict[str, Any]) -> tuple[LossSettings, bool]:
    """Our settings for the released switches, and whether prototypes go to the decoder (warm-up)."""
    box = arguments.get("use_bbox_loss", True)
    settings = LossSettings(
        robust=arguments.get("use_sft_vp_mask", True),
        weights={
            "box": box,
            "mask": arguments.get("use_mask_loss", True),
            # Released code computes the score's loss inside that of the box.
            "score": box and arguments.get("use_score_loss", True),
        },
        box_targets="bfloat16",
    )
    # The released warm-up lasts for the first quarter of the epochs, 300 steps at most.
    early = (
        arguments.get("epoch", 0) < arguments.get("num_train_epochs", 1) / 4 and arguments.get("global_step", 0) < 300
    )
    return settings, bool(arguments.get("use_warm_up", False)) and early


def _compare_ids(fixture: Fixture, tag: str, run: dict, batch: Batch, pad: int, report: Report) -> None:
    tensors = fixture.tensors(f"batch{tag}")
    ids = tensors["input_ids"] if run.get("input_ids") is None else torch.tensor(run["input_ids"])
    theirs = [_trim(row, pad) for row in fixture.to_local(ids)]
    ours = [_trim(row[mask.bool()], pad) for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    report.equal("ids, with VRT picks", torch.cat(ours), torch.cat(theirs))


def _trim(row: Tensor, pad: int) -> Tensor:
    kept = torch.nonzero(row != pad).flatten()
    return row[kept[0] : kept[-1] + 1]


def _compare_targets(fixture: Fixture, tag: str, batch: Batch, report: Report) -> None:
    tensors = fixture.tensors(f"batch{tag}")
    report.close("ground-truth boxes in bf16", batch.objects.boxes.bfloat16().float(), tensors["gt_boxes_bf16"], 0.0)
    masks = batch.objects.masks
    report.equal(
        "objects with a mask", [mask is not None for mask in masks], tensors["loss_mask"].flatten(1).any(1).tolist()
    )
    ours, theirs = [], []
    for mask, target in zip(masks, tensors["gt_mask"], strict=True):
        if mask is not None:
            ours.append(mask.flatten())
            theirs.append(target[: mask.shape[0], : mask.shape[1]].flatten().bool())
    report.equal("ground-truth mask cells", torch.cat(ours), torch.cat(theirs))


def _compare_gradients(fixture: Fixture, tag: str, run: dict, model, report: Report) -> None:
    # A parameter without gradient in the released code has zeros in ours: our step always calls every module.
    for name in run.get("n_none_grads", []):
        report.close(f"no gradient of {name}", _gradient(model, name).abs().max(), 0.0, tolerance=0.0)
    norms = run.get("grad_norms")
    if norms:
        ours = torch.stack([_gradient(model, name).norm() for name in norms])
        theirs = torch.tensor(list(norms.values()), dtype=torch.float64)
        worst = list(norms)[int((ours - theirs).abs().argmax())]
        report.close(f"{len(norms)} gradient norms, worst {worst}", ours, theirs, of_largest=MASK_TOLERANCE)
    if run["name"] == "base" and fixture.names(f"grads{tag}.safetensors"):
        for name, theirs in fixture.tensors(f"grads{tag}").items():
            report.close(f"gradient of {name}", _gradient(model, name), theirs)


def _gradient(model, released_name: str) -> Tensor:
    name, rows = our_key(released_name)
    parameter = model.get_parameter(name)
    gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    return gradient[:rows].detach() if rows else gradient.detach()
