"""The decoder shares an image's map among its objects; each object must come out as if decoded alone and plainly."""

import pytest
import torch

from padt.model import image_map
from padt.model.decoder import ObjectDecoder
from padt.model.vision import ImageFeatures
from padt.pretrained.config import VLDecoderConfig
from tests.padt.model.plain_decoder import decode_plainly

WIDTH, HEADS, STATES = 48, 4, 32
GRIDS = [(6, 8), (4, 10), (8, 6)]
# An object without a VRT, and one with more tokens than a head is wide (12); images not in order, one without objects.
COUNTS, IMAGES = [5, 0, 3, 20, 1, 2], [1, 0, 1, 2, 1, 0]


def make_decoder(order: str = "raster", **values) -> ObjectDecoder:
    torch.manual_seed(0)
    config = VLDecoderConfig(
        hidden_size=WIDTH, num_heads=HEADS, intermediate_size=64, llm_hidden_state=STATES, **values
    )
    decoder = ObjectDecoder(config, order).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            # Gains and biases that are neither one nor zero.
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder


def make_features(grids=GRIDS, seed: int = 1) -> tuple[ImageFeatures, torch.Tensor]:
    torch.manual_seed(seed)
    items = sum(h * w for h, w in grids)
    angles = torch.randn(items, WIDTH // HEADS // 2).repeat(1, 2)
    features = ImageFeatures(
        merged=torch.randn(items // 4, STATES),
        high_res=torch.randn(items, WIDTH),
        cos=angles.cos(),
        sin=angles.sin(),
        grids=list(grids),
    )
    return features, torch.randn(items // 4, STATES)


def make_states(counts=COUNTS) -> torch.Tensor:
    return torch.randn(sum(counts), STATES, generator=torch.Generator().manual_seed(2))


def close(ours, theirs, tolerance: float) -> None:
    for left, right in zip([*ours[:2], *ours[2]], [*theirs[:2], *theirs[2]], strict=True):
        torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("order", ["raster", "reference"])
@pytest.mark.parametrize("images", [IMAGES, [1] * 6, [2, 2, 0, 0, 2, 2]])
@torch.no_grad()
def test_every_object_is_decoded_as_if_alone(order, images):
    decoder = make_decoder(order)
    features, table = make_features()
    arguments = make_states(), COUNTS, images, features, table
    close(decoder(*arguments), decode_plainly(decoder, *arguments), 2e-6)


@torch.no_grad()
def test_without_masks_boxes_and_scores_are_the_same():
    decoder = make_decoder()
    features, table = make_features()
    arguments = make_states(), COUNTS, IMAGES, features, table
    boxes, scores, _ = decoder(*arguments)
    decoder.mask_output_upscaling2.register_forward_hook(lambda *_: pytest.fail("masks were decoded"))
    close(decoder(*arguments, masks=False), (boxes, scores, []), 2e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_plain_formulation(checkpointing):
    decoder = make_decoder().train()
    decoder.gradient_checkpointing = checkpointing
    features, table = make_features()
    weights = torch.randn(4, generator=torch.Generator().manual_seed(3))

    def gradients(decode):
        leaves = make_states().requires_grad_(), table.clone().requires_grad_(), features.high_res.clone()
        seen = ImageFeatures(features.merged, leaves[2].requires_grad_(), features.cos, features.sin, features.grids)
        boxes, scores, masks = decode(leaves[0], COUNTS, IMAGES, seen, leaves[1])
        decoder.zero_grad()
        ((boxes * weights).sum() + scores.square().sum() + sum(mask.square().mean() for mask in masks)).backward()
        named = {name: torch.clone(leaf.grad) for name, leaf in decoder.named_parameters() if leaf.grad is not None}
        return named | {f"input {index}": leaf.grad for index, leaf in enumerate(leaves)}

    ours = gradients(decoder)
    theirs = gradients(lambda *arguments: decode_plainly(decoder, *arguments))
    assert set(ours) == set(theirs) and len(ours) == len(list(decoder.parameters())) + 3
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], atol=2e-6, rtol=1e-4), name


@torch.no_grad()
def test_in_bf16_the_shared_map_is_as_near_to_the_truth_as_the_plain_formulation():
    decoder = make_decoder()
    features, table = make_features()
    counts = [5] * 12
    arguments = make_states(counts), counts, [index % 3 for index in range(12)], features, table
    truth = decode_plainly(decoder, *arguments)
    half = ImageFeatures(features.merged, features.high_res.bfloat16(), features.cos, features.sin, features.grids)
    rounded = arguments[0].bfloat16(), *arguments[1:3], half, table.bfloat16()
    decoder.bfloat16()

    def error(found):
        pairs = zip([*found[:2], *found[2]], [*truth[:2], *truth[2]], strict=True)
        return torch.cat([(left.float() - right).abs().flatten() for left, right in pairs]).mean()

    assert error(decoder(*rounded)) < 1.2 * error(decode_plainly(decoder, *rounded))


@pytest.mark.parametrize("tile", [1, 2**19])
@torch.no_grad()
def test_chunks_of_objects_keep_to_the_memory_budget(monkeypatch, tile):
    decoder = make_decoder()
    features, table = make_features()
    counts, images = [5] * 9, [0, 1, 2] * 3
    arguments = make_states(counts), counts, images, features, table
    whole = decoder(*arguments)
    chunks = []
    decoder.low_res_transformer.register_forward_hook(lambda module, inputs, output: chunks.append(len(inputs[0])))
    monkeypatch.setattr(image_map, "CPU_TILE", tile)
    assert VLDecoderConfig().memory_budget_mb == decoder.memory_budget_mb == 128
    decoder(*arguments)
    assert chunks == [3, 3, 3]
    chunks.clear()
    # An object of the first image: 20 values of 4 bytes for each of 48 items and 4 heads x 8 tokens.
    monkeypatch.setattr(decoder, "memory_budget_mb", 2 * 20 * 4 * 48 * 32 / 2**20)
    close(decoder(*arguments), whole, 2e-6)
    assert chunks == [2, 1, 2, 1, 2, 1]
    chunks.clear()
    monkeypatch.setattr(decoder, "memory_budget_mb", 0)
    close(decoder(*arguments), whole, 2e-6)
    assert chunks == [1] * 9


@torch.no_grad()
def test_products_of_long_rows_are_finite_in_half_precision():
    """Rows as long as those of released weights (2,535): their products are beyond the largest fp16 (65,504)."""
    torch.manual_seed(0)
    shared, vectors = torch.randn(12, 64) * 320, torch.randn(2, 5, 64) * 320
    coefficients = torch.rand(2, 12, 5) / 5

    def squares(dtype: torch.dtype) -> list[torch.Tensor]:
        mixture = image_map.Mixture(coefficients.to(dtype), vectors.to(dtype))
        image = image_map.ImageMap.of_shared(shared.to(dtype)).add(mixture)
        finer = shared.to(dtype).repeat_interleave(4, dim=0)
        refined = image.refined(finer, 4, image_map.RMSNorm(64).to(dtype))
        return [image.squares, refined.scale, refined.squares]

    for half, full in zip(squares(torch.float16), squares(torch.float32), strict=True):
        torch.testing.assert_close(half, full, rtol=1e-2, atol=1e-2)
