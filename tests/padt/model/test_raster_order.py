"""Features, rotary tables, prototypes and mask cells lie in one order, or masks land beside their objects.

A region of pixels is traced to what depends on it. Attention mixes places, so for tracing it is cut: then every feature
depends on its own pixels only, and a cell that changes elsewhere is a cell in the wrong order.
"""

import copy
from dataclasses import replace

import pytest
import torch

from padt.model.vision import ImageFeatures
from tests.padt.tiny import tiny_model

# (16, 22) ViT patches: windows are cut off on the right and below, so window order is far from raster order.
GRIDS = [(16, 22), (12, 8), (6, 26)]


@pytest.fixture(scope="module", params=[112, 84])
def cut_model(request):
    model = copy.deepcopy(tiny_model(window=request.param))
    with torch.no_grad():
        for block in model.model.visual.blocks:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
        for name in ("low_res_transformer", "high_res_transformer1", "high_res_transformer2"):
            attention = getattr(model.vl_decoder, name).cross_attn_query_to_image
            attention.proj.weight.zero_()
            attention.proj.bias.zero_()
    return model


def block_index(row: int, column: int, width: int) -> int:
    """Index of a ViT patch among blocks row by row, inside a block row by row."""
    return ((row // 2) * (width // 2) + column // 2) * 4 + (row % 2) * 2 + column % 2


def pixels_of(grid, seed=0):
    return torch.randn(grid[0] * grid[1], 1176, generator=torch.Generator().manual_seed(seed))


def features_of(model, grid, pixels) -> ImageFeatures:
    return model.image_features(pixels, torch.tensor([[1, *grid]]))


def masks_of(model, features):
    torch.manual_seed(3)
    states = torch.randn(3, model.config.text_config.hidden_size)
    return model.vl_decoder(states, [3], [0], features, model.prototypes_of(features.merged))[2][0]


def changed(before, after):
    # Not a tolerance: a row that does not depend on what changed is computed from the same numbers.
    return before != after


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_a_patch_of_pixels_changes_its_own_feature_prototype_and_mask_cells(cut_model, grid):
    h, w = grid
    pixels = pixels_of(grid)
    before = features_of(cut_model, grid, pixels)
    for row, column in [(0, 0), (h - 1, w - 1), (h // 2 - 1, w // 2), (2, w - 2)]:
        index = block_index(row, column, w)
        other = pixels.clone()
        other[index] += 3.0
        after = features_of(cut_model, grid, other)
        assert changed(before.high_res, after.high_res).any(1).nonzero().flatten().tolist() == [index]
        patch = (row // 2) * (w // 2) + column // 2
        prototypes = [cut_model.prototypes_of(each.merged) for each in (before, after)]
        assert changed(*prototypes).any(1).nonzero().flatten().tolist() == [patch]
        cells = changed(masks_of(cut_model, before), masks_of(cut_model, after))
        expected = torch.zeros(4 * h, 4 * w, dtype=torch.bool)
        # The patch of 2x2 ViT patches, since the low-res map is one of patches; 4x4 cells for each ViT patch.
        top, left = 8 * (row // 2), 8 * (column // 2)
        expected[top : top + 8, left : left + 8] = True
        assert not (cells & ~expected).any()
        assert (cells & expected).float().sum() > 32


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_a_mask_cell_depends_on_the_vit_patch_under_it(cut_model, grid):
    h, w = grid
    before = features_of(cut_model, grid, pixels_of(grid))
    for row, column in [(0, 0), (h - 1, w - 1), (h // 2 - 1, w // 2), (2, w - 1)]:
        high_res = before.high_res.clone()
        high_res[block_index(row, column, w)] += 2.0 * torch.randn(high_res.shape[1])
        cells = changed(masks_of(cut_model, before), masks_of(cut_model, replace(before, high_res=high_res)))
        rows, columns = torch.nonzero(cells, as_tuple=True)
        assert set(zip((rows // 4).tolist(), (columns // 4).tolist(), strict=True)) == {(row, column)}
        assert cells.sum() == 16


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_the_rotary_position_of_each_item_is_its_own_row_and_column(cut_model, grid):
    h, w = grid
    features = features_of(cut_model, grid, pixels_of(grid))
    quarter = features.cos.shape[1] // 4
    frequency = 10_000.0 ** (-torch.arange(quarter) / quarter)
    for row, column in [(0, 0), (1, 0), (0, 1), (h - 1, w - 1), (h // 2, 3)]:
        angles = torch.cat([row * frequency, column * frequency]).repeat(2)
        index = block_index(row, column, w)
        torch.testing.assert_close(features.cos[index], angles.cos(), atol=1e-5, rtol=0)
        torch.testing.assert_close(features.sin[index], angles.sin(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_merged_features_are_the_same_in_both_orders_and_the_rest_is_a_permutation():
    model = copy.deepcopy(tiny_model())
    pixels, grid = pixels_of((16, 22)), (16, 22)
    raster = features_of(model, grid, pixels)
    model.config.feature_order = "reference"
    reference = features_of(model, grid, pixels)
    assert torch.equal(raster.merged, reference.merged)
    for name in ("high_res", "cos", "sin"):
        left, right = getattr(raster, name), getattr(reference, name)
        assert not torch.equal(left, right)
        assert sorted(left.sum(1).tolist()) == pytest.approx(sorted(right.sum(1).tolist()))


@torch.no_grad()
def test_two_images_of_a_batch_keep_to_themselves():
    model = tiny_model()
    grids = [(16, 22), (6, 10)]
    pixels = [pixels_of(grid, seed) for seed, grid in enumerate(grids)]
    both = model.image_features(torch.cat(pixels), torch.tensor([[1, *grid] for grid in grids]))
    alone = [features_of(model, grid, each) for grid, each in zip(grids, pixels, strict=True)]
    for name in ("merged", "high_res", "cos", "sin"):
        joined = torch.cat([getattr(each, name) for each in alone])
        torch.testing.assert_close(getattr(both, name), joined, atol=1e-5, rtol=1e-5)
