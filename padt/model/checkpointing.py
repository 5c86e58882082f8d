"""Gradient checkpointing, part by part: activations are computed again in backward instead of being kept."""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from padt.model.decoder import ObjectDecoder
from padt.model.modeling import PaDTForConditionalGeneration


def set_checkpointing(
    model: PaDTForConditionalGeneration, *, vision: bool = False, language: bool = False, decoder: bool = False
) -> None:
    """Say which parts of a model keep no activations in training; the losses and gradients stay the same.

    Layers of the vision tower and of the language model are checkpointed one by one by transformers' own machinery,
    the object decoder chunk by chunk of objects. All of it is non-reentrant, so that frozen inputs need no care. The
    output head never keeps logits, whatever is said here.

    Args:
        model: also one with adapters attached.
        vision: checkpoint the vision tower's blocks.
        language: checkpoint the language model's layers.
        decoder: checkpoint the object decoder.
    """
    parts: tuple[tuple[nn.Module, bool], ...] = (
        (model.model.visual, vision),
        (model.model.language_model, language),
        (model.vl_decoder, decoder),
    )
    for part, enabled in parts:
        module: Any  # torch types attributes of modules as tensors or modules
        for module in part.modules():
            if isinstance(module, (GradientCheckpointingLayer, ObjectDecoder)) or module is part:
                # The two attributes by which transformers' layers know; set here because its own switch turns on
                # the whole model, and makes frozen embeddings require gradients.
                module.gradient_checkpointing = enabled
                module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
