"""Gradient checkpointing part by part: less is kept, and not a number changes."""

import copy
import itertools

import pytest
import torch

from padt.checkpoints.lora import attach
from padt.model.checkpointing import set_checkpointing
from padt.model.losses import LossSettings
from padt.model.trainable import LoraSettings, freeze
from tests.padt.model.test_modeling import batches
from tests.padt.tiny import tiny_model

PARTS = ("vision", "language", "decoder")
CHOICES = [dict(zip(PARTS, flags, strict=True)) for flags in itertools.product([False, True], repeat=3)]
# A module inside each part that runs again in backward when the part is checkpointed.
INSIDE = {
    "vision": "model.visual.blocks.0.mlp",
    "language": "model.language_model.layers.0.mlp",
    "decoder": "vl_decoder.score_prediction",
}


def step(model, batch, **choice):
    """Losses and gradients of a training step, and how often the watched modules ran."""
    set_checkpointing(model, **choice)
    model.zero_grad()
    calls = dict.fromkeys(PARTS, 0)

    def count(part):
        def hook(*_):
            calls[part] += 1

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(count(part)) for part, name in INSIDE.items()]
    output = model(batch=batch)
    forward = dict(calls)
    output.total.backward()
    for hook in hooks:
        hook.remove()
    again = {part for part in PARTS if calls[part] > forward[part]}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.parts, gradients, again


@pytest.mark.parametrize("lora", [False, True])
def test_losses_and_gradients_are_those_without(processor, lora):
    model = copy.deepcopy(tiny_model()).train()
    if lora:
        # Frozen inputs of a checkpointed layer are where reentrant checkpointing loses gradients.
        attach(model, LoraSettings(rank=4))
        freeze(model, ["vision"])
    batch = batches(processor)["objects"]
    parts, gradients, again = step(model, batch)
    assert not again
    for choice in CHOICES[1:]:
        other_parts, other_gradients, again = step(model, batch, **choice)
        expected = {part for part in PARTS if choice[part]} - ({"vision"} if lora else set())
        # A frozen vision tower builds no graph, so there is nothing to run again.
        assert again == expected, choice
        assert gradients.keys() == other_gradients.keys()
        for name, value in gradients.items():
            torch.testing.assert_close(other_gradients[name], value, atol=1e-6, rtol=1e-5)
        for name, value in parts.items():
            torch.testing.assert_close(other_parts[name], value)


def test_transformers_own_switch_covers_every_part(processor):
    model = copy.deepcopy(tiny_model()).train()
    model.activation_checkpointing_enable()
    assert model.vl_decoder.gradient_checkpointing
    set_checkpointing(model)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_evaluation_recomputes_nothing(processor, monkeypatch):
    model = copy.deepcopy(tiny_model()).eval()
    set_checkpointing(model, vision=True, language=True, decoder=True)
    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", None)
    with torch.no_grad():
        assert model(batch=batches(processor)["objects"], loss=LossSettings()).total.isfinite()


@pytest.mark.parametrize("lora", [False, True])
def test_ranks_with_different_data_call_the_same_modules_in_the_same_order(processor, lora):
    # Under ZeRO 3 each call of a module is a collective, and so is each one that backward repeats.
    model = copy.deepcopy(tiny_model()).train()
    if lora:
        attach(model, LoraSettings(rank=4, dropout=0.1))
        freeze(model, ["vision"])
    set_checkpointing(model, vision=True, language=True, decoder=True)
    calls: list[str] = []
    for name, module in model.named_modules():
        # The decoder is fetched whole (a leaf): how often its parts run may follow the data.
        if name and not name.startswith("vl_decoder."):
            module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    sequences = {}
    for name, batch in batches(processor).items():
        calls.clear()
        model(batch=batch).total.backward()
        sequences[name] = tuple(calls)
    assert len(set(sequences.values())) == 1
    (sequence,) = set(sequences.values())
    again = "model.language_model.layers.0.self_attn.q_proj"
    assert sequence.count(again) == 2 and sequence.count("lm_head") == 1
