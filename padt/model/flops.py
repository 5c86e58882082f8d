"""Floating-point operations that a batch asks of the model: the numerator of MFU (model FLOPs utilisation).

Counted are the matrix products, two operations for each multiplication with its addition, as PaLM's appendix B and
PyTorch's own counter do; norms, activations and the optimiser are not. What counts is what the answer needs: padding,
and activations that are computed again in backward, are no part of it, so a run that wastes time on them shows a
lower MFU. Attention among the tokens of a text counts in full, although half of it is masked; that of the vision
tower's windowed layers counts window by window.

The object decoder is counted as it is computed here (``padt.model.image_map``): what the objects of an image share
once, and what each adds through its small subspace.
"""

from collections.abc import Collection
from dataclasses import astuple, dataclass

from padt.data.collate import Batch
from padt.model.decoder import NUM_TOKENS
from padt.pretrained.config import PaDTConfig, VLDecoderConfig

# Dense bf16 products per second of accelerators, from their makers' data sheets; without sparsity. The first
# name that is found in the device's own is taken.
PEAK_FLOPS = {
    "H200": 989.4e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True)
class BatchShape:
    """The sizes in a batch that decide about its work.

    Attributes:
        tokens: of each sample, padding left out.
        grids: ``(h_vit, w_vit)`` of each image.
        rows: supervised tokens of each sample.
        patches: VRTs that each sample can name.
        objects: image and number of VRTs of each object.
        masks: whether masks are decoded.
    """

    tokens: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    patches: tuple[int, ...]
    objects: tuple[tuple[int, int], ...]
    masks: bool = True

    @staticmethod
    def of(batch: Batch) -> "BatchShape":
        """Shape of a batch of training."""
        supervised = (batch.supervised.targets >= 0).sum(1)
        return BatchShape(
            tokens=tuple(batch.attention_mask.sum(1).tolist()),
            grids=tuple((h, w) for _, h, w in batch.grid_thw.tolist()),
            rows=tuple(supervised.tolist()),
            patches=tuple(batch.patch_counts),
            objects=tuple(zip(batch.objects.images, batch.objects.counts, strict=True)),
        )


@dataclass(frozen=True)
class ModelFlops:
    """Operations by part of the model (the parts of ``padt.model.trainable``)."""

    vision: int
    language: int
    prototypes: int
    decoder: int

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(astuple(self))


def forward_flops(config: PaDTConfig, shape: BatchShape) -> ModelFlops:
    """Operations of one forward pass of training.

    Args:
        config: sizes of the model.
        shape: of the batch.
    """
    text = config.text_config
    width, heads = text.hidden_size, text.num_attention_heads
    head = getattr(text, "head_dim", None) or width // heads
    values = text.num_key_value_heads * head
    per_token = 2 * width * (2 * heads * head + 2 * values + 3 * text.intermediate_size)
    attention = sum(4 * heads * head * tokens**2 for tokens in shape.tokens)
    language = text.num_hidden_layers * (sum(shape.tokens) * per_token + attention)
    language += sum(2 * width * rows * text.vocab_size for rows in shape.rows)
    # The prototypes' rows of the head belong to the part that makes them.
    prototypes = sum(2 * width * rows * own for rows, own in zip(shape.rows, shape.patches, strict=True))
    if config.use_visual_prototype_projection:
        prototypes += 4 * width * config.prototype_rank * sum(h * w // 4 for h, w in shape.grids)
    decoder = config.vl_decoder
    assert isinstance(decoder, VLDecoderConfig)  # the configuration fills it in
    return ModelFlops(
        vision=sum(_vision_flops(config, grid) for grid in shape.grids),
        language=language,
        prototypes=prototypes,
        decoder=_decoder_flops(decoder, shape),
    )


def training_flops(forward: ModelFlops, trained: Collection[str], adapted: bool = False) -> int:
    """Operations of forward and backward.

    A product has two gradients, that of its input and that of its weights. A frozen part needs the first where
    something that is trained lies before it, and none otherwise. Adapters' own products are left out: they are some
    per mille.

    Args:
        forward: of the batch.
        trained: parts of the model that are trained.
        adapted: the language model has adapters in place of trained weights.
    """
    vision = "vision" in trained
    prototypes = "prototypes" in trained
    language = "language" in trained and not adapted
    # Gradients flow back to whatever is trained before a part; adapters lie inside of the language model.
    to_language = adapted or "language" in trained or prototypes or vision
    backward = forward.vision * 2 * vision
    backward += forward.prototypes * (prototypes + (vision or "language" in trained or adapted))
    backward += forward.language * (language + to_language)
    backward += forward.decoder * (("decoder" in trained) + (to_language or "decoder" in trained))
    return forward.total + backward


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations per second of an accelerator by its name (``torch.cuda.get_device_name``), if known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


def _vision_flops(config: PaDTConfig, grid: tuple[int, int]) -> int:
    vision = config.vision_config
    width, merge = vision.hidden_size, vision.spatial_merge_size
    vit_patches = grid[0] * grid[1]
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    layer = vit_patches * 2 * width * (4 * width + 3 * vision.intermediate_size)
    block = merge**2
    side = vision.window_size // merge // vision.patch_size
    windows = _window_squares(grid[0] // merge, side) * _window_squares(grid[1] // merge, side) * block**2
    full = len(vision.fullatt_block_indexes)
    attention = 4 * width * (full * vit_patches**2 + (vision.depth - full) * windows)
    merger = vit_patches // block * 2 * block * width * (block * width + vision.out_hidden_size)
    return vit_patches * 2 * pixels * width + vision.depth * layer + attention + merger


def _window_squares(length: int, side: int) -> int:
    """Sum of the squared lengths of the windows along one side of a picture."""
    return length // side * side**2 + (length % side) ** 2


def _decoder_flops(config: VLDecoderConfig, shape: BatchShape) -> int:
    width, states = config.hidden_size, config.llm_hidden_state
    project = 2 * width * (states + width)
    patches = sum(h * w for h, w in shape.grids) // config.spatial_merge_size**2
    flops = project * (patches + sum(count for _, count in shape.objects))
    for image, (h, w) in enumerate(shape.grids):
        counts = [count for own, count in shape.objects if own == image]
        if counts:
            items = h * w
            coarse = items // config.spatial_merge_size**2
            # Keys, values and queries of three blocks, and the first map of the mask's upscaling.
            flops += 2 * width**2 * (3 * (coarse + 2 * items) + items * shape.masks)
            flops += sum(_object_flops(config, items, coarse, NUM_TOKENS + count, shape.masks) for count in counts)
    return flops


def _object_flops(config: VLDecoderConfig, items: int, coarse: int, tokens: int, masks: bool) -> int:
    """One object's own work; ``items`` and ``coarse`` are the positions of the fine and of the coarse map."""
    width, heads = config.hidden_size, config.num_heads
    # Vectors that a block adds: h (n - 1) + 1, or h e + 1 if that is less.
    added = heads * min(tokens - 1, width // heads) + 1
    blocks = (
        (coarse, _Added(0, 0, 0)),
        (items, _Added(coarse, added, 0)),
        (items, _Added(coarse, added, added)),
    )
    flops = sum(_block_flops(config, positions, tokens, before) for positions, before in blocks)
    # The coarse map's additions once more with each position, for the norm between the maps; then the two lengths.
    flops += 2 * coarse * added * width + 4 * items * width
    # The squared length after the second block: products with the map, with what was there, and with themselves.
    flops += 2 * items * width * added + 4 * added**2 * width + 2 * (coarse + items) * added**2
    heads_of_box = 2 * width * (2 * width + 4)
    if not masks:
        return flops + heads_of_box + 2 * width
    after = _Added(coarse, added, 2 * added)
    kernel = 2 * width * (2 * width + width // 16)
    upscaling = items * (2 * 4 * (width // 4) ** 2 + 2 * 16 * (width // 16))
    return flops + heads_of_box + 2 * width + kernel + after.projected(items, width) + upscaling


@dataclass(frozen=True)
class _Added:
    """What an object has added to a map so far: vectors of the coarse map, and its positions, and of the fine one."""

    positions: int
    coarse: int
    fine: int

    def projected(self, items: int, width: int) -> int:
        """A linear map of the vectors, and their mixture at each position."""
        return 2 * width * (width * (self.coarse + self.fine) + self.positions * self.coarse + items * self.fine)

    def pooled(self, items: int, width: int, rows: int) -> int:
        """Sums over the positions with ``rows`` rows of weights."""
        return 2 * rows * (self.coarse * (self.positions + width) + self.fine * (items + width))


def _block_flops(config: VLDecoderConfig, positions: int, tokens: int, before: _Added) -> int:
    width, heads = config.hidden_size, config.num_heads
    head = width // heads
    linear = 2 * tokens * width**2
    within = 4 * linear + 4 * tokens**2 * width
    # Both directions: rotated products need two.
    scores = 4 * tokens * width * positions + before.projected(positions, width)
    read = linear + scores + before.pooled(positions, width, heads * tokens) + 2 * tokens * width * positions + linear
    if before.coarse + before.fine:
        read += linear
    mlp = 4 * tokens * width * config.intermediate_size
    vectors = min(tokens - 1, head)
    write = 2 * linear + scores + 2 * width**2 * (1 + vectors)
    if tokens - 1 > head:
        write += 2 * width * (tokens - 1) * positions
    return within + read + mlp + write
