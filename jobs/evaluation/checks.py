"""What is looked at before the first answer, so that none is given in vain."""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from jobs.evaluation.samples import EvalSet
from jobs.evaluation.scoring import check_names
from padt.checkpoints.lora import is_adapter_folder
from padt.errors import UserError, install_command
from padt.pretrained.config import load_config
from padt.pretrained.weights import read_tensors

_HEADS = {
    "vl_decoder.bbox_prediction.": "boxes",
    "vl_decoder.score_prediction.": "scores",
}


def check_scorers(data: EvalSet, masks: bool) -> None:
    """Make sure that the answers to a set can be scored: packages, names of classes, ids of samples.

    Args:
        data: the set.
        masks: masks are scored.

    Raises:
        UserError: names what is missing or there twice.
    """
    detects = bool(data.of_task("detect"))
    if detects:
        check_names(data)
    if detects and find_spec("faster_coco_eval") is None:
        raise UserError(f"COCO AP needs faster-coco-eval: install it with `{install_command('eval')}`.")
    if masks and find_spec("pycocotools") is None:
        raise UserError(
            f"Mask metrics need pycocotools: install it with `{install_command('eval')}`, or give --no-masks."
        )
    doubled = [name for name, number in Counter(sample.id for sample in data.samples).items() if number > 1]
    if doubled:
        raise UserError(
            f"{data.index.url} holds {len(doubled)} samples more than once, for example {doubled[0]}: prepare it again."
        )


def wanted_masks(data: EvalSet, asked: bool | None) -> bool:
    """Whether masks are made and scored.

    Args:
        data: the set.
        asked: what the user said; None = where the set has masks.

    Raises:
        UserError: they were asked for, and the set has none.
    """
    if asked and not data.has_masks:
        raise UserError(
            f"{data.index.url} has no masks to measure masks with: leave --masks out, or prepare it from annotations "
            "with masks."
        )
    return data.has_masks if asked is None else asked


def check_heads(model: Path) -> None:
    """Make sure that a model has what makes boxes and scores: fresh parts would answer at random.

    Raises:
        UserError: it is a plain Qwen2.5-VL, or lacks a head.
    """
    if is_adapter_folder(model):
        # Base and adapter are put together, and checked, when they are loaded.
        return
    if load_config(model)[1] == "hub":
        raise UserError(
            f"{model} is a plain Qwen2.5-VL without object decoder, whose boxes and scores would be random: train it "
            "first with `padt train`."
        )
    names = list(read_tensors(model))
    for head, what in _HEADS.items():
        if not any(name.startswith(head) for name in names):
            raise UserError(f"{model} has no head for {what} ({head}*): copy or save the model again.")
