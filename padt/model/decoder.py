"""The object decoder: a group of VRT states and the image's features in; box, score and mask out.

Layout and key names follow the released PaDT decoder. A query is ``[box, score, mask, VRT 1, ..., VRT n]``. One block
works on the 28-pixel patches (prototypes), two on the 14-pixel ViT patches; each lets the query read the image and
then adds to the image map what the query says about it.

Objects of an image start from the same map. What is the same for all is computed once (``SharedMaps``), and what an
object adds goes through a small subspace (``padt.model.image_map``); only the upscaling of the masks, which is not
linear, works on a map for each object. Objects are decoded in chunks under ``VLDecoderConfig.memory_budget_mb``.

Letters in shapes: o objects of a chunk, m positions of the map (patches at first, then ViT patches), n tokens of a
query, d width (all of them in ``padt.model.image_map``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from padt.model.decoder_block import Rotary, SharedProjections, TwoWayBlock
from padt.model.image_map import ImageMap, Projection, RMSNorm
from padt.model.vision import ImageFeatures, pad_images
from padt.pretrained.config import VLDecoderConfig

BOX, SCORE, MASK, NUM_TOKENS = 0, 1, 2, 3
# Values that the attentions of one object hold at a time, for each item and each of ``heads x tokens``: coefficients of
# three blocks, their products, scores.
ATTENTION_VALUES = 20
# Maps that a step with dense maps holds at a time.
DENSE_VALUES = 8


@dataclass(frozen=True)
class SharedMaps:
    """What the objects of one image have in common.

    Attributes:
        low_rows: ``(m, d)`` over the patches, the projected prototypes.
        high_rows: ``(m, d)`` over the ViT patches, these and the pre-merger features, before the norm.
        low, high1, high2: projections of the three blocks.
        mask: ``(m, d)``, first linear map of the mask's upscaling; None = no masks.
        low_rotary, high_rotary: tables of the patches and of the ViT patches, cosines and sines ``(m, e)``.
    """

    low_rows: Tensor
    high_rows: Tensor
    low: SharedProjections
    high1: SharedProjections
    high2: SharedProjections
    mask: Tensor | None
    low_rotary: Rotary
    high_rotary: Rotary


class ObjectDecoder(nn.Module):
    """Decodes groups of VRT states into boxes, scores and masks."""

    def __init__(self, config: VLDecoderConfig, feature_order: str) -> None:
        super().__init__()
        width = config.hidden_size
        self.feature_order = feature_order
        self.merge = config.spatial_merge_size
        self.memory_budget_mb = config.memory_budget_mb
        # Set by padt.model.checkpointing and by transformers' own switch: chunks are then decoded again in backward.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        self.input_projection = nn.Sequential(
            RMSNorm(config.llm_hidden_state, eps=1e-6),
            nn.Linear(config.llm_hidden_state, width),
            nn.GELU(),
            nn.Linear(width, width),
        )
        self.bbox_score_mask_tokens = nn.Embedding(NUM_TOKENS, width)
        self.vp_embedding = nn.Embedding(1, width)
        self.low_res_transformer = TwoWayBlock(config)
        self.high_res_norm = RMSNorm(width, eps=1e-6)
        self.high_res_transformer1 = TwoWayBlock(config)
        self.high_res_transformer2 = TwoWayBlock(config)
        self.bbox_prediction = _three_layers(width, 4)
        self.score_prediction = nn.Linear(width, 1)
        self.mask_output_mlp = _three_layers(width, width // 16)
        self.mask_output_upscaling1 = nn.Sequential(Projection(width, width), RMSNorm(width, eps=1e-6), nn.GELU())
        self.mask_output_upscaling2 = nn.Sequential(nn.Linear(width // 4, width // 4), nn.GELU())

    def forward(
        self,
        states: Tensor,
        counts: list[int],
        object_image: list[int],
        images: ImageFeatures,
        prototypes: Tensor,
        masks: bool = True,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Decode all objects of a batch, in chunks under a memory budget.

        Args:
            states: ``(sum(counts), llm_hidden)`` states of the VRTs, object after object.
            counts: VRTs of each object; 0 is allowed.
            object_image: image of each object.
            images: features of the images.
            prototypes: ``(patches, llm_hidden)``, packed like ``images.merged``.
            masks: decode masks too; without, their list is empty.

        Returns:
            Boxes ``(objects, 4)``, cxcywh normalised, fp32; scores ``(objects,)``, logits; and for each object its mask
            logits ``(4 h_vit, 4 w_vit)``, 3.5 pixels of the resized image a cell.
        """
        low_res = self.input_projection(prototypes).split(images.patch_counts)
        features = (self.input_projection(states) + self._embedding(self.vp_embedding)).split(counts)
        tokens = self._embedding(self.bbox_score_mask_tokens)
        tables = (images.high_res, images.cos, images.sin)
        per_image = list(zip(*(rows.split(images.vit_counts) for rows in tables), strict=True))
        recompute = self.gradient_checkpointing and self.training
        decode = partial(self._gradient_checkpointing_func, self._decode) if recompute else self._decode
        order: list[int] = []
        boxes: list[Tensor] = []
        scores: list[Tensor] = []
        logits: list[Tensor] = []
        for image in sorted(set(object_image)):
            high_res, cos, sin = per_image[image]
            shared = self._share(low_res[image], high_res, (cos, sin), masks)
            objects = [index for index, own in enumerate(object_image) if own == image]
            for chunk in self._chunks(objects, counts, high_res):
                query, query_mask = _pad_queries(tokens, [features[index] for index in chunk])
                box, score, cells = decode(query, query_mask, shared)
                boxes.append(box)
                scores.append(score)
                logits.extend(self._to_grid(own, *images.grids[image]) for own in cells)
                order.extend(chunk)
        back = sorted(range(len(order)), key=order.__getitem__)
        index = torch.tensor(back, device=states.device)
        return torch.cat(boxes)[index], torch.cat(scores)[index], [logits[place] for place in back] if masks else []

    def _chunks(self, objects: list[int], counts: list[int], high_res: Tensor) -> Iterator[list[int]]:
        """Cut the objects of an image into chunks under the memory budget, at least one object in each."""
        heads = self.low_res_transformer.self_attn.num_heads
        tokens = NUM_TOKENS + max(counts[index] for index in objects)
        values = ATTENTION_VALUES * len(high_res) * heads * tokens
        size = max(1, self._budget(high_res) // values)
        for start in range(0, len(objects), size):
            yield objects[start : start + size]

    def _budget(self, rows: Tensor) -> int:
        return int(self.memory_budget_mb * 2**20) // rows.element_size()

    def _share(self, low_res: Tensor, high_res: Tensor, rotary: Rotary, masks: bool) -> SharedMaps:
        """Compute what the objects of an image have in common."""
        repeats = self.merge**2
        rows = low_res.repeat_interleave(repeats, dim=0) + high_res
        scaled = self.high_res_norm(rows, normalize=False)
        return SharedMaps(
            low_rows=low_res,
            high_rows=rows,
            low=self.low_res_transformer.share(low_res),
            high1=self.high_res_transformer1.share(scaled),
            high2=self.high_res_transformer2.share(scaled),
            mask=self.mask_output_upscaling1[0](scaled, bias=False) if masks else None,
            # The low-res rotary position of a patch is that of its first ViT patch.
            low_rotary=(rotary[0][::repeats], rotary[1][::repeats]),
            high_rotary=rotary,
        )

    def _decode(self, query: Tensor, query_mask: Tensor, shared: SharedMaps) -> tuple[Tensor, Tensor, Tensor]:
        """Objects of one image, ``(o, n, d)`` -> boxes, score logits, and mask cells of :meth:`_mask_logits`."""
        position = query
        budget = self._budget(query) // DENSE_VALUES
        query, image = self.low_res_transformer(
            query, position, query_mask, ImageMap.of_shared(shared.low_rows), shared.low, shared.low_rotary, budget
        )
        image = image.refined(shared.high_rows, self.merge**2, self.high_res_norm)
        for block, own in ((self.high_res_transformer1, shared.high1), (self.high_res_transformer2, shared.high2)):
            query, image = block(query, position, query_mask, image, own, shared.high_rotary, budget)
        # In fp32: half precision has only 256 or 2,048 numbers between the middle of a picture and its end.
        boxes = self.bbox_prediction(query[:, BOX]).float().sigmoid()
        scores = self.score_prediction(query[:, SCORE]).squeeze(-1)
        if shared.mask is None:
            return boxes, scores, boxes.new_zeros(0)
        return boxes, scores, self._mask_logits(query[:, MASK], image, shared.mask, budget)

    def _mask_logits(self, mask_token: Tensor, image: ImageMap, shared: Tensor, budget: int) -> Tensor:
        """``(o, d)`` and a map -> ``(o, m, 2, 2, 2, 2)``: halves a, b, then c, d."""
        linear, *rest = self.mask_output_upscaling1
        kernel = self.mask_output_mlp(mask_token)[:, :, None]
        parts = []
        for _, cells in image.projected(shared, lambda rows: linear(rows, bias=False), linear(None), budget):
            for step in rest:
                cells = step(cells)
            cells = self.mask_output_upscaling2(cells.unflatten(-1, (4, -1)))
            logits = cells.flatten(1, 2).unflatten(-1, (4, -1)).flatten(1, 2) @ kernel
            parts.append(logits.view(len(cells), -1, 2, 2, 2, 2))
        return torch.cat(parts, dim=1)

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


def _pad_queries(tokens: Tensor, features: list[Tensor]) -> tuple[Tensor, Tensor]:
    rows = [torch.cat([tokens, part]) for part in features]
    return pad_images(torch.cat(rows), [len(row) for row in rows])


def initialize_part(decoder: ObjectDecoder, module: nn.Module) -> None:
    """Draw the first values of one module of a decoder.

    Xavier for linear maps, zero biases; small heads, so that first boxes and scores are central, not extreme.
    """
    if isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=0.5)
    elif isinstance(module, nn.Linear):
        # The box's and the score's last maps: scaled normal, a fifth and a tenth of Xavier's size.
        scale = {id(decoder.bbox_prediction[-1]): 0.2, id(decoder.score_prediction): 0.1}.get(id(module))
        if scale is None:
            init.xavier_uniform_(module.weight)
        else:
            init.normal_(module.weight, std=scale * module.in_features**-0.5)
        if module.bias is not None:
            init.zeros_(module.bias)
