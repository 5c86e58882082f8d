"""Robust cross-entropy leaves an object's other patches alone; punishing repeats brings back those that are written."""

from types import SimpleNamespace

import torch

from padt.model.modeling import _excluded_vrts

OFFSET = 100


def test_only_patches_that_the_group_has_written_come_back():
    # Two objects share patch 2; rows: text, object 0 writes 1, 2, text, object 1 writes 2, 3.
    batch = SimpleNamespace(
        patch_counts=[5],
        foreground=torch.tensor([[0, 1, 1, 0, 1], [0, 0, 1, 1, 0]]).bool(),
        supervised=SimpleNamespace(
            targets=torch.tensor([[7, 101, 102, 7, 102, 103]]), groups=torch.tensor([[-1, 0, 0, -1, 1, 1]])
        ),
    )
    usual = _excluded_vrts(batch, OFFSET)[0].int().tolist()
    assert usual == [[0] * 5, [0, 0, 1, 0, 1], [0, 1, 0, 0, 1], [0] * 5, [0, 0, 0, 1, 0], [0, 0, 1, 0, 0]]
    punished = _excluded_vrts(batch, OFFSET, punish_repeats=True)[0].int().tolist()
    assert punished == [[0] * 5, [0, 0, 1, 0, 1], [0, 0, 0, 0, 1], [0] * 5, [0, 0, 0, 1, 0], [0] * 5]
