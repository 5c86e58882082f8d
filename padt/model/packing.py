"""Texts of a batch in one sequence instead of in padded rows: the language model works on no padding.

Positions start again with each text, from which transformers makes a mask of blocks (SDPA: equal numbers, but the time
of the whole square), and FlashAttention gets the lengths, so that its time is that of the texts alone. The vision tower
and the object decoder never pad images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def packed_states(
    language_model: nn.Module, embeddings: Tensor, attention_mask: Tensor, position_ids: Tensor
) -> Tensor:
    """Last states of padded texts, computed without their padding.

    Args:
        language_model: Qwen2.5-VL's.
        embeddings: ``(batch, positions, d)``.
        attention_mask: ``(batch, positions)``, 1 = present.
        position_ids: ``(3, batch, positions)``, multimodal rotary positions.

    Returns:
        ``(batch, positions, d)``; 0 at padding.
    """
    present = attention_mask.flatten().nonzero().squeeze(1)
    lengths = attention_mask.sum(1)
    starts = F.pad(lengths.cumsum(0), (1, 0)).int()
    longest = int(lengths.max())
    # Row 0 counts the tokens of each text and tells the texts apart; rows 1 to 3 are for the rotary embedding.
    own = attention_mask.long().cumsum(-1) - 1
    positions = torch.cat([own[None], position_ids]).flatten(1)[:, present].unsqueeze(1)
    states = language_model(
        inputs_embeds=embeddings.flatten(0, 1)[present].unsqueeze(0),
        attention_mask=None,
        position_ids=positions,
        use_cache=False,
        # What FlashAttention would find out anew in each layer; other kernels pass it by.
        cu_seq_lens_q=starts,
        cu_seq_lens_k=starts,
        max_length_q=longest,
        max_length_k=longest,
    ).last_hidden_state[0]
    rows = states.new_zeros((attention_mask.numel(), states.shape[-1]))
    return rows.index_copy(0, present, states).view(*attention_mask.shape, -1)
