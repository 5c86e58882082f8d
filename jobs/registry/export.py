"""Export a model in the layout that other code reads; the work is ``padt.export``'s."""

import os
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
    """Write a model as plain Qwen2.5-VL (``hub``) or as released PaDT (``released``).

    Args:
        model: folder of any layout or of an adapter, ``OWNER/NAME`` on the Hub, or ``models:/padt@champion``.
        out: a new folder.
        to: the layout.
        max_shard_size: largest weight file.
        tracking_uri: registry to ask; default: the environment's.

    Raises:
        UserError: the model cannot be found or exported, or the output folder exists.
    """
    from padt.checkpoints.export import export

    return export(find_model(model, tracking_uri).path, out, to, max_shard_size=max_shard_size)
