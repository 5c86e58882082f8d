"""PaDT for conditional generation: Qwen2.5-VL whose vocabulary includes the patches of the image at hand."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    Cache,
    GenerationMixin,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers import initialization as init
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutputWithPooling

from padt.data.collate import Batch, normalize_pixels
from padt.data.processor import PaDTProcessor
from padt.errors import UserError
from padt.model.decoder import ObjectDecoder, initialize_part
from padt.model.head import DynamicVocabularyHead
from padt.model.losses import LossCounts, LossInputs, LossSettings, total_loss
from padt.model.outputs import PaDTOutput, StateRecorder
from padt.model.packing import packed_states
from padt.model.vision import ImageFeatures, encode_images, pad_images
from padt.pretrained.auto_code import add_auto_code
from padt.pretrained.config import PaDTConfig, VLDecoderConfig
from padt.pretrained.strict import load_strictly, save_beside

if TYPE_CHECKING:
    from padt.inference.events import StreamEvent
    from padt.inference.generation import GenerationSettings
    from padt.inference.requests import Request
    from padt.inference.results import Prediction

_NATIVE_CLASS = "Qwen2_5_VLForConditionalGeneration"


class PaDTForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Reads images and text, writes text with Visual Reference Tokens, and decodes these into objects.

    Token ids below ``V`` (the embedding rows) are text; ``V + k`` is the VRT of patch ``k`` of the sample's own images,
    in raster order. One model instance holds no state of a request.
    """

    config: PaDTConfig
    config_class = PaDTConfig
    _no_split_modules = ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock", "ObjectDecoder"]

    def __init__(self, config: PaDTConfig) -> None:
        super().__init__(config)
        width, rank = config.text_config.hidden_size, config.prototype_rank
        self.lm_head = DynamicVocabularyHead(width, config.text_config.vocab_size, bias=False)
        self.vis_norm = nn.LayerNorm(width)
        self.vis_proj = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False))
        assert isinstance(config.vl_decoder, VLDecoderConfig)  # the configuration fills it in
        self.vl_decoder = ObjectDecoder(config.vl_decoder, config.feature_order)
        self.processor: Any = None
        # Training only: texts of a batch in one sequence (padt.model.packing) instead of in padded rows.
        self.packing = False
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As transformers', for folders of every layout, strict about every key: see ``padt.pretrained.strict``."""
        register()
        return load_strictly(cls, super().from_pretrained, pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs) -> None:
        """As transformers', with the processor (where there is one) and a model card beside the weights."""
        # The names of stored tensors follow from what transformers knows of this class.
        register()
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process and self.processor is not None:
            save_beside(self.processor, self.config, save_directory)
        if is_main_process:
            add_auto_code(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Nothing: a save has its own code file (``padt.pretrained.auto_code``) and needs no copy of this module."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "vis_norm", None):
            # Prototypes start at zero: a fresh model writes plain Qwen2.5-VL's answers.
            init.zeros_(module.weight)
            init.zeros_(module.bias)
            return
        decoder = getattr(self, "vl_decoder", None)
        # Leaf by leaf: transformers never asks for a module that has no parameters of its own.
        if decoder is not None and any(module is part for part in decoder.modules()):
            initialize_part(decoder, module)

    # ------------------------------------------------------------------ images, prototypes, embeddings

    def image_features(self, pixel_values: Tensor, grid_thw: Tensor) -> ImageFeatures:
        """Run the vision tower once: ``(vit_patches, 1176)`` and ``(images, 3)`` -> features in the model's order."""
        return encode_images(self.model.visual, pixel_values, grid_thw, self.config.feature_order)

    def prototypes_of(self, merged: Tensor) -> Tensor:
        """f_vp: merged features ``(patches, d)`` -> prototypes ``(patches, d)`` (paper, section 3.2)."""
        if not self.config.use_visual_prototype_projection:
            return merged
        normed = self.vis_norm(merged)
        return normed + self.vis_proj(normed)

    def embed(self, input_ids: Tensor, merged: Tensor | None, prototypes: Tensor | None) -> Tensor:
        """Input embeddings: text rows, merged features at image placeholders, prototypes at VRTs.

        Args:
            input_ids: ``(batch, positions)``.
            merged: ``(patches, d)`` features for the placeholders of ``input_ids`` in order; None if there are none.
            prototypes: ``(batch, max_patches, d)``; None if there are no images.

        Raises:
            UserError: a VRT without an image, or beyond the sample's patches.
        """
        offset = self.config.vrt_offset
        is_vrt = input_ids >= offset
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_vrt, 0))
        if prototypes is not None:
            patch = (input_ids - offset).clamp(min=0, max=prototypes.shape[1] - 1)
            rows = prototypes.gather(1, patch[..., None].expand(-1, -1, prototypes.shape[-1]))
            embeddings = torch.where(is_vrt[..., None], rows.to(embeddings.dtype), embeddings)
        if merged is not None:
            placeholder = (input_ids == self.config.image_token_id)[..., None]
            embeddings = embeddings.masked_scatter(placeholder.expand_as(embeddings), merged.to(embeddings.dtype))
        return embeddings

    # ------------------------------------------------------------------ forward: prefill, step, training

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        prototypes: Tensor | None = None,
        prototype_mask: Tensor | None = None,
        position_offset: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        batch: Batch | None = None,
        loss: LossSettings | None = None,
        counts: LossCounts | None = None,
        prototypes_to_decoder: bool = False,
        **kwargs,
    ) -> PaDTOutput:
        """One pass of the model: a prompt (with images), a decoding step (with a cache), or a training batch.

        Args:
            input_ids: ``(batch, positions)`` text ids and VRTs.
            attention_mask: ``(batch, positions)``.
            position_ids: ``(3 or 4, batch, positions)``; computed from the grids, or from ``position_offset``, when
                absent.
            past_key_values: cache of the positions before.
            inputs_embeds: ``(batch, positions, d)`` in place of ``input_ids``.
            use_cache: return a cache.
            pixel_values: ``(vit_patches, 1176)`` of all images.
            image_grid_thw: ``(images, 3)``.
            mm_token_type_ids: ``(batch, positions)``, 1 at image placeholders; found in ``input_ids`` when absent.
            mm_encoder_outputs: ``{"image": output of the vision tower}`` in place of ``pixel_values``.
            prototypes: ``(batch, max_patches, d)`` of an earlier pass: makes this a step.
            prototype_mask: ``(batch, max_patches)``.
            position_offset: ``(batch, 1)`` of an earlier pass.
            logits_to_keep: positions from the end (or indices) for which logits are computed; 0 = all.
            batch: training: everything at once; returns ``total`` and ``parts``.
            loss: training: which losses.
            counts: training: samples, objects and masks of the optimiser step that the batch is a part of; None: the
                batch is the whole of it.
            prototypes_to_decoder: training: the decoder gets the prototypes of the VRTs in place of states (warm-up).
            **kwargs: passed to the language model.
        """
        if batch is not None:
            return self._training_forward(batch, loss or LossSettings(), counts, prototypes_to_decoder)
        merged = None
        if prototypes is None and input_ids is not None:
            merged = self._merged(pixel_values, image_grid_thw, mm_encoder_outputs)
            if merged is not None:
                patches = (input_ids == self.config.image_token_id).sum(dim=1).tolist()
                _check_placeholders(patches, len(merged), past_key_values)
                prototypes, prototype_mask = pad_images(self.prototypes_of(merged), patches)
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Give input_ids or inputs_embeds.")
            inputs_embeds = self.embed(input_ids, merged, prototypes)
        if position_ids is None and position_offset is not None and attention_mask is not None:
            counted = attention_mask.long().cumsum(-1)[:, -inputs_embeds.shape[1] :] - 1
            position_ids = (counted + position_offset).expand(3, -1, -1)
        elif position_ids is None and input_ids is not None:
            position_ids, position_offset = self.positions(
                input_ids, attention_mask, image_grid_thw, mm_token_type_ids, past_key_values
            )
        outputs = self.model.language_model(
            input_ids=None,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = hidden[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
        return PaDTOutput(
            logits=self.lm_head(kept, prototypes, prototype_mask),
            past_key_values=outputs.past_key_values,
            last_hidden_state=hidden,
            prototypes=prototypes,
            prototype_mask=prototype_mask,
            position_offset=position_offset,
        )

    def positions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Multimodal rotary positions ``(3, batch, positions)`` of prompts, and their offset ``(batch, 1)``.

        Both are None for tokens on top of a cache, whose offset only the caller knows, and the positions are None for
        text without padding, whose positions the language model counts itself.
        """
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            return None, None
        if image_grid_thw is not None and len(image_grid_thw):
            if mm_token_type_ids is None:
                mm_token_type_ids = (input_ids == self.config.image_token_id).long()
            return self.model.get_rope_index(
                input_ids, mm_token_type_ids, image_grid_thw=image_grid_thw, attention_mask=attention_mask
            )
        if (input_ids == self.config.image_token_id).any():
            raise UserError("The prompt has image placeholders but no image_grid_thw: pass what the processor made.")
        offset = input_ids.new_zeros((len(input_ids), 1))
        if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
            return None, offset
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1), offset

    def prefill(self, **inputs) -> PaDTOutput:
        """First pass over prompts (left-padded): logits of the last position, cache, prototypes and offset."""
        return self(**inputs, use_cache=True, logits_to_keep=1)

    def step(self, input_ids: Tensor, previous: PaDTOutput, **inputs) -> PaDTOutput:
        """One more token ``(batch, 1)`` on top of a ``prefill`` or ``step``; give the mask of all tokens so far."""
        return self(
            input_ids=input_ids,
            past_key_values=previous.past_key_values,
            prototypes=previous.prototypes,
            prototype_mask=previous.prototype_mask,
            position_offset=previous.position_offset,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        )

    def _merged(self, pixel_values, grid_thw, mm_encoder_outputs) -> Tensor | None:
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is None and pixel_values is not None:
            encoded = self.model.get_image_features(pixel_values, grid_thw, return_dict=True)
        if encoded is None:
            return None
        pooled = encoded.pooler_output
        return pooled if isinstance(pooled, Tensor) else torch.cat(list(pooled))

    # ------------------------------------------------------------------ training

    def _training_forward(
        self, batch: Batch, settings: LossSettings, counts: LossCounts | None, prototypes_to_decoder: bool
    ) -> PaDTOutput:
        # The same module calls in the same order on every rank, whatever the data: vision, f_vp, language model,
        # head and decoder once each. What a batch lacks is replaced by a dummy, added times zero.
        features = self.image_features(normalize_pixels(batch.pixels), batch.grid_thw)
        table = self.prototypes_of(features.merged)
        has_images = sum(batch.patch_counts) > 0
        patch_counts = batch.patch_counts if has_images else [len(table)] + [0] * (len(batch.keys) - 1)
        prototypes, prototype_mask = pad_images(table, patch_counts)
        if not has_images:
            prototype_mask = torch.zeros_like(prototype_mask)
        embeddings = self.embed(batch.input_ids, features.merged if has_images else None, prototypes)
        position_ids, _ = self.model.get_rope_index(
            batch.input_ids,
            batch.mm_token_type_ids,
            image_grid_thw=batch.grid_thw,
            attention_mask=batch.attention_mask,
        )
        if self.packing:
            hidden = packed_states(self.model.language_model, embeddings, batch.attention_mask, position_ids)
        else:
            hidden = self.model.language_model(
                inputs_embeds=embeddings,
                attention_mask=batch.attention_mask,
                position_ids=position_ids,
                use_cache=False,
            ).last_hidden_state

        excluded = None
        if settings.robust:
            excluded = _excluded_vrts(batch, self.config.vrt_offset, settings.punish_repeats)
        nll = self.lm_head(
            hidden, prototypes, prototype_mask, batch.supervised, excluded, chunk_rows=settings.chunk_rows
        )
        boxes, scores, masks = self._decoded(batch, hidden, table, features, prototypes_to_decoder)
        # Outputs without a loss (no objects, a term of weight 0) stay in the graph, times zero.
        anchor = (boxes.sum() + scores.sum() + sum(rows.sum() for rows in masks)) * 0.0
        objects = batch.objects
        count = len(objects.counts)
        inputs = LossInputs(
            nll=nll,
            valid=batch.supervised.targets >= 0,
            boxes=boxes[:count].float(),
            scores=scores[:count].float(),
            masks=masks[:count],
            true_boxes=objects.boxes.bfloat16() if settings.box_targets == "bfloat16" else objects.boxes,
            true_masks=objects.masks,
            counts=counts,
        )
        total, parts = total_loss(inputs, settings, anchor)
        unused = prototypes.sum() * 0.0 if not has_images else 0.0
        return PaDTOutput(total=total + unused, parts=parts)

    def _decoded(self, batch, hidden, table, features, prototypes_to_decoder):
        """Boxes, scores and masks of the batch's objects; of one object that is not there where it has none."""
        objects = batch.objects
        if not objects.counts:
            return self.vl_decoder(table[:1], [1], [0], features, table)
        if prototypes_to_decoder:
            states = table[objects.vrt_patches]
        else:
            # The feature of a VRT is the state that predicted it, one position before.
            states = hidden[objects.vrt_samples, objects.vrt_positions - 1]
        return self.vl_decoder(states, objects.counts, objects.images, features, table)

    # ------------------------------------------------------------------ prediction

    def predict(
        self,
        images: Any,
        requests: "str | Request | Sequence[str | Request]",
        settings: "GenerationSettings | None" = None,
    ) -> "list[Prediction]":
        """Answer requests about pictures; see :func:`padt.inference.predict.predict`."""
        from padt.inference.predict import predict

        return predict(self, images, requests, settings)

    def stream(
        self, images: Any, request: "str | Request", settings: "GenerationSettings | None" = None, vrts: bool = False
    ) -> "Iterator[StreamEvent]":
        """Answer one request bit by bit; see :func:`padt.inference.stream.stream`."""
        from padt.inference.stream import stream

        return stream(self, images, request, settings, vrts)

    # ------------------------------------------------------------------ generation hooks of transformers

    def prepare_inputs_for_generation(  # noqa: D102
        self, input_ids, is_first_iteration: bool = False, recorder: StateRecorder | None = None, **kwargs
    ):
        # The recorder stays outside of forward, so that a compiled forward has no side effects.
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        inputs["logits_to_keep"] = 1
        return inputs

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs) -> Tensor:
        # As in transformers, ``(4, batch, positions)`` with text positions first, but without keeping the offset on
        # the module, where two requests at once would overwrite each other's.
        text = GenerationMixin._prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs)
        ids = model_kwargs.get("input_ids")
        ids = inputs_tensor if ids is None or not ids.shape[1] else ids
        grid_thw = model_kwargs.get("image_grid_thw")
        if grid_thw is None or ids.dtype not in (torch.int32, torch.int64):
            return text[None].expand(4, -1, -1)
        if text.shape[-1] != ids.shape[1]:
            raise UserError("To go on from a cache with images, give generate the ids of the whole conversation.")
        kinds = (ids == self.config.image_token_id).long()
        vision, _ = self.model.get_rope_index(
            ids, kinds, image_grid_thw=grid_thw, attention_mask=model_kwargs.get("attention_mask")
        )
        return torch.cat([text[None].expand(1, len(ids), -1), vision])

    def _update_model_kwargs_for_generation(self, outputs: PaDTOutput, model_kwargs: dict[str, Any], **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        if outputs.past_key_values is not None:
            # Without a cache every pass reads the images anew.
            model_kwargs["prototypes"] = outputs.prototypes
            model_kwargs["prototype_mask"] = outputs.prototype_mask
        recorder = model_kwargs.get("recorder")
        if recorder is not None:
            recorder.add(outputs)
        return model_kwargs


def register() -> None:
    """Make transformers know PaDT: auto classes for our own saves, and key conversion for this class name.

    Without the latter transformers 5 skips the renaming of Qwen2.5-VL's keys for any class that is not its own, and
    silently initialises the language model at random.
    """
    AutoConfig.register("padt", PaDTConfig, exist_ok=True)
    AutoModel.register(PaDTConfig, PaDTForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(PaDTConfig, PaDTForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(PaDTConfig, PaDTProcessor, exist_ok=True)
    register_checkpoint_conversion_mapping(
        PaDTForConditionalGeneration.__name__, get_checkpoint_conversion_mapping(_NATIVE_CLASS), overwrite=True
    )


def _excluded_vrts(batch: Batch, offset: int, punish_repeats: bool = False) -> Tensor:
    """``(batch, rows, max_patches)``: at a VRT row, the other foreground patches of its object.

    ``punish_repeats`` leaves out of them what earlier rows of its group have written.
    """
    groups, targets = batch.supervised.groups, batch.supervised.targets
    width = max(1, *batch.patch_counts)
    if not len(batch.foreground):
        return torch.zeros((*groups.shape, width), dtype=torch.bool, device=groups.device)
    excluded = batch.foreground[groups.clamp(min=0)] & (groups >= 0)[..., None]
    target = (targets - offset).clamp(min=0, max=width - 1)
    if punish_repeats:
        # Row by row of a sample: (later, earlier) of one group, times the earlier row's patch.
        earlier = ((groups[:, :, None] == groups[:, None, :]) & (groups >= 0)[:, :, None]).float().tril(-1)
        written = earlier @ torch.nn.functional.one_hot(target, width).float()
        excluded = excluded & (written == 0)
    # The target itself stays; at text rows nothing is excluded anyway.
    return excluded.scatter(2, target[..., None], False)


def _check_placeholders(counts: list[int], features: int, cache: Cache | None = None) -> None:
    if not sum(counts) and cache is not None and cache.get_seq_length() > 0:
        raise UserError(
            "The images are in the cache already: pass the prototypes and the prototype_mask of the first pass instead "
            "of the images' features."
        )
    if sum(counts) != features:
        raise UserError(
            f"The prompts hold {sum(counts)} image placeholders but the images have {features} patches: "
            "build the inputs with the model's own processor."
        )


__all__ = ["PaDTForConditionalGeneration", "VLDecoderConfig"]
