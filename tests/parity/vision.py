"""Parity of pixels, the vision tower and prototypes."""

import numpy as np
import torch
from transformers.vision_utils import get_vision_window_index

from padt.data.image import open_image
from padt.model.modeling import PaDTForConditionalGeneration
from tests.parity.fixture import Fixture, small_pixels
from tests.parity.table import Report


@torch.no_grad()
def compare_vision(fixture: Fixture, model: PaDTForConditionalGeneration, report: Report) -> None:
    """Resizing and normalising; merged and pre-merger features, rotary tables, windows and prototypes."""
    _compare_pixels(fixture, model, report)
    for name in [*fixture.names("vision_*.safetensors"), *fixture.names("batch*.safetensors")]:
        report.part = name
        tensors = fixture.tensors(name)
        grid = tensors["image_grid_thw"]
        if "pixel_u8" in tensors:
            pixels = small_pixels(tensors)
        else:
            tag = name.removeprefix("batch")
            pixels = torch.cat([fixture.pixel_values(tag, index) for index in range(len(grid))])
        visual = model.model.visual
        window_index, window_ends = get_vision_window_index(
            grid,
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        report.equal("window index", window_index, tensors["window_index"])
        borders = torch.unique_consecutive(tensors["cu_window_seqlens"])
        report.equal("window borders", torch.unique_consecutive(window_ends), borders)
        features = model.image_features(pixels, grid)
        report.close("merged features", features.merged, tensors["image_embeds"])
        report.close("pre-merger features", features.high_res, tensors["high_res"])
        report.close("rotary cos", features.cos, tensors["pe_cos"])
        report.close("rotary sin", features.sin, tensors["pe_sin"])
        report.close("prototypes", model.prototypes_of(features.merged), tensors["image_prototypes"])


def _compare_pixels(fixture: Fixture, model: PaDTForConditionalGeneration, report: Report) -> None:
    report.part = "images"
    for name in fixture.names("loss*.json"):
        tag = name.removeprefix("loss")
        loss = fixture.json(name)
        sums = next((run["pixel_values_sum"] for run in loss["runs"] if run.get("pixel_values_sum")), None)
        for index, item in enumerate(loss["items"]):
            source = open_image(fixture.root / item["image_path"][0])
            ours, theirs = model.processor.resize(source), fixture.resized(tag, index)
            difference = float("inf") if ours.shape != theirs.shape else np.abs(ours.astype(int) - theirs).max()
            report.close(f"{tag}{index} resized", float(difference), 0.0, tolerance=0.0)
            if sums is not None:
                pixels = fixture.pixel_values(tag, index)
                report.close(f"{tag}{index} mean pixel value", pixels.double().mean(), sums[index] / pixels.numel())
