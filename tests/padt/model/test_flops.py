"""The count of operations is PyTorch's own, part by part, and what is trained decides about backward."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from padt.data.collate import Batch, collate
from padt.model.flops import BatchShape, ModelFlops, forward_flops, peak_flops, training_flops
from padt.model.trainable import freeze
from tests.padt.model.test_modeling import sample, square
from tests.padt.tiny import tiny_model

SMALL = ModelFlops(vision=1000, language=100, prototypes=10, decoder=1)


def batch_of(processor, size: tuple[int, int], vrts: int, objects: int = 2, samples: int = 1) -> Batch:
    """Samples of equal lengths, so that nothing is padded."""
    rle = square(*size, 0, 0, 28)
    groups = [(tuple(range(vrts)), tuple(range(vrts)), rle)] * objects
    return collate(
        [processor.encode(sample(str(n), groups, size=size)) for n in range(samples)], processor.pad_token_id
    )


def counted(model: torch.nn.Module, batch: Batch) -> tuple[ModelFlops, FlopCounterMode]:
    """Operations of a forward pass as PyTorch counts them, by part."""
    # The counter does not know the fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        total = model(batch=batch).total
    name = type(model).__name__
    counts = {key.removeprefix(f"{name}."): sum(of.values()) for key, of in counter.get_flop_counts().items()}
    language = counts["model.language_model"] + counts["lm_head"]
    # The head computes the products of text and of VRTs in one call.
    rows = int((batch.supervised.targets >= 0).sum())
    vrts = 2 * rows * model.config.text_config.hidden_size * max(batch.patch_counts)
    parts = ModelFlops(counts["model.visual"], language - vrts, counts["vis_proj"] + vrts, counts["vl_decoder"])
    with FlopCounterMode(display=False) as backward:
        total.backward()
    return parts, backward


@pytest.mark.parametrize(
    ("size", "vrts", "objects", "samples"),
    # A window's rest at both sides, one picture smaller than a window, and more tokens than a head is wide.
    [((56, 84), 2, 2, 1), ((140, 196), 5, 3, 2), ((252, 112), 20, 1, 1)],
)
def test_each_part_is_counted_as_pytorch_counts_it(processor, size, vrts, objects, samples):
    model = copy.deepcopy(tiny_model()).train()
    batch = batch_of(processor, size, vrts, objects, samples)
    parts, _ = counted(model, batch)
    assert forward_flops(model.config, BatchShape.of(batch)) == parts


@pytest.mark.parametrize("frozen", [[], ["vision"], ["decoder"], ["vision", "prototypes", "language"]])
def test_backward_is_counted_by_what_is_trained(processor, frozen):
    model = copy.deepcopy(tiny_model()).train()
    freeze(model, frozen)
    batch = batch_of(processor, (140, 196), 5)
    parts, backward = counted(model, batch)
    trained = {"vision", "language", "prototypes", "decoder"} - set(frozen)
    ours = training_flops(forward_flops(model.config, BatchShape.of(batch)), trained)
    measured = parts.total + backward.get_total_flops()
    # The head's logits are computed again in backward, and the first layers need no gradient of their input.
    assert ours == pytest.approx(measured, rel=0.1), ours / measured


def test_frozen_parts_cost_what_flows_through_them():
    every = training_flops(SMALL, ["vision", "language", "prototypes", "decoder"])
    assert every == 3 * SMALL.total
    assert training_flops(SMALL, ["language", "prototypes", "decoder"]) == 1111 + 200 + 20 + 2
    assert training_flops(SMALL, ["decoder"]) == 1111 + 2
    # Adapters: gradients of the inputs alone.
    assert training_flops(SMALL, ["prototypes", "decoder", "language"], adapted=True) == 1111 + 100 + 20 + 2


def test_padding_and_other_samples_vrts_are_not_counted(processor):
    model = tiny_model()
    long, short = batch_of(processor, (140, 196), 5), batch_of(processor, (56, 84), 2, objects=1)
    encoded = [
        processor.encode(sample(str(n), [(tuple(range(v)), (0, 1), square(*s, 0, 0, 28))] * o, size=s))
        for n, (s, v, o) in enumerate((((140, 196), 5, 2), ((56, 84), 2, 1)))
    ]
    both = BatchShape.of(collate(encoded, processor.pad_token_id))
    apart = [forward_flops(model.config, BatchShape.of(batch)).total for batch in (long, short)]
    assert forward_flops(model.config, both).total == sum(apart)


def test_peaks_are_known_by_name_and_the_longest_name_counts():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A10G") == 70e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("Graphics 9000") is None
