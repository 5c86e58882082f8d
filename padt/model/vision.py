"""Image features: what the vision tower gives to the language model, to the vocabulary and to the object decoder.

The tower permutes 2x2 merge blocks into windows. It puts its merged features back in raster order, but leaves the
pre-merger features and the rotary tables in window order. ``feature_order = "raster"`` puts these back too, so that
everything lies in block-raster order: blocks row by row, inside a block its four ViT patches row by row.
``"reference"`` keeps the mixed orders that the released weights were trained with: pre-merger features in window order,
beside prototypes and a mask grid that count in raster order.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

if TYPE_CHECKING:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel


@dataclass
class ImageFeatures:
    """Features of the images of a batch, packed image after image.

    Attributes:
        merged: ``(patches, hidden)`` merged features in raster order, one per 28x28-pixel patch.
        high_res: ``(vit_patches, vision_hidden)`` pre-merger features, in the order that ``feature_order`` says.
        cos, sin: ``(vit_patches, head_dim)`` rotary tables of the vision tower in the same order.
        grids: ``(h_vit, w_vit)`` of each image, in ViT patches.
    """

    merged: Tensor
    high_res: Tensor
    cos: Tensor
    sin: Tensor
    grids: list[tuple[int, int]]

    @property
    def patch_counts(self) -> list[int]:
        """Patches of each image."""
        return [h * w // 4 for h, w in self.grids]

    @property
    def vit_counts(self) -> list[int]:
        """ViT patches of each image."""
        return [h * w for h, w in self.grids]


def encode_images(
    visual: "Qwen2_5_VisionTransformerPretrainedModel", pixel_values: Tensor, grid_thw: Tensor, feature_order: str
) -> ImageFeatures:
    """Run the vision tower once over all images of a batch.

    Args:
        visual: Qwen2.5-VL's vision tower.
        pixel_values: ``(vit_patches, 1176)``.
        grid_thw: ``(images, 3)``; time is 1.
        feature_order: ``raster`` or ``reference``.
    """
    output = visual(pixel_values.to(visual.dtype), grid_thw=grid_thw)
    return order_features(visual, output.last_hidden_state, output.pooler_output, grid_thw, feature_order)


def order_features(
    visual: "Qwen2_5_VisionTransformerPretrainedModel",
    last_hidden_state: Tensor,
    merged: Tensor,
    grid_thw: Tensor,
    feature_order: str,
) -> ImageFeatures:
    """Bring the tower's output into ``feature_order``.

    Args:
        visual: Qwen2.5-VL's vision tower.
        last_hidden_state: ``(vit_patches, vision_hidden)``, in window order.
        merged: ``(patches, hidden)``, in raster order.
        grid_thw: ``(images, 3)``.
        feature_order: ``raster`` or ``reference``.
    """
    merge = visual.spatial_merge_size
    window_index, _ = get_vision_window_index(
        grid_thw, spatial_merge_size=merge, window_size=visual.window_size, patch_size=visual.patch_size
    )
    positions = get_vision_position_ids(grid_thw, merge)
    cos, sin = visual.rotary_pos_emb(last_hidden_state, positions)
    if feature_order == "raster":
        high_res = _permute_blocks(last_hidden_state, torch.argsort(window_index), merge)
    else:
        high_res = last_hidden_state
        cos, sin = (_permute_blocks(table, window_index, merge) for table in (cos, sin))
    grids = [(int(h), int(w)) for _, h, w in grid_thw.tolist()]
    return ImageFeatures(merged=merged, high_res=high_res, cos=cos, sin=sin, grids=grids)


def pad_images(packed: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Split packed rows by image and pad: ``(rows, d)`` -> ``(images, max, d)`` and a mask ``(images, max)``."""
    padded = pad_sequence(packed.split(counts), batch_first=True)
    sizes = torch.tensor(counts, device=packed.device)
    mask = torch.arange(padded.shape[1], device=packed.device)[None] < sizes[:, None]
    return padded, mask


def _permute_blocks(rows: Tensor, index: Tensor, merge: int) -> Tensor:
    blocks = rows.reshape(-1, merge * merge, rows.shape[-1])
    return blocks[index.to(rows.device)].reshape(rows.shape)
