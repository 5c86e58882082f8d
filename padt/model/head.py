"""The output head over a vocabulary that is rebuilt for every image: text rows and the sample's own prototypes.

The two tables are never concatenated; their logits lie side by side, ``(batch, positions, V + max_patches)``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from padt.data.collate import SupervisedRows


def vrt_logits(hidden: Tensor, prototypes: Tensor, prototype_mask: Tensor) -> Tensor:
    """Logits of the VRTs: ``(batch, positions, d)`` x ``(batch, patches, d)`` -> ``(batch, positions, patches)``.

    Padding and nothing else is at -inf: each sample only sees its own prototypes.
    """
    logits = hidden @ prototypes.to(hidden.dtype).transpose(1, 2)
    return logits.masked_fill(~prototype_mask[:, None, :], float("-inf"))


class DynamicVocabularyHead(nn.Linear):
    """Qwen2.5-VL's ``lm_head`` (same weight, tied or not), extended by prototypes at run time."""

    def forward(
        self,
        hidden: Tensor,
        prototypes: Tensor | None = None,
        prototype_mask: Tensor | None = None,
        supervised: SupervisedRows | None = None,
        excluded: Tensor | None = None,
        chunk_rows: int = 512,
    ) -> Tensor:
        """Logits, or in training the negative log likelihood of the supervised tokens.

        Args:
            hidden: ``(batch, positions, d)`` final states.
            prototypes: ``(batch, max_patches, d)``; None for plain text.
            prototype_mask: ``(batch, max_patches)``, True where the sample has a patch.
            supervised: training only: which rows are asked. The vocabulary's logits are then computed in chunks of
                ``chunk_rows`` and recomputed in backward, so that no table of all rows is ever held.
            excluded: training only: ``(batch, rows, max_patches)``, True for VRTs that are neither rewarded nor
                punished at a row (robust cross-entropy: the object's other foreground patches).
            chunk_rows: training only: rows for which the vocabulary's logits are held at a time.

        Returns:
            Logits ``(batch, positions, V + max_patches)``, or the loss per row ``(batch, rows)``, 0 at padding.
        """
        if supervised is not None:
            return self._negative_log_likelihood(hidden, prototypes, prototype_mask, supervised, excluded, chunk_rows)
        text = F.linear(hidden, self.weight)
        if prototypes is None or prototype_mask is None:
            return text
        return torch.cat([text, vrt_logits(hidden, prototypes, prototype_mask)], dim=-1)

    def _negative_log_likelihood(self, hidden, prototypes, prototype_mask, supervised, excluded, chunk_rows) -> Tensor:
        vocabulary = self.weight.shape[0]
        states = hidden.gather(1, supervised.positions[..., None].expand(-1, -1, hidden.shape[-1]))
        valid = supervised.targets >= 0
        is_vrt = supervised.targets >= vocabulary

        # The lowest finite value instead of -inf keeps the gradient of a row without any VRT finite.
        floor = torch.finfo(torch.float32).min
        hide = ~prototype_mask[:, None, :] if excluded is None else ~prototype_mask[:, None, :] | excluded
        vrt = (states @ prototypes.to(states.dtype).transpose(1, 2)).float().masked_fill(hide, floor)
        vrt_target = vrt.gather(2, (supervised.targets - vocabulary).clamp(min=0)[..., None]).squeeze(-1)

        flat_states = states.flatten(0, 1)
        flat_targets = supervised.targets.clamp(0, vocabulary - 1).flatten()
        parts = [
            checkpoint(_text_log_sum_exp, self.weight, rows, targets, use_reentrant=False)
            for rows, targets in zip(flat_states.split(chunk_rows), flat_targets.split(chunk_rows), strict=True)
        ]
        text_normalizer, text_target = (torch.cat(part).view(valid.shape) for part in zip(*parts, strict=True))
        normalizer = torch.logaddexp(text_normalizer, torch.logsumexp(vrt, dim=-1))
        target = torch.where(is_vrt, vrt_target, text_target)
        return (normalizer - target).masked_fill(~valid, 0.0)


def _text_log_sum_exp(weight: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = F.linear(rows, weight).float()
    return torch.logsumexp(logits, dim=-1), logits.gather(1, targets[:, None]).squeeze(1)
