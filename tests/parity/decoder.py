"""Parity of the object decoder: every stage, and its outputs."""

from collections import defaultdict

import torch
from torch import Tensor

from padt.model.modeling import PaDTForConditionalGeneration
from padt.model.vision import ImageFeatures
from tests.parity.fixture import Fixture, small_pixels
from tests.parity.table import MASK_TOLERANCE, Report

BLOCKS = ("low_res_transformer", "high_res_transformer1", "high_res_transformer2")
TOKENS = 3


@torch.no_grad()
def compare_decoder(fixture: Fixture, model: PaDTForConditionalGeneration, report: Report) -> None:
    """``decoder_small`` stage by stage, on the images of ``vision_small``; then the objects of the batches."""
    for name in fixture.names("decoder_*.safetensors"):
        report.part = name
        tensors = fixture.tensors(name)
        vision = fixture.tensors(name.replace("decoder_", "vision_"))
        features = model.image_features(small_pixels(vision), vision["image_grid_thw"])
        counts, images = tensors["feats_len"].tolist(), tensors["sample_idx"].tolist()
        stages = StageRecorder(model, counts, images, features)
        with stages:
            compare_objects(model, tensors["feats"], counts, features, tensors, report)
        for key, theirs in tensors.items():
            if key.startswith("stage."):
                report.close(key, stages.packed(key.removeprefix("stage.")), theirs)
    for name in fixture.names("batch*.safetensors"):
        report.part = name
        tag = name.removeprefix("batch")
        tensors = fixture.tensors(name)
        grid, ids = tensors["image_grid_thw"], fixture.to_local(tensors["input_ids"])
        pixels = torch.cat([fixture.pixel_values(tag, index) for index in range(len(grid))])
        hidden = model(
            input_ids=ids,
            attention_mask=tensors["attention_mask"],
            mm_token_type_ids=(ids == fixture.config["image_token_id"]).long(),
            pixel_values=pixels,
            image_grid_thw=grid,
        ).last_hidden_state
        rows, columns = torch.nonzero(ids >= fixture.vocabulary, as_tuple=True)
        states = hidden[rows, columns - 1]
        report.close("states of the VRTs", states, tensors["feats"])
        counts = tensors["feats_len"].tolist()
        compare_objects(model, states, counts, model.image_features(pixels, grid), tensors, report)


def compare_objects(
    model: PaDTForConditionalGeneration,
    states: Tensor,
    counts: list[int],
    features: ImageFeatures,
    tensors: dict[str, Tensor],
    report: Report,
) -> None:
    """Decode objects of ``counts`` VRTs each, on the images of ``sample_idx``; compare boxes, scores and masks."""
    boxes, scores, masks = model.vl_decoder(
        states,
        counts,
        tensors["sample_idx"].tolist(),
        features,
        model.prototypes_of(features.merged),
    )
    report.close("boxes", boxes, tensors["pred_boxes"])
    report.close("scores", scores, tensors["pred_score"][:, 0])
    report.equal("mask sizes", [tuple(mask.shape) for mask in masks], _mask_sizes(tensors))
    theirs = [mask[:h, :w] for mask, (h, w) in zip(tensors["pred_mask"], _mask_sizes(tensors), strict=True)]
    report.close("mask logits", masks, theirs, of_largest=MASK_TOLERANCE)


def _mask_sizes(tensors: dict[str, Tensor]) -> list[tuple[int, int]]:
    return list(zip((4 * tensors["mask_h"]).tolist(), (4 * tensors["mask_w"]).tolist(), strict=True))


class StageRecorder:
    """Forward hooks on the decoder's stages; packs padded rows as the released code packs them.

    Args:
        model: the model.
        vrt_counts: VRTs of each object.
        images: image of each object, in ascending order, as the decoder works.
        features: features of the images.
    """

    def __init__(
        self, model: PaDTForConditionalGeneration, vrt_counts: list[int], images: list[int], features: ImageFeatures
    ) -> None:
        self.decoder = model.vl_decoder
        self.query_rows = [TOKENS + count for count in vrt_counts]
        per_image = features.high_res.split(features.vit_counts)
        self.high_res = [per_image[image] for image in images]
        # One entry per object; the decoder may work in chunks of objects.
        self.seen: dict[str, list[Tensor]] = defaultdict(list)
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "StageRecorder":
        for block in BLOCKS:
            self.hooks.append(getattr(self.decoder, block).register_forward_hook(self._block(block)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def packed(self, stage: str) -> Tensor:
        """Rows of all objects at a stage (``<module>.query``, ``.memory``, ``.in`` or ``.out``), without padding."""
        if stage == "high_res_norm.in":
            repeats = self.decoder.merge**2
            low = self.seen["low_res_transformer.memory"]
            pairs = zip(low, self.high_res, strict=True)
            return torch.cat([rows.repeat_interleave(repeats, dim=0) + high_res for rows, high_res in pairs])
        rows = self.seen[stage]
        if stage.endswith(".query"):
            rows = [item[:count] for item, count in zip(rows, self.query_rows, strict=True)]
        return torch.cat(rows)

    def _block(self, name: str):
        def hook(module, inputs, output):
            query, image = output
            self.seen[f"{name}.query"].extend(query)
            self.seen[f"{name}.memory"].extend(image.rows())
            if name == "high_res_transformer1":
                self.seen["high_res_norm.out"].extend(inputs[3].rows())

        return hook
