"""Without padding: the losses and gradients of the padded batch, and no text sees another."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from padt.model.checkpointing import set_checkpointing
from tests.padt.model.test_modeling import batches
from tests.padt.tiny import tiny_model


def step(model, batch):
    """Losses and gradients of one step."""
    model.zero_grad()
    output = model(batch=batch)
    output.total.backward()
    return output.parts, {name: p.grad for name, p in model.named_parameters()}


def both_ways(model, batch):
    """A step with padded rows, and the same packed."""
    model.packing = False
    padded = step(model, batch)
    padded = padded[0], {name: gradient.clone() for name, gradient in padded[1].items()}
    model.packing = True
    return padded, step(model, batch)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_packed_batch_gives_the_losses_and_gradients_of_the_padded_one(processor, recompute):
    model = copy.deepcopy(tiny_model()).train()
    set_checkpointing(model, language=recompute)
    for name, batch in batches(processor).items():
        (parts, gradients), (own_parts, own_gradients) = both_ways(model, batch)
        torch.testing.assert_close(own_parts, parts, rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(own_gradients, gradients, rtol=1e-4, atol=1e-5, msg=name)


def test_no_text_sees_another(processor):
    model = copy.deepcopy(tiny_model()).train()
    model.packing = True
    batch = batches(processor)["text beside images"]
    states = []
    hook = model.model.language_model.register_forward_hook(lambda *call: states.append(call[2].last_hidden_state))
    model(batch=batch)
    first = int(batch.attention_mask[0].sum())
    changed = copy.deepcopy(batch)
    changed.input_ids[0, 3] = 7 if batch.input_ids[0, 3] != 7 else 8
    model(batch=changed)
    hook.remove()
    before, after = states
    assert before.shape[:2] == (1, int(batch.attention_mask.sum())), "padding is computed"
    assert torch.equal(before[:, first:], after[:, first:])
    assert not torch.equal(before[:, 3:first], after[:, 3:first])


def test_kernels_of_variable_lengths_are_told_the_lengths(processor):
    """FlashAttention runs on no CPU: a kernel with its arguments stands in."""
    calls = []

    def by_length(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **others):
        assert attention_mask is None and others["max_length_q"] == int(cu_seq_lens_q.diff().max())
        calls.append(cu_seq_lens_q.tolist())
        parts = [
            F.scaled_dot_product_attention(
                *(rows[:, :, start:end] for rows in (query, key, value)), is_causal=True, scale=scaling, enable_gqa=True
            )
            for start, end in zip(cu_seq_lens_q[:-1], cu_seq_lens_q[1:], strict=True)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None

    AttentionInterface.register("by_length", by_length)
    AttentionMaskInterface.register("by_length", lambda *args, **kwargs: None)
    model = copy.deepcopy(tiny_model()).train()
    batch = batches(processor)["one sample without objects"]
    (parts, _), _ = both_ways(model, batch)
    model.model.language_model.config._attn_implementation = "by_length"
    own_parts, _ = step(model, batch)
    lengths = batch.attention_mask.sum(1)
    assert len(set(lengths.tolist())) > 1
    assert calls and all(call == [0, *lengths.cumsum(0).tolist()] for call in calls)
    torch.testing.assert_close(own_parts, parts, rtol=1e-5, atol=1e-6)
