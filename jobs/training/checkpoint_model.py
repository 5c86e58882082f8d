"""A model folder from any checkpoint of a run, on one machine and without a cluster: `padt export CHECKPOINT`."""

import os
import posixpath
from pathlib import Path
from typing import Any

import torch

from jobs.common.config_tree import build_config
from jobs.common.model_reference import fetched
from jobs.training import checkpoint
from jobs.training.config import TrainConfig
from jobs.training.engine.deepspeed_engine import TAG
from jobs.training.engine.torch_engine import FILE
from jobs.training.model_card_facts import facts_of_run
from jobs.training.worker import load_for_training
from padt.checkpoints.loading import SHARD_SIZE, save_model
from padt.errors import UserError
from pipelines.io.storage import Folder


def is_checkpoint(reference: str) -> bool:
    """Whether a path or URL is a checkpoint of a training run, or the folder of its checkpoints."""
    if reference.startswith("models:") or "://" not in reference and not Path(reference).is_dir():
        return False
    folder = Folder(reference)
    return folder.exists("state.json") or _is_root(folder)


def _is_root(folder: Folder) -> bool:
    return any(folder.exists(f"{name}/state.json") for name in checkpoint.newest_first(folder))


def save_checkpoint_model(reference: str, out: str | os.PathLike, max_shard_size: int | str = SHARD_SIZE) -> Path:
    """Write the model that a run had at a checkpoint.

    Adapters are merged. The run's base model must be where it was.

    Args:
        reference: ``RUN/checkpoints/step-00000100``, or ``RUN/checkpoints`` for the newest that is whole; any URL.
        out: a new local folder.
        max_shard_size: largest weight file, in bytes or as ``5GB``.

    Raises:
        UserError: the checkpoint is damaged, or its run or base model is gone.
    """
    from padt.checkpoints.lora import merge

    url = _newest(reference) if _is_root(Folder(reference)) else reference.rstrip("/")
    parent, name = posixpath.split(url)
    if fault := checkpoint.damage(Folder(parent), name):
        raise UserError(f"The checkpoint {url} is not whole ({fault}): give another one of {parent}.")
    config = _config_of(posixpath.dirname(parent))
    with checkpoint.opened(url) as folder:
        state = checkpoint.read_state(folder)
        model, processor = model_at(config, folder)
    model.eval()
    if config.lora is not None:
        merge(model)
    facts = facts_of_run(config, state.step, mixture=state.plan["data"])
    return save_model(model, processor, out, facts=facts, max_shard_size=max_shard_size)


def _newest(reference: str) -> str:
    folder = Folder(reference)
    names = checkpoint.newest_first(folder)
    whole = next((name for name in names if checkpoint.damage(folder, name) is None), None)
    if whole is None:
        raise UserError(f"{reference} holds no whole checkpoint.")
    return posixpath.join(folder.url, whole)


def _config_of(run: str) -> TrainConfig:
    import yaml

    text = Folder(run).read_text("config.yaml")
    if text is None:
        raise UserError(
            f"{run} lacks config.yaml, which says what was trained: give a checkpoint where its run has left it, "
            "as RUN/checkpoints/step-00000100."
        )
    return build_config(TrainConfig, yaml.safe_load(text), source=posixpath.join(run, "config.yaml"))


def model_at(config: TrainConfig, folder: Path) -> tuple[Any, Any]:
    """Model, with adapters where there are any, and processor of a checkpoint, on the CPU.

    Args:
        config: of the run.
        folder: the checkpoint.

    Raises:
        UserError: the base model does not load, or the checkpoint is of another one.
    """
    alone = {"model": fetched(config.model), "zero_stage": 0, "engine": "torch", "workers": 1, "gpu": False}
    model, processor = load_for_training(config.model_copy(update=alone), torch.device("cpu"))
    weights = trained_weights(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            value = weights.get(name)
            if value is None or value.shape != parameter.shape:
                raise UserError(f"The checkpoint {folder} has no {name} of the model {config.model}.")
            parameter.copy_(value)
    return model, processor


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Trained weights of a checkpoint in fp32, by name, put together from the shares of all ranks.

    Raises:
        UserError: DeepSpeed wrote them, and it is not installed here.
    """
    if (folder / FILE).exists():
        return torch.load(folder / FILE, map_location="cpu", weights_only=True)["weights"]
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise UserError("This checkpoint was written by DeepSpeed: pip install deepspeed to read it.") from error
    if not list((folder / TAG).glob("*zero_pp_rank*optim_states.pt")):
        # Without ZeRO every rank holds all. The file is one of ours: it holds Python objects beside the weights.
        return torch.load(folder / TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)["module"]
    return get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)
