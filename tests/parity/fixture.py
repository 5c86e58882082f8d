"""Reading a fixture folder, and bringing its numbering and its key names to ours.

Nothing here knows a size: ids, grids, names of batches and runs all come from the folder.
"""

import json
import re
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from padt.data.collate import cut_patches, normalize_pixels
from padt.errors import UserError

MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")


class Fixture:
    """A folder of tensors and JSON that the released implementation wrote.

    Args:
        root: the folder.

    Raises:
        UserError: the folder has no config.json.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not (self.root / "config.json").is_file():
            raise UserError(f"{self.root} has no config.json: give the folder of a parity fixture.")

    @cached_property
    def config(self) -> dict[str, Any]:
        """Configuration of the released model, text fields at its top level."""
        values = self.json("config")
        return {**values, **values.get("text_config", {})}

    @property
    def vocabulary(self) -> int:
        """``V``: the number of embedding rows, and the id of the first VRT."""
        return self.config["vocab_size"]

    def names(self, pattern: str) -> list[str]:
        """Stems of the files that match, sorted."""
        return sorted(path.stem for path in self.root.glob(pattern))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file."""
        return load_file(self.root / f"{name}.safetensors")

    def json(self, name: str) -> Any:
        """The values of one file."""
        return json.loads((self.root / f"{name}.json").read_text(encoding="utf-8"))

    def assemble_model(self, folder: Path) -> Path:
        """Put weights, configuration and processor together as one model folder, as released."""
        for pattern in MODEL_FILES:
            for path in self.root.glob(pattern):
                shutil.copy(path, folder)
        for path in (self.root / "processor").iterdir():
            shutil.copy(path, folder)
        return folder

    # ------------------------------------------------------------------ images

    def resized(self, tag: str, index: int) -> np.ndarray:
        """Image of a batch as the released processor resized it: uint8 ``(H, W, 3)``."""
        return np.asarray(Image.open(self.root / f"images/{tag}{index}_resized.png").convert("RGB"))

    def pixel_values(self, tag: str, index: int) -> Tensor:
        """The vision tower's input for one image of a batch: ``(vit_patches, 1176)``."""
        return normalize_pixels(torch.from_numpy(cut_patches(self.resized(tag, index))))

    # ------------------------------------------------------------------ numbering

    def patch_counts(self, ids: Tensor) -> list[int]:
        """Patches of each sample, counted by its image placeholders."""
        return (ids == self.config["image_token_id"]).sum(dim=1).tolist()

    def to_local(self, ids: Tensor) -> Tensor:
        """Ids ``(batch, positions)`` in which VRTs count through the batch -> VRTs count in their own sample."""
        counts = self.patch_counts(ids)
        earlier = torch.tensor([sum(counts[:row]) for row in range(len(counts))])
        return torch.where(ids >= self.vocabulary, ids - earlier[:, None], ids)

    def to_local_logits(self, logits: Tensor, counts: list[int]) -> list[Tensor]:
        """Logits ``(batch, positions, V + all patches)`` -> for each sample ``(positions, V + own patches)``."""
        local, first = [], self.vocabulary
        for row, count in zip(logits, counts, strict=True):
            local.append(torch.cat([row[:, : self.vocabulary], row[:, first : first + count]], dim=-1))
            first += count
        return local


def small_pixels(tensors: dict[str, Tensor]) -> Tensor:
    """Input of ``vision_small``, whose two temporal slices differ (stored as whole thirty-seconds)."""
    return tensors["pixel_u8"].float() / 32 - 4


def our_key(released: str) -> tuple[str, int | None]:
    """Our parameter name for a released one, and how many leading rows are meant (``name[:2]``)."""
    rows = re.search(r"\[:(\d+)\]$", released)
    name = released[: rows.start()] if rows else released
    if name.startswith("visual."):
        name = f"model.{name}"
    elif name.startswith("model."):
        name = f"model.language_model.{name.removeprefix('model.')}"
    return name, int(rows.group(1)) if rows else None
