"""An image's map as each object of the image sees it, without a dense map for each object.

What an object adds to the map in a block is an attention over its few query tokens: at every position a mixture of the
same ``k = h (n - 1) + 1`` vectors. A linear map ``W`` of the sum is therefore ``W`` of the shared map,
computed once for the image, plus ``W`` of these few vectors, mixed again: exactly, and with a tenth of the work. RMS
norms fit in, since they scale each position by one number: ``W norm(x) = W (g x) / rms(x)``; and a squared length is
that of the shared part, plus products of the vectors with it and with each other.

Letters in shapes, here and in the decoder:

    o   objects of a chunk; 1 where no object has added anything yet
    m   positions of the map ("items"): patches in the first block, ViT patches in the two others
    n   tokens of a query: box, score, mask, and the VRTs of the object
    d   width of the decoder
    h   heads; e = d / h, the width of a head
    k   vectors that a mixture is made of: h (n - 1) + 1 of each block that has added some, or h e + 1 if that is less
    q   rows that read the map: h n
    r   positions of a finer map to one of this map
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

LinearMap = Callable[[Tensor], Tensor]
# Values of a tile on CPU: 2 MiB in fp32, so that steps after each other find it in the cache.
CPU_TILE = 2**19


class RMSNorm(Qwen2_5_VLRMSNorm):
    """RMS norm whose gain can be applied alone."""

    def forward(self, rows: Tensor, normalize: bool = True) -> Tensor:
        """``(..., d)`` -> ``(..., d)``; without ``normalize`` only the gain, which is a linear map."""
        return super().forward(rows) if normalize else self.weight * rows

    def inverse_rms(self, image: "ImageMap") -> Tensor:
        """What the positions of a map are multiplied with, ``(o or 1, m)``, fp32."""
        return torch.rsqrt(image.squares.clamp(min=0) / image.shared.shape[1] + self.variance_epsilon)


class Projection(nn.Linear):
    """A linear map that can also be applied without its bias."""

    def forward(self, rows: Tensor | None, bias: bool = True) -> Tensor:
        """``(..., in)`` -> ``(..., out)``; without rows the bias ``(out,)``, for hooks may have to fetch it."""
        if rows is None:
            return self.bias
        return nn.functional.linear(rows, self.weight, self.bias if bias else None)


class HeadOutput(Projection):
    """The output projection of an attention: its input is the heads, one after the other."""

    def forward(self, rows: Tensor | None, bias: bool = True, by_head: bool = False) -> Tensor:
        """``(..., in)`` -> ``(..., out)``; by head, without bias: ``(o, h, n, e)`` -> ``(o, h, n, out)``."""
        if rows is None or not by_head:
            return super().forward(rows, bias)
        return torch.einsum("ohne,dhe->ohnd", rows, self.weight.unflatten(1, (rows.shape[1], -1)))


class HeadInput(Projection):
    """The value projection of an attention: its output is the heads, one after the other."""

    def forward(self, rows: Tensor | None, bias: bool = True, by_head: bool = False) -> Tensor:
        """``(..., in)`` -> ``(..., out)``; by head, without bias: ``(o, h, n, in)`` -> ``(o, h, n, e)``."""
        if rows is None or not by_head:
            return super().forward(rows, bias)
        return torch.einsum("ohnd,hed->ohne", rows, self.weight.unflatten(0, (rows.shape[1], -1)))


@dataclass(frozen=True)
class Mixture:
    """What objects have added to a map: at each position a mixture of a few vectors.

    Attributes:
        coefficients: ``(o, m, k)``.
        vectors: ``(o, k, d)``.
    """

    coefficients: Tensor
    vectors: Tensor

    def dense(self) -> Tensor:
        """``(o, m, d)``."""
        return self.coefficients @ self.vectors

    def plus(self, other: "Mixture | None") -> "Mixture":
        """Both together."""
        if other is None:
            return self
        coefficients = torch.cat([other.coefficients, self.coefficients], dim=2)
        return Mixture(coefficients, torch.cat([other.vectors, self.vectors], dim=1))

    def pooled(self, weights: Tensor) -> Tensor:
        """Weighted sums over the positions: ``(o, q, m)`` -> ``(o, q, d)``."""
        return (weights @ self.coefficients) @ self.vectors


@dataclass(frozen=True)
class ImageMap:
    """``scale * (shared + coarse) + fine``: the map of one image for a chunk of its objects.

    Attributes:
        shared: ``(m, d)``, the same for all objects.
        start: ``(o or 1, m)``, squared length of each position's row without ``fine``, fp32.
        scale: ``(o, m)``, by which a norm has multiplied, fp32; None = 1.
        coarse: what was added before that norm, at every ``repeats`` items alike.
        fine: what was added after it.
        repeats: items to a position of ``coarse``.
        before, latest: the map before the last addition, and this addition, which ``fine`` includes.
    """

    shared: Tensor
    start: Tensor
    scale: Tensor | None = None
    coarse: Mixture | None = None
    fine: Mixture | None = None
    repeats: int = 1
    before: "ImageMap | None" = None
    latest: Mixture | None = None

    @classmethod
    def of_shared(cls, shared: Tensor) -> "ImageMap":
        """A map ``(m, d)`` to which no object has added anything."""
        return cls(shared, _squares(shared)[None])

    def add(self, mixture: Mixture) -> "ImageMap":
        """The map with what the objects add to it, ``(o, m, k)`` coefficients of ``(o, k, d)`` vectors."""
        return replace(self, fine=mixture.plus(self.fine), before=self, latest=mixture)

    @cached_property
    def squares(self) -> Tensor:
        """``(o or 1, m)``, squared length of each position's row, fp32."""
        before, latest = self.before, self.latest
        if before is None or latest is None:
            return self.start
        # Products of the latest vectors with the map before them, and with each other.
        # In fp32: half precision has no number for the product of long rows.
        products = torch.matmul(self.shared.float(), latest.vectors.float().transpose(1, 2))
        if before.coarse is not None:
            products = products + self._products(before.coarse, latest).repeat_interleave(self.repeats, dim=1)
        if before.scale is not None:
            products = products * before.scale[..., None]
        if before.fine is not None:
            products = products + self._products(before.fine, latest)
        products = 2 * products + self._products(latest, latest)
        return before.squares + (latest.coefficients.float() * products).sum(-1)

    @staticmethod
    def _products(left: Mixture, right: Mixture) -> Tensor:
        """Products of a mixture with the vectors of another, ``(o, m, k)`` with the k of ``right``, fp32."""
        return left.coefficients.float() @ (left.vectors.float() @ right.vectors.float().transpose(1, 2))

    def refined(self, finer: Tensor, repeats: int, norm: RMSNorm) -> "ImageMap":
        """``norm(repeated + finer)``, where each position of this map is repeated.

        Args:
            finer: ``(m r, d)``; this map's shared rows, repeated, are part of it already.
            repeats: r, finer positions to one of this map.
            norm: applied to the sum.
        """
        assert self.fine is not None and self.coarse is None and self.scale is None
        added = self.fine.dense()
        gain = norm(finer.new_ones(finer.shape[1]), normalize=False)
        scale = norm.inverse_rms(ImageMap(finer, _squares_of_sum(finer, added, repeats)))
        squares = _squares_of_sum(finer * gain, added * gain, repeats) * scale.square()
        coarse = Mixture(self.fine.coefficients, self.fine.vectors * gain)
        return ImageMap(finer * gain, squares, scale, coarse, None, repeats)

    def pooled(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weighted sums over the positions.

        Args:
            weights: ``(o, q, m)``.

        Returns:
            The weights ``(o, q, m)`` of the shared rows, and the sums ``(o, q, d)`` of what was added, None = nothing.
        """
        sums = None if self.fine is None else self.fine.pooled(weights)
        if self.scale is not None:
            weights = weights * self.scale[:, None].to(weights.dtype)
        if self.coarse is not None:
            coarse = self.coarse.pooled(weights.unflatten(-1, (-1, self.repeats)).sum(-1))
            sums = coarse if sums is None else sums + coarse
        return weights, sums

    def projected(
        self, shared: Tensor, linear: LinearMap, bias: Tensor, budget: int, factor: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """``factor * linear(map) + bias``, tile by tile.

        Args:
            shared: ``(m, d)``, ``linear`` of the shared part.
            linear: without bias.
            bias: ``(d,)``.
            budget: values that a tile may have.
            factor: ``(o or 1, m)``; None = 1.

        Yields:
            The positions of a tile, and their rows ``(o or 1, positions of the tile, d)``.
        """
        coarse = None if self.coarse is None else linear(self.coarse.vectors)
        fine = None if self.fine is None else linear(self.fine.vectors)
        scale = self.scale if factor is None else factor if self.scale is None else self.scale * factor
        objects = max(len(vectors) for vectors in (coarse, fine, shared[None]) if vectors is not None)
        for tile in tiles(len(shared), objects * shared.shape[1], budget, self.repeats, shared.device):
            rows = shared[None, tile]
            if self.coarse is not None and coarse is not None:
                place = slice(tile.start // self.repeats, tile.stop // self.repeats)
                added = self.coarse.coefficients[:, place] @ coarse
                rows = (rows.unflatten(1, (-1, self.repeats)) + added[:, :, None]).flatten(1, 2)
            rows = rows + bias if scale is None else torch.addcmul(bias, rows, scale[:, tile, None].to(rows.dtype))
            if self.fine is not None and fine is not None:
                coefficients = self.fine.coefficients[:, tile]
                if factor is not None:
                    coefficients = coefficients * factor[:, tile, None].to(rows.dtype)
                rows = torch.baddbmm(rows.expand(len(fine), -1, -1), coefficients, fine)
            yield tile, rows

    def rows(self) -> Tensor:
        """The map itself, ``(o or 1, m, d)``; for a look inside."""
        tiles = self.projected(self.shared, lambda rows: rows, torch.zeros_like(self.shared[0]), self.shared.numel())
        return torch.cat([rows for _, rows in tiles], dim=1)


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32).square()


def _squares_of_sum(finer: Tensor, added: Tensor, repeats: int) -> Tensor:
    """Squared lengths of ``finer + repeated added``: ``(m r, d)``, ``(o, m, d)`` -> ``(o, m r)``."""
    grouped = finer.unflatten(0, (-1, repeats))
    # In fp32: half precision has no number for the product of long rows.
    products = torch.einsum("mrd,omd->omr", grouped.float(), added.float())
    return (_squares(grouped) + 2 * products + _squares(added)[..., None]).flatten(1)


def tiles(items: int, width: int, budget: int, multiple: int, device: torch.device) -> Iterator[slice]:
    """Cut positions of ``width`` values into tiles of about ``budget`` values, each of a ``multiple`` of positions."""
    if device.type == "cpu":
        budget = min(budget, CPU_TILE)
    step = max(1, budget // (width * multiple)) * multiple
    for start in range(0, items, step):
        yield slice(start, min(items, start + step))
