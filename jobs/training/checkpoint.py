"""Checkpoints: every rank writes its own DeepSpeed files and its own state; Ray Train merges them into one folder."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from padt.errors import UserError

TAG = "deepspeed"


@dataclass(frozen=True)
class LoopState:
    """Where a run stands between two optimiser steps.

    Attributes:
        step: optimiser steps done.
        batch: global batches done; the next one to read.
        epoch: epoch of that batch.
        plan: fingerprint of data, mixture, seed, batch size and world size (``Plan.fingerprint``).
        run_id: MLflow run, or None.
        samples: samples seen by all ranks.
    """

    step: int
    batch: int
    epoch: int
    plan: dict[str, Any]
    run_id: str | None
    samples: int


def save(engine: Any, state: LoopState, folder: Path, rank: int) -> None:
    """Write one rank's part of a checkpoint. All ranks must call this together."""
    # Frozen weights are the base model's: with adapters a checkpoint is as small as what is trained.
    engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=_has_frozen(engine))
    values = {"state": asdict(state), "torch_rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        values["cuda_rng"] = torch.cuda.get_rng_state()
    torch.save(values, folder / f"rank-{rank:05d}.pt")
    if rank == 0:
        (folder / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")


def read_state(folder: Path) -> LoopState:
    """The state that a checkpoint was written at.

    Raises:
        UserError: the folder is not one of our checkpoints.
    """
    try:
        return LoopState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"The checkpoint {folder} cannot be read ({error}): remove the run's folder to start anew."
        ) from error


def check_plan(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuse to go on where the checkpoint's batch number would mean other batches.

    Raises:
        UserError: names the difference and what to do.
    """
    fixes = {
        "data": "the data sets or their mixture changed",
        "world_size": "the number of workers changed",
        "batch_size": "batch_size changed",
        "seed": "the seed changed",
        "window": "data.window changed",
        "last": "data.last changed",
        "batching": "data.batching changed",
        "lengths": "the tokenizer or the task's options changed",
        "augment": "data.augment changed",
    }
    for key in sorted(set(saved) | set(current)):
        if saved.get(key) != current.get(key):
            raise UserError(
                f"The checkpoint cannot be continued: {fixes.get(key, key)} ({saved.get(key)} -> {current.get(key)}). "
                "Set it back, or give another output folder to start anew."
            )


def load(engine: Any, folder: Path, rank: int) -> LoopState:
    """Restore weights, optimiser and random state of one rank. All ranks must call this together."""
    state = read_state(folder)
    path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not _has_frozen(engine))
    if path is None:
        raise UserError(f"The checkpoint {folder} lacks DeepSpeed's files: remove the run's folder to start anew.")
    values = torch.load(folder / f"rank-{rank:05d}.pt", weights_only=True)
    torch.set_rng_state(values["torch_rng"])
    if "cuda_rng" in values and torch.cuda.is_available():
        torch.cuda.set_rng_state(values["cuda_rng"])
    return state


def _has_frozen(engine: Any) -> bool:
    return not all(parameter.requires_grad for parameter in engine.module.parameters())


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A local folder for one rank's part while it is handed over."""
    with tempfile.TemporaryDirectory(prefix="padt-checkpoint-") as folder:
        yield Path(folder)
