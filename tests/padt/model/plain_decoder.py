"""The object decoder written down plainly, one object after the other, each with an image map of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half

from padt.model.decoder import BOX, MASK, SCORE, ObjectDecoder
from padt.model.decoder_block import DecoderAttention, TwoWayBlock
from padt.model.vision import ImageFeatures

Rotary = tuple[Tensor, Tensor]


def decode_plainly(
    decoder: ObjectDecoder,
    states: Tensor,
    counts: list[int],
    object_image: list[int],
    images: ImageFeatures,
    prototypes: Tensor,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """What ``decoder(...)`` must give."""
    low_res = decoder.input_projection(prototypes).split(images.patch_counts)
    tables = [rows.split(images.vit_counts) for rows in (images.high_res, images.cos, images.sin)]
    features = decoder.input_projection(states) + decoder.vp_embedding.weight
    boxes, scores, masks = [], [], []
    for vrts, number in zip(features.split(counts), object_image, strict=True):
        high_res, cos, sin = (table[number] for table in tables)
        query = position = torch.cat([decoder.bbox_score_mask_tokens.weight, vrts])[None]
        query, image = block(decoder.low_res_transformer, query, position, low_res[number][None], (cos[::4], sin[::4]))
        image = decoder.high_res_norm(image.repeat_interleave(4, dim=1) + high_res)
        query, image = block(decoder.high_res_transformer1, query, position, image, (cos, sin))
        query, image = block(decoder.high_res_transformer2, query, position, image, (cos, sin))
        boxes.append(decoder.bbox_prediction(query[:, BOX]).sigmoid())
        scores.append(decoder.score_prediction(query[:, SCORE])[0])
        cells = decoder.mask_output_upscaling1(image[0]).unflatten(-1, (4, -1))
        cells = decoder.mask_output_upscaling2(cells).unflatten(-1, (4, -1))
        logits = cells @ decoder.mask_output_mlp(query[0, MASK])
        masks.append(to_grid(logits.unflatten(1, (2, 2)).unflatten(3, (2, 2)), images.grids[number], decoder))
    return torch.cat(boxes), torch.cat(scores), masks


def block(module: TwoWayBlock, query: Tensor, position: Tensor, image: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """One block, pre-norm: ``(1, n, d)`` and ``(1, items, d)``."""
    normed = module.norm1(query)
    query = query + attend(module.self_attn, normed + position, normed + position, normed)
    keys = module.norm3(image)
    query = query + attend(
        module.cross_attn_query_to_image, module.norm2(query) + position, keys, keys, key_rotary=rotary
    )
    query = query + module.mlp(module.norm4(query))
    normed = module.norm5(query)
    added = attend(
        module.cross_attn_image_to_query, module.norm6(image), normed + position, normed, query_rotary=rotary
    )
    return query, image + added


def attend(
    attention: DecoderAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_rotary: Rotary | None = None,
    key_rotary: Rotary | None = None,
) -> Tensor:
    """Multi-head attention."""
    q, k, v = (
        attention.heads(rows) for rows in (attention.q_proj(query), attention.k_proj(key), attention.v_proj(value))
    )
    mixed = F.scaled_dot_product_attention(rotate(q, query_rotary), rotate(k, key_rotary), v)
    return attention.proj(mixed.transpose(1, 2).flatten(2))


def rotate(rows: Tensor, rotary: Rotary | None) -> Tensor:
    """Rotate ``(1, heads, items, e)``."""
    if rotary is None:
        return rows
    cos, sin = (table.float() for table in rotary)
    return (rows.float() * cos + rotate_half(rows.float()) * sin).to(rows.dtype)


def to_grid(cells: Tensor, grid: tuple[int, int], decoder: ObjectDecoder) -> Tensor:
    """``(items, 2, 2, 2, 2)`` -> ``(4 h_vit, 4 w_vit)``, an item at a time."""
    h, w = grid
    mask = torch.zeros(4 * h, 4 * w, dtype=cells.dtype)
    for index, item in enumerate(cells):
        row, column = divmod(index, w)
        if decoder.feature_order == "raster":
            patch, inside = divmod(index, 4)
            row, column = 2 * (patch // (w // 2)) + inside // 2, 2 * (patch % (w // 2)) + inside % 2
        mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = item.permute(0, 2, 1, 3).reshape(4, 4)
    return mask
