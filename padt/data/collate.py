"""Batches: samples as arrays, and their collation into the tensors of one training step.

An ``EncodedSample`` is small and plain (numpy and Python values), so that data workers can make it and send it as
bytes; images stay 8-bit until they reach the device of the model.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from padt.data.image import VIT_PATCH
from padt.data.rle import decode
from padt.errors import UserError

IGNORED = -100
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
NO_PIXELS = np.zeros((0, 3, VIT_PATCH, VIT_PATCH), np.uint8)
"""Pixels of a sample without images."""


@dataclass(frozen=True)
class EncodedGroup:
    """One object of an answer, in numbers.

    Attributes:
        start: position in ``input_ids`` of the group's first VRT.
        vrts: VRTs of the group, as patch indices of the sample (images of a sample count on).
        image: image of the object within the sample.
        foreground: ``(n,)`` foreground patches, likewise indices of the sample.
        box: ``(x0, y0, x1, y1)`` normalised.
        mask: ``(4 h_vit, 4 w_vit)`` bool target on the decoder's grid, or None where the source has no mask.
    """

    start: int
    vrts: tuple[int, ...]
    image: int
    foreground: np.ndarray
    box: tuple[float, float, float, float]
    mask: np.ndarray | None


@dataclass(frozen=True)
class EncodedSample:
    """One sample, tokenised.

    Attributes:
        key, task: as in ``padt.data.tasks.Sample``.
        input_ids: ``(n,)`` int64 prompt and answer; the VRT of patch ``k`` is ``V + k``.
        supervised: ``(n,)`` bool, True for the tokens of all answers (their end tokens included).
        is_image: ``(n,)`` bool, True at image placeholders.
        pixels: uint8 ``(vit_patches, 3, 14, 14)``, all images of the sample.
        grids: ``(h_vit, w_vit)`` of each image.
        groups: the objects of the answer.
    """

    key: str
    task: str
    input_ids: np.ndarray
    supervised: np.ndarray
    is_image: np.ndarray
    pixels: np.ndarray
    grids: tuple[tuple[int, int], ...]
    groups: tuple[EncodedGroup, ...]

    @property
    def num_tokens(self) -> int:
        """Prompt and answer, image placeholders included."""
        return len(self.input_ids)

    def to_bytes(self) -> bytes:
        """Serialise for transport between our own processes (pickle: never read it from elsewhere)."""
        return pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def from_bytes(data: bytes) -> "EncodedSample":
        """The sample that ``to_bytes`` wrote."""
        return pickle.loads(data)


@dataclass
class SupervisedRows:
    """What the head is asked in training: only positions that predict a supervised token.

    Attributes:
        positions: ``(batch, rows)`` position whose state predicts the target; padding 0.
        targets: ``(batch, rows)`` token ids, ``V + k`` for the VRT of patch ``k``; padding -100.
        groups: ``(batch, rows)`` group (object of the batch) to which a VRT target belongs, -1 for text.
    """

    positions: Tensor
    targets: Tensor
    groups: Tensor


@dataclass(frozen=True)
class ObjectTargets:
    """Targets of the decoder, object after object over the batch.

    Attributes:
        counts: VRTs of each object.
        vrt_samples, vrt_positions: ``(sum(counts),)`` where each VRT stands in ``input_ids``.
        vrt_patches: ``(sum(counts),)`` index of each VRT's patch among all patches of the batch.
        images: image of each object within the batch.
        boxes: ``(objects, 4)`` xyxy normalised, fp32.
        masks: for each object its ``(4 h_vit, 4 w_vit)`` bool target, or None.
    """

    counts: list[int]
    vrt_samples: Tensor
    vrt_positions: Tensor
    vrt_patches: Tensor
    images: list[int]
    boxes: Tensor
    masks: list[Tensor | None]


@dataclass(frozen=True)
class Batch:
    """One step's tensors.

    Attributes:
        keys, tasks: of the samples.
        input_ids, attention_mask, mm_token_type_ids: ``(batch, positions)``, padded on the right.
        pixels: uint8 ``(vit_patches, 3, 14, 14)``, images packed.
        grid_thw: ``(images, 3)`` ViT patches, time 1.
        patch_counts: patches of each sample.
        supervised: rows that the head is asked; those of a sample without an answer are all padding.
        foreground: bool ``(objects, max_patches)``, patches of the object's own sample.
        objects: the decoder's targets.
    """

    keys: list[str]
    tasks: list[str]
    input_ids: Tensor
    attention_mask: Tensor
    mm_token_type_ids: Tensor
    pixels: Tensor
    grid_thw: Tensor
    patch_counts: list[int]
    supervised: SupervisedRows
    foreground: Tensor
    objects: ObjectTargets

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return _move(self, torch.device(device))


def cut_patches(image: np.ndarray) -> np.ndarray:
    """Cut a resized image into ViT patches: uint8 ``(H, W, 3)`` -> ``(vit_patches, 3, 14, 14)``.

    2x2 merge blocks come row by row; inside a block its four patches row by row (Qwen2.5-VL's order).
    """
    h, w = image.shape[0] // VIT_PATCH, image.shape[1] // VIT_PATCH
    blocks = image.reshape(h // 2, 2, VIT_PATCH, w // 2, 2, VIT_PATCH, 3)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(h * w, 3, VIT_PATCH, VIT_PATCH))


def normalize_pixels(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn stored patches into the vision tower's input.

    Args:
        pixels: uint8 ``(vit_patches, 3, 14, 14)``, merge blocks in raster order (``cut_patches``).
        dtype: of the result.

    Returns:
        ``(vit_patches, 1176)``: channel, then two equal temporal slices, then rows and columns.
    """
    mean = torch.tensor(IMAGE_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=pixels.device).view(1, 3, 1, 1)
    values = (pixels.float() / 255 - mean) / std
    return values.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(len(pixels), -1).to(dtype)


def mask_target(rle: dict[str, Any], h_vit: int, w_vit: int) -> np.ndarray:
    """A mask on the decoder's grid: bilinear at pixel centres, then thresholded at one half (released training).

    Args:
        rle: mask of the upright image.
        h_vit: rows of the resized image in ViT patches; each gives 4x4 cells.
        w_vit: columns.

    Returns:
        bool ``(4 h_vit, 4 w_vit)``.
    """
    mask = decode(rle).astype(np.float32)
    rows = _resize_rows(mask, 4 * h_vit)
    return _resize_rows(rows.T, 4 * w_vit).T > 0.5


def _resize_rows(values: np.ndarray, size: int) -> np.ndarray:
    length = values.shape[0]
    centre = (np.arange(size) + 0.5) * (length / size) - 0.5
    low = np.floor(centre)
    weight = (centre - low).astype(np.float32)[:, None]
    first = np.clip(low, 0, length - 1).astype(int)
    second = np.clip(low + 1, 0, length - 1).astype(int)
    return values[first] * (1 - weight) + values[second] * weight


def collate(samples: Sequence[EncodedSample], pad_token_id: int) -> Batch:
    """Pad and pack samples into a batch.

    A batch without any image gets one black image of one patch, which no position refers to: every rank of a
    distributed run must call the vision tower in every step. Objects are treated alike by the model.
    """
    if not samples:
        raise UserError("An empty batch was asked for: give at least one sample.")
    length = max(sample.num_tokens for sample in samples)
    input_ids = np.full((len(samples), length), pad_token_id, np.int64)
    attention_mask = np.zeros((len(samples), length), np.int64)
    image_tokens = np.zeros((len(samples), length), np.int64)
    for row, sample in enumerate(samples):
        input_ids[row, : sample.num_tokens] = sample.input_ids
        attention_mask[row, : sample.num_tokens] = 1
        image_tokens[row, : sample.num_tokens] = sample.is_image
    grids = [grid for sample in samples for grid in sample.grids]
    pixels = [sample.pixels for sample in samples if sample.grids]
    if not grids:
        grids, pixels = [(2, 2)], [np.zeros((4, 3, VIT_PATCH, VIT_PATCH), np.uint8)]
    patch_counts = [sum(h * w // 4 for h, w in sample.grids) for sample in samples]
    return Batch(
        keys=[sample.key for sample in samples],
        tasks=[sample.task for sample in samples],
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        mm_token_type_ids=torch.from_numpy(image_tokens),
        pixels=torch.from_numpy(np.concatenate(pixels)),
        grid_thw=torch.tensor([(1, h, w) for h, w in grids]),
        patch_counts=patch_counts,
        supervised=_supervised_rows(samples),
        foreground=_foreground(samples, max(1, *patch_counts)),
        objects=_objects(samples, patch_counts),
    )


def _supervised_rows(samples: Sequence[EncodedSample]) -> SupervisedRows:
    columns = [np.flatnonzero(sample.supervised) for sample in samples]
    width = max(1, *(len(column) for column in columns))
    positions = np.zeros((len(samples), width), np.int64)
    targets = np.full((len(samples), width), IGNORED, np.int64)
    groups = np.full((len(samples), width), -1, np.int64)
    number = 0
    for row, (sample, column) in enumerate(zip(samples, columns, strict=True)):
        positions[row, : len(column)] = column - 1
        targets[row, : len(column)] = sample.input_ids[column]
        of_position = np.full(sample.num_tokens, -1, np.int64)
        for group in sample.groups:
            of_position[group.start : group.start + len(group.vrts)] = number
            number += 1
        groups[row, : len(column)] = of_position[column]
    return SupervisedRows(torch.from_numpy(positions), torch.from_numpy(targets), torch.from_numpy(groups))


def _foreground(samples: Sequence[EncodedSample], width: int) -> Tensor:
    rows = [group.foreground for sample in samples for group in sample.groups]
    foreground = np.zeros((len(rows), width), bool)
    for index, patches in enumerate(rows):
        foreground[index, patches] = True
    return torch.from_numpy(foreground)


def _objects(samples: Sequence[EncodedSample], patch_counts: list[int]) -> ObjectTargets:
    counts: list[int] = []
    of_sample: list[int] = []
    positions: list[int] = []
    patches: list[int] = []
    images: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    masks: list[Tensor | None] = []
    first_image = first_patch = 0
    for row, sample in enumerate(samples):
        for group in sample.groups:
            counts.append(len(group.vrts))
            of_sample.extend([row] * len(group.vrts))
            positions.extend(range(group.start, group.start + len(group.vrts)))
            patches.extend(first_patch + vrt for vrt in group.vrts)
            images.append(first_image + group.image)
            boxes.append(group.box)
            masks.append(None if group.mask is None else torch.from_numpy(group.mask))
        first_image += len(sample.grids)
        first_patch += patch_counts[row]
    return ObjectTargets(
        counts=counts,
        vrt_samples=torch.tensor(of_sample, dtype=torch.long),
        vrt_positions=torch.tensor(positions, dtype=torch.long),
        vrt_patches=torch.tensor(patches, dtype=torch.long),
        images=images,
        boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        masks=masks,
    )


def _move(value, device: torch.device):
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Batch | ObjectTargets | SupervisedRows):
        return replace(value, **{field.name: _move(getattr(value, field.name), device) for field in fields(value)})
    if isinstance(value, list) and value and isinstance(value[0], Tensor | None):
        return [_move(item, device) for item in value]
    return value
