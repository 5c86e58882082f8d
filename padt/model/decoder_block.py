"""A two-way block of the object decoder: a query reads the image's map, then the map reads the query.

The parts of the map that all objects of an image share are projected once for the image (:meth:`TwoWayBlock.share`),
what an object has added to it goes through its small subspace (``padt.model.image_map``).

The weights with which the map reads the query are what the map is then made of, and the values that the query reads
are summed in the subspace. So both are computed here, and fused kernels (SDPA, FlashAttention), which give neither,
serve only the attention among the query tokens. The weights are few: h x n for each position.

Letters in shapes: o objects of a chunk, m positions of the map, n tokens of a query, d width, h heads, e = d / h the
width of a head (all of them in ``padt.model.image_map``).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half

from padt.model.image_map import HeadInput, HeadOutput, ImageMap, Mixture, Projection, RMSNorm
from padt.pretrained.config import VLDecoderConfig

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SharedProjections:
    """Linear maps of an image's shared map, gains of the norms before them included, biases not.

    Attributes:
        keys, values: for the query that reads the image, ``(m, d)`` and ``(h, m, e)``.
        queries: for the image that reads the query, ``(m, d)``.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor


class DecoderAttention(nn.Module):
    """Weights of a multi-head attention with biases, and attention among the query tokens."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = Projection(hidden_size, hidden_size)
        self.k_proj = Projection(hidden_size, hidden_size)
        self.v_proj = HeadInput(hidden_size, hidden_size)
        self.proj = HeadOutput(hidden_size, hidden_size)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor) -> Tensor:
        """Attend from ``(o, n, d)`` to ``(o, n, d)``; ``key_mask`` is ``(o, n)``, True = present."""
        q, k, v = self.heads(self.q_proj(query)), self.heads(self.k_proj(key)), self.heads(self.v_proj(value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask[:, None, None, :])
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def heads(self, rows: Tensor) -> Tensor:
        """``(o, n, d)`` -> ``(o, h, n, e)``."""
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
        self.norm1 = RMSNorm(width, eps=1e-6)
        self.norm2 = RMSNorm(width, eps=1e-6)
        self.norm3 = RMSNorm(width, eps=1e-6)
        self.norm4 = RMSNorm(width, eps=1e-6)
        self.norm5 = RMSNorm(width, eps=1e-6)
        self.norm6 = RMSNorm(width, eps=1e-6)

    def share(self, rows: Tensor) -> SharedProjections:
        """Project an image's shared map ``(m, d)``, once for all of its objects."""
        read, write = self.cross_attn_query_to_image, self.cross_attn_image_to_query
        for_keys = self.norm3(rows, normalize=False)
        return SharedProjections(
            keys=read.k_proj(for_keys, bias=False),
            values=read.heads(read.v_proj(for_keys, bias=False)[None])[0],
            queries=write.q_proj(self.norm6(rows, normalize=False), bias=False),
        )

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        query_mask: Tensor,
        image: ImageMap,
        shared: SharedProjections,
        rotary: Rotary,
        budget: int,
    ) -> tuple[Tensor, ImageMap]:
        """Update the query ``(o, n, d)`` and the map of the objects' image.

        Args:
            query: ``(o, n, d)`` tokens.
            position: ``(o, n, d)`` the initial query, added to queries and keys of the query side, never to values.
            query_mask: ``(o, n)``, True = present.
            image: the map before the block.
            shared: :meth:`share` of its shared part.
            rotary: cosines and sines ``(m, e)`` of the map's positions.
            budget: values that a dense intermediate may have.
        """
        normed = self.norm1(query)
        query = query + self.self_attn(normed + position, normed + position, normed, query_mask)
        # Norms 3 and 6 differ in their gains only.
        inverse_rms = self.norm3.inverse_rms(image)
        query = query + self._read(self.norm2(query) + position, image, shared, inverse_rms, rotary, budget)
        query = query + self.mlp(self.norm4(query))
        normed = self.norm5(query)
        mixture = self._write(normed + position, normed, query_mask, image, shared, inverse_rms, rotary, budget)
        return query, image.add(mixture)

    def _read(self, query, image: ImageMap, shared: SharedProjections, inverse_rms, rotary, budget) -> Tensor:
        """Attention from the query to the map: ``(o, n, d)``."""
        attention = self.cross_attn_query_to_image
        tokens = attention.heads(attention.q_proj(query))
        scores = _scores(image, inverse_rms, shared.keys, attention.k_proj, self.norm3, tokens, rotary, budget)
        weights = scores.softmax(-1)
        heads, count = tokens.shape[1:3]
        # The values' norm goes into the weights; their bias comes back at the end, since weights sum to 1.
        weights = (weights * inverse_rms[:, None, None]).to(query.dtype).flatten(1, 2)
        weights, sums = image.pooled(weights)
        mixed = _per_head(weights.unflatten(1, (heads, count)), shared.values)
        if sums is not None:
            sums = self.norm3(sums, normalize=False).unflatten(1, (heads, count))
            mixed = mixed + attention.v_proj(sums, by_head=True)
        return attention.proj(mixed.transpose(1, 2).flatten(2) + attention.v_proj(None))

    def _write(
        self, key, value, key_mask, image: ImageMap, shared: SharedProjections, inverse_rms, rotary, budget
    ) -> Mixture:
        """Attention from the map to the query tokens, kept as a mixture of ``h (n - 1) + 1`` vectors."""
        attention = self.cross_attn_image_to_query
        tokens = attention.heads(attention.k_proj(key))
        scores = _scores(image, inverse_rms, shared.queries, attention.q_proj, self.norm6, tokens, rotary, budget)
        weights = scores.masked_fill(~key_mask[:, None, :, None], float("-inf")).softmax(2).to(value.dtype)
        values = attention.heads(attention.v_proj(value))
        # Weights sum to 1: the first token, which every object has, counts fully, and the others differ from it.
        first = attention.proj(values[:, :, 0].flatten(1))
        weights, values = weights[:, :, 1:], values[:, :, 1:] - values[:, :, :1]
        width = values.shape[-1]
        if values.shape[2] > width:
            # More tokens than a head is wide: its unit vectors span the same space.
            weights = values.transpose(2, 3) @ weights
            values = torch.eye(width, dtype=values.dtype, device=values.device).expand(*values.shape[:2], -1, -1)
        vectors = attention.proj(values, by_head=True).flatten(1, 2)
        coefficients = weights.flatten(1, 2).transpose(1, 2)
        return Mixture(F.pad(coefficients, (0, 1), value=1.0), torch.cat([vectors, first[:, None]], dim=1))


def _scores(
    image: ImageMap,
    inverse_rms: Tensor,
    shared: Tensor,
    linear: Projection,
    norm: RMSNorm,
    tokens: Tensor,
    rotary: Rotary,
    budget: int,
) -> Tensor:
    """Scaled products of tokens ``(o, h, n, e)`` with the rotated ``linear(norm(image))``.

    Rotating is linear: instead of the rows' halves those of the few tokens are exchanged.

    Returns:
        ``(o, h, n, m)``, fp32.
    """
    tokens = tokens.float() * tokens.shape[-1] ** -0.5
    turned = -rotate_half(tokens)
    cos, sin = (table.float() for table in rotary)

    def project(rows: Tensor) -> Tensor:
        return linear(norm(rows, normalize=False), bias=False)

    parts = []
    for tile, rows in image.projected(shared, project, linear(None), budget, inverse_rms):
        by_head = rows.float().unflatten(-1, (tokens.shape[1], -1)).transpose(1, 2)
        if len(rows) == 1:
            with_cos, with_sin = (by_head[0] * table[tile] for table in (cos, sin))
            parts.append(_per_head(tokens, with_cos.transpose(1, 2)) + _per_head(turned, with_sin.transpose(1, 2)))
        else:
            by_head = by_head.contiguous()
            with_cos, with_sin = (by_head * table[tile] for table in (cos, sin))
            parts.append(tokens @ with_cos.transpose(2, 3) + turned @ with_sin.transpose(2, 3))
    return torch.cat(parts, dim=-1)


def _per_head(rows: Tensor, table: Tensor) -> Tensor:
    """``(o, h, n, a)`` x ``(h, a, b)`` -> ``(o, h, n, b)``: one product for all objects."""
    product = rows.transpose(0, 1).flatten(1, 2) @ table
    return product.unflatten(1, (len(rows), -1)).transpose(0, 1)
