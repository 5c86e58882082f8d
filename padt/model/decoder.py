"""The object decoder: a group of VRT states and the image's features in; box, score and mask out.

Layout and key names follow the released PaDT decoder. A query is ``[box, score, mask, VRT 1, ..., VRT n]``. One block
works on the 28-pixel patches (prototypes), two on the 14-pixel ViT patches; each lets the query read the image and
then adds to the image map what the query says about it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm, rotate_half

from padt.config import VLDecoderConfig
from padt.model.vision import ImageFeatures, pad_images

BOX, SCORE, MASK, NUM_TOKENS = 0, 1, 2, 3
# Elements of the image map that one chunk of objects may hold: 64 Mi values are 256 MiB in fp32.
CHUNK_ELEMENTS = 64 * 2**20


class DecoderAttention(nn.Module):
    """Multi-head attention with biases, a key padding mask and optional 2-D rotary positions."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor,
        query_rotary: tuple[Tensor, Tensor] | None = None,
        key_rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend from ``(objects, n, d)`` to ``(objects, m, d)``; ``key_mask`` is ``(objects, m)``, True = present."""
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        q = _rotate(q, query_rotary)
        k = _rotate(k, key_rotary)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask[:, None, None, :])
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TwoWayBlock(nn.Module):
    """Query self-attention, query to image, MLP, then image to query; pre-norm, all residual."""

    def __init__(self, config: VLDecoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = DecoderAttention(width, config.num_heads)
        self.cross_attn_query_to_image = DecoderAttention(width, config.num_heads)
        self.cross_attn_image_to_query = DecoderAttention(width, config.num_heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.intermediate_size), nn.GELU(), nn.Linear(config.intermediate_size, width)
        )
        self.norm1 = Qwen2_5_VLRMSNorm(width, eps=1e-6)
        self.norm2 = Qwen2_5_VLRMSNorm(width, eps=1e-6)
        self.norm3 = Qwen2_5_VLRMSNorm(width, eps=1e-6)
        self.norm4 = Qwen2_5_VLRMSNorm(width, eps=1e-6)
        self.norm5 = Qwen2_5_VLRMSNorm(width, eps=1e-6)
        self.norm6 = Qwen2_5_VLRMSNorm(width, eps=1e-6)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        query_mask: Tensor,
        image: Tensor,
        image_mask: Tensor,
        rotary: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Update the query ``(objects, n, d)`` and the image map ``(objects, m, d)``.

        ``position`` is the initial query, added to queries and keys of the query side, never to values.
        """
        normed = self.norm1(query)
        query = query + self.self_attn(normed + position, normed + position, normed, query_mask)
        keys = self.norm3(image)
        query = query + self.cross_attn_query_to_image(
            self.norm2(query) + position, keys, keys, image_mask, key_rotary=rotary
        )
        query = query + self.mlp(self.norm4(query))
        normed = self.norm5(query)
        image = image + self.cross_attn_image_to_query(
            self.norm6(image), normed + position, normed, query_mask, query_rotary=rotary
        )
        return query, image


class ObjectDecoder(nn.Module):
    """Decodes groups of VRT states into boxes, scores and masks."""

    def __init__(self, config: VLDecoderConfig, feature_order: str) -> None:
        super().__init__()
        width = config.hidden_size
        self.feature_order = feature_order
        self.merge = config.spatial_merge_size
        self.input_projection = nn.Sequential(
            Qwen2_5_VLRMSNorm(config.llm_hidden_state, eps=1e-6),
            nn.Linear(config.llm_hidden_state, width),
            nn.GELU(),
            nn.Linear(width, width),
        )
        self.bbox_score_mask_tokens = nn.Embedding(NUM_TOKENS, width)
        self.vp_embedding = nn.Embedding(1, width)
        self.low_res_transformer = TwoWayBlock(config)
        self.high_res_norm = Qwen2_5_VLRMSNorm(width, eps=1e-6)
        self.high_res_transformer1 = TwoWayBlock(config)
        self.high_res_transformer2 = TwoWayBlock(config)
        self.bbox_prediction = _three_layers(width, 4)
        self.score_prediction = nn.Linear(width, 1)
        self.mask_output_mlp = _three_layers(width, width // 16)
        self.mask_output_upscaling1 = nn.Sequential(
            nn.Linear(width, width), Qwen2_5_VLRMSNorm(width, eps=1e-6), nn.GELU()
        )
        self.mask_output_upscaling2 = nn.Sequential(nn.Linear(width // 4, width // 4), nn.GELU())

    def forward(
        self, states: Tensor, counts: list[int], object_image: list[int], images: ImageFeatures, prototypes: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Decode all objects of a batch, in chunks under a memory budget.

        Args:
            states: ``(sum(counts), llm_hidden)`` states of the VRTs, object after object.
            counts: VRTs of each object; 0 is allowed.
            object_image: image of each object.
            images: features of the images.
            prototypes: ``(patches, llm_hidden)``, packed like ``images.merged``.

        Returns:
            Boxes ``(objects, 4)``, cxcywh normalised; scores ``(objects,)``, logits; and for each object its mask
            logits ``(4 h_vit, 4 w_vit)``, 3.5 pixels of the resized image a cell.
        """
        low_res, low_mask = pad_images(self.input_projection(prototypes), images.patch_counts)
        high_res, high_mask = pad_images(images.high_res, images.vit_counts)
        cos, _ = pad_images(images.cos, images.vit_counts)
        sin, _ = pad_images(images.sin, images.vit_counts)
        features = self.input_projection(states) + self._embedding(self.vp_embedding)
        tokens = self._embedding(self.bbox_score_mask_tokens)

        boxes: list[Tensor] = []
        scores: list[Tensor] = []
        masks: list[Tensor] = []
        per_chunk = max(1, CHUNK_ELEMENTS // max(1, high_res.shape[1] * high_res.shape[2]))
        pieces = features.split(counts)
        for start in range(0, len(counts), per_chunk):
            chunk = pieces[start : start + per_chunk]
            index = torch.tensor(object_image[start : start + per_chunk], device=states.device)
            query, query_mask = _pad_queries(tokens, chunk)
            position = query
            rotary = cos[index], sin[index]
            # The low-res rotary position of a patch is that of its first ViT patch.
            low_rotary = rotary[0][:, :: self.merge**2], rotary[1][:, :: self.merge**2]
            query, image = self.low_res_transformer(
                query, position, query_mask, low_res[index], low_mask[index], low_rotary
            )
            image = self.high_res_norm(image.repeat_interleave(self.merge**2, dim=1) + high_res[index])
            for block in (self.high_res_transformer1, self.high_res_transformer2):
                query, image = block(query, position, query_mask, image, high_mask[index], rotary)
            boxes.append(self.bbox_prediction(query[:, BOX]).sigmoid())
            scores.append(self.score_prediction(query[:, SCORE]).squeeze(-1))
            logits = self._mask_logits(query[:, MASK], image)
            grids = [images.grids[image_index] for image_index in object_image[start : start + per_chunk]]
            masks.extend(self._to_grid(cells, h, w) for cells, (h, w) in zip(logits, grids, strict=True))
        return torch.cat(boxes), torch.cat(scores), masks

    def _mask_logits(self, mask_token: Tensor, image: Tensor) -> Tensor:
        """``(objects, d)`` and ``(objects, items, d)`` -> ``(objects, items, 2, 2, 2, 2)``: halves a, b, then c, d."""
        cells = self.mask_output_upscaling1(image).unflatten(-1, (2, 2, -1))
        cells = self.mask_output_upscaling2(cells).unflatten(-1, (2, 2, -1))
        return torch.einsum("oiabcdk,ok->oiabcd", cells, self.mask_output_mlp(mask_token))

    def _to_grid(self, cells: Tensor, h_vit: int, w_vit: int) -> Tensor:
        cells = cells[: h_vit * w_vit]
        if self.feature_order == "raster":
            m = self.merge
            # Items are blocks row by row, inside a block its ViT patches row by row.
            cells = cells.view(h_vit // m, w_vit // m, m, m, 2, 2, 2, 2)
            return cells.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(4 * h_vit, 4 * w_vit)
        cells = cells.view(h_vit, w_vit, 2, 2, 2, 2)
        return cells.permute(0, 2, 4, 1, 3, 5).reshape(4 * h_vit, 4 * w_vit)

    @staticmethod
    def _embedding(module: nn.Embedding) -> Tensor:
        # Through the module's forward, not its weight, so that ZeRO stage 3 gathers it.
        return module(torch.arange(module.num_embeddings, device=module.weight.device))


def _three_layers(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))


def _pad_queries(tokens: Tensor, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    rows = [torch.cat([tokens, part]) for part in features]
    return pad_images(torch.cat(rows), [len(row) for row in rows])


def _rotate(rows: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    if rotary is None:
        return rows
    cos, sin = (table.unsqueeze(1).float() for table in rotary)
    wide = rows.float()
    return (wide * cos + rotate_half(wide) * sin).to(rows.dtype)
