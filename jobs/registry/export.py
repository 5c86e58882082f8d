"""Export a model in the layout that other code reads; the work is ``padt.export``'s."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from jobs.common.model_reference import find_model

if TYPE_CHECKING:
    from padt.checkpoints.export import ExportLayout, ExportResult


def run_export(
    model: str | os.PathLike,
    out: str | os.PathLike,
    to: "ExportLayout",
    *,
    max_shard_size: int | str = "5GB",
    tracking_uri: str | None = None,
) -> "ExportResult":
    """Write a model as plain Qwen2.5-VL (``hub``), as released PaDT (``released``) or in our own layout (``padt``).

    Args:
        model: folder of any layout or of an adapter, ``OWNER/NAME`` on the Hub, or ``models:/padt@champion``; or a
            checkpoint of a training run (``jobs.training.checkpoint_model``).
        out: a new folder.
        to: the layout.
        max_shard_size: largest weight file.
        tracking_uri: registry to ask; default: the environment's.

    Raises:
        UserError: the model cannot be found or exported, or the output folder exists.
    """
    from jobs.training.checkpoint_model import is_checkpoint, save_checkpoint_model
    from padt.checkpoints.export import describe, export

    if is_checkpoint(str(model)):
        if to == "padt":
            return describe(save_checkpoint_model(str(model), out, max_shard_size), "padt")
        with TemporaryDirectory(prefix=".padt-checkpoint-", dir=Path(out).absolute().parent) as scratch:
            saved = save_checkpoint_model(str(model), Path(scratch) / "model")
            return export(saved, out, to, max_shard_size=max_shard_size)
    return export(find_model(model, tracking_uri).path, out, to, max_shard_size=max_shard_size)
