"""Memory of one GPU in training, part by part: what lies there always, and what a batch adds.

Not counted are what CUDA itself takes (some hundred MiB) and what is lost between blocks.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from jobs.planning.sizes import ModelSizes
from jobs.planning.trace import ATTENTION, Traced, checkpoint_inputs, fused_attention, trace
from jobs.training.config import TrainConfig

FP32 = 4
# DeepSpeed's own sizes where its configuration says nothing: elements that are reduced at a time, and weights that are
# gathered at most at stage 3.
REDUCE_BUCKET = 500_000_000
GATHERED = 1_000_000_000
_TRACED_PATCHES = 512


@dataclass(frozen=True)
class Workload:
    """A batch of equal samples.

    Attributes:
        samples: in one pass.
        tokens: positions of a sample, those of its picture included.
        patches: of a sample's picture.
        rows: supervised tokens of a sample.
        objects: of a sample.
        vrts: of an object.
        masks: whether objects have masks.
    """

    samples: int
    tokens: int
    patches: int
    rows: int
    objects: int
    vrts: int = 5
    masks: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU by part.

    Attributes:
        weights: in the type that they are computed in; under ZeRO 3 a share, and what is gathered at most.
        gradients: of what is trained.
        optimizer: fp32 weights and AdamW's two moments.
        buffers: gradients on their way between GPUs.
        activations: what vision tower and language model keep for backward, and one layer at work.
        logits: of the chunk of the vocabulary's logits at work, and what the head keeps.
        decoder: the object decoder at work.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    logits: int
    decoder: int

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(getattr(self, each.name) for each in fields(self))

    def to_json(self) -> dict[str, int]:
        """Plain values."""
        return {**asdict(self), "total": self.total}


def is_sharded(config: TrainConfig) -> bool:
    """Whether DeepSpeed trains, wherever the plan is made: plain PyTorch holds everything on every rank."""
    sharded = config.zero_stage > 0
    return sharded and (config.engine == "deepspeed" or (config.engine == "auto" and config.workers > 1))


def model_bytes(sizes: ModelSizes, config: TrainConfig, workers: int | None = None) -> dict[str, int]:
    """Bytes of weights, gradients, optimiser and buffers on one rank.

    Args:
        sizes: of the model as it is prepared for training.
        config: precision, engine and ZeRO stage.
        workers: in place of the configuration's.
    """
    ranks = workers or config.workers
    stage = config.zero_stage if is_sharded(config) else 0
    width = 2 if config.precision == "bf16" else FP32
    total, trained = sizes.total, sizes.total_trained
    # Beside weights in fp32 plain PyTorch needs no copies of them; ZeRO keeps its own.
    copies = trained * FP32 if config.precision == "bf16" or stage else 0
    moments = 2 * trained * FP32
    # At stage 1 DeepSpeed keeps those of backward in bf16 beside their sum in fp32.
    gradients = trained * (FP32 + width if stage == 1 and width < FP32 else FP32)
    weights = total * width
    buffers = min(trained, REDUCE_BUCKET) * width if stage and ranks > 1 else 0
    if stage:
        copies, moments = _share(copies, ranks), _share(moments, ranks)
    if stage >= 2:
        gradients = _share(gradients, ranks)
    if stage == 3:
        weights = _share(weights, ranks) + (min(total, GATHERED) * width if ranks > 1 else 0)
    return {"weights": weights, "gradients": gradients, "optimizer": copies + moments, "buffers": buffers}


def plan_memory(model: Any, config: TrainConfig, work: Workload) -> Memory:
    """Memory of one GPU for a batch.

    Args:
        model: on the meta device, see ``jobs.planning.sizes.planned_model``.
        config: what is trained, and what is computed again.
        work: the largest batch of one pass.
    """
    return Memory(
        **model_bytes(ModelSizes.of(model), config),
        activations=activation_bytes(model, config, work),
        logits=head_bytes(model, config, work).peak,
        decoder=decoder_bytes(model, config, work).peak,
    )


def activation_bytes(model: Any, config: TrainConfig, work: Workload) -> int:
    """What vision tower and language model keep until backward, and the largest layer at work."""
    recompute = config.gradient_checkpointing
    vision, language = vision_layer(model, work), language_layer(model, work)
    at_work = [
        traced.peak if recomputed else traced.peak - traced.kept
        for traced, recomputed in ((vision, recompute.vision), (language, recompute.language))
    ]
    return kept_activations(model, config, work, vision, language) + max(at_work)


def kept_activations(model: Any, config: TrainConfig, work: Workload, vision: Traced, language: Traced) -> int:
    """What vision tower and language model keep until backward, where ``vision`` and ``language`` are their layers."""
    recompute = config.gradient_checkpointing
    kept = around_layers(model, work)
    kept += len(model.model.visual.blocks) * _kept(vision, _block_input(model, work), recompute.vision)
    layers = model.model.language_model.layers
    return kept + len(layers) * _kept(language, _layer_input(model, work), recompute.language)


def _kept(traced: Traced, given: int, recomputed: bool) -> int:
    # A layer through which no gradient flows keeps nothing, whatever is said of it.
    return min(given, traced.kept) if recomputed else traced.kept


def vision_layer(model: Any, work: Workload) -> Traced:
    """One block of the vision tower over all pictures of a batch."""
    import torch

    tower = model.model.visual
    positions = work.samples * work.patches * 4
    rows = _empty(model, positions, tower.config.hidden_size, grad=_is_trained(tower))
    table = _empty(model, positions, tower.config.hidden_size // tower.config.num_heads)
    lengths = torch.tensor([0, positions])
    with _fused(tower):
        return trace(
            tower.blocks[0],
            lambda: tower.blocks[0](rows, cu_seqlens=lengths, position_embeddings=(table, table)),
            shared=(table,),
        )


def language_layer(model: Any, work: Workload) -> Traced:
    """One layer of the language model over all texts of a batch."""
    text = model.model.language_model
    states = _empty(model, work.samples, work.tokens, text.config.hidden_size, grad=_reaches_language(model))
    head = getattr(text.config, "head_dim", None) or text.config.hidden_size // text.config.num_attention_heads
    table = _empty(model, work.samples, work.tokens, head)
    with _fused(text):
        return trace(
            text.layers[0],
            lambda: text.layers[0](states, attention_mask=None, position_embeddings=(table, table)),
            shared=(table,),
        )


def around_layers(model: Any, work: Workload) -> int:
    """What is kept outside of the layers: pixels and merger of the tower, embeddings, last norm, rotary tables."""
    tower, text = model.model.visual, model.model.language_model
    positions = work.samples * work.patches * 4
    vision = tower.config
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pictures = _empty(model, positions, pixels)
    rows = _empty(model, positions, vision.hidden_size, grad=_is_trained(tower))
    states = _empty(model, work.samples, work.tokens, text.config.hidden_size, grad=_reaches_language(model))
    kept = trace(tower.patch_embed, lambda: tower.patch_embed(pictures)).kept
    kept += trace(tower.merger, lambda: tower.merger(rows)).kept + trace(text.norm, lambda: text.norm(states)).kept
    # Merged features, prototypes and embeddings exist side by side.
    return kept + 2 * states.nbytes + 2 * work.samples * work.patches * text.config.hidden_size * states.element_size()


def head_bytes(model: Any, config: TrainConfig, work: Workload) -> Traced:
    """The output head over the supervised tokens of a batch, chunk by chunk."""
    import torch

    from padt.data.collate import SupervisedRows

    width = model.config.text_config.hidden_size
    states = _empty(model, work.samples, work.tokens, width, grad=True)
    prototypes = _empty(model, work.samples, work.patches, width, grad=True)
    ids = torch.empty(work.samples, work.rows, dtype=torch.long, device="meta")
    present = torch.empty(work.samples, work.patches, dtype=torch.bool, device="meta")
    excluded = torch.empty(work.samples, work.rows, work.patches, dtype=torch.bool, device="meta")
    return trace(
        model.lm_head,
        lambda: model.lm_head(
            states, prototypes, present, SupervisedRows(ids, ids, ids), excluded, chunk_rows=config.loss.chunk_rows
        ),
    )


def decoder_bytes(model: Any, config: TrainConfig, work: Workload) -> Traced:
    """The object decoder over all objects of a batch: one picture's, whose graph is kept for each picture."""
    from padt.model.vision import ImageFeatures

    decoder, settings = model.vl_decoder, model.config.vl_decoder
    # Everything goes with the positions of a map: a large one is traced as a small one, many times over.
    height, width = _grid(min(work.patches, _TRACED_PATCHES))
    scale = work.patches / (height * width)
    patches = height * width
    counts = [work.vrts] * work.objects or [1]
    table = _empty(model, patches, settings.llm_hidden_state, grad=True)
    head = settings.hidden_size // settings.num_heads
    features = ImageFeatures(
        merged=table,
        high_res=_empty(model, 4 * patches, settings.hidden_size, grad=_is_trained(model.model.visual)),
        cos=_empty(model, 4 * patches, head),
        sin=_empty(model, 4 * patches, head),
        grids=[(2 * height, 2 * width)],
    )
    states = _empty(model, sum(counts), settings.llm_hidden_state, grad=True)
    with checkpoint_inputs(decoder) as inputs:
        traced = trace(decoder, lambda: decoder(states, counts, [0] * len(counts), features, table, masks=work.masks))
    handed = sum(inputs) if config.gradient_checkpointing.decoder else 0
    of_one = int(scale * (traced.kept + handed)) + work.objects * work.masks * mask_loss_bytes(model, work)
    kept = work.samples * of_one
    return Traced(kept, kept + int(scale * (traced.peak - traced.kept)))


def mask_loss_bytes(model: Any, work: Workload) -> int:
    """What the loss of one object's mask keeps; a mask has 16 cells for each of the four ViT patches of a patch."""
    import torch

    from padt.model.losses import mask_losses

    logits = _empty(model, 64 * work.patches, grad=True)
    target = torch.empty(64 * work.patches, dtype=torch.bool, device="meta")
    return trace(model.vis_norm, lambda: mask_losses([logits], [target])["mask"]).kept


def checkpoint_bytes(sizes: ModelSizes, config: TrainConfig) -> int:
    """Bytes of one checkpoint of a run: trained weights, and fp32 weights and moments of the optimiser."""
    width = 2 if config.precision == "bf16" else FP32
    weights = sizes.total if sizes.total == sizes.total_trained else sizes.total_trained
    return (weights * width if is_sharded(config) else 0) + 3 * FP32 * sizes.total_trained


def helpful_changes(model: Any, config: TrainConfig, work: Workload, now: Memory) -> list[tuple[str, int]]:
    """Settings that lower the need for memory, the two best first: what to write, and bytes then needed, about.

    Args:
        model: on the meta device, see ``jobs.planning.sizes.planned_model``.
        config: what is planned.
        work: the largest batch of one pass.
        now: what is needed as it is.
    """
    sizes = ModelSizes.of(model)
    always = sum(model_bytes(sizes, config).values())
    found: dict[str, int] = {}
    for stage in (2, 3):
        if config.workers > 1 and stage > config.zero_stage:
            changed = config.model_copy(update={"zero_stage": stage})
            found[f"zero_stage={stage}"] = now.total - always + sum(model_bytes(sizes, changed).values())
    recompute = config.gradient_checkpointing
    whole = recompute.model_copy(update=dict.fromkeys(type(recompute).model_fields, True))
    if recompute != whole:
        changed = config.model_copy(update={"gradient_checkpointing": whole})
        activations = activation_bytes(model, changed, work)
        found["gradient_checkpointing=true"] = now.total - now.activations + activations
    # What a batch adds goes with its samples, and nearly so with its pictures' patches.
    if work.samples > 1:
        share = work.samples // 2 / work.samples
        text = f"batch_size={work.samples // 2}"
        if config.global_batch_size is None:
            text += f" gradient_accumulation_steps={config.gradient_accumulation_steps * 2}"
        found[text] = always + now.logits + int(share * (now.activations + now.decoder))
    if work.patches >= 1024:
        share = 1 - work.patches / 2 / work.tokens
        text = f"max_pixels={work.patches // 2 * 28**2} (for the sets too)"
        found[text] = always + now.logits + int(share * (now.activations + now.decoder))
    better = {text: total for text, total in found.items() if total < now.total}
    return sorted(better.items(), key=lambda each: each[1])[:2]


def _share(size: int, ranks: int) -> int:
    return -(-size // ranks)


def _empty(model: Any, *shape: int, grad: bool = False) -> Any:
    import torch

    return torch.empty(*shape, dtype=model.dtype, device="meta", requires_grad=grad)


def _is_trained(module: Any) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _reaches_language(model: Any) -> bool:
    """Whether gradients flow back through the language model: to something that is trained in it or before it."""
    return any(_is_trained(part) for part in (model.model, model.vis_norm, model.vis_proj))


def _block_input(model: Any, work: Workload) -> int:
    return work.samples * work.patches * 4 * model.config.vision_config.hidden_size * model.dtype.itemsize


def _layer_input(model: Any, work: Workload) -> int:
    return work.samples * work.tokens * model.config.text_config.hidden_size * model.dtype.itemsize


def _grid(patches: int) -> tuple[int, int]:
    """A grid of about so many patches, as square as can be."""
    height = max(1, int(patches**0.5))
    return height, max(1, patches // height)


class _fused:  # noqa: N801 - used as a context, like a function
    """The attention of a part of the model taken as a fused kernel, for the length of a block."""

    def __init__(self, part: Any) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, fused_attention)
        self._config = part.config

    def __enter__(self) -> None:
        self._before = self._config._attn_implementation
        self._config._attn_implementation = ATTENTION

    def __exit__(self, *details: object) -> None:
        self._config._attn_implementation = self._before
