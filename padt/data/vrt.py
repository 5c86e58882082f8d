"""How Visual Reference Tokens are drawn from an object's foreground patches."""

from typing import Literal, get_args

import numpy as np

from padt.errors import UserError, suggestion

VRTRule = Literal["random", "distinct", "extreme", "all"]


def choose_vrts(
    patches: np.ndarray, grid_w: int, rule: VRTRule, count: int, rng: np.random.Generator | np.random.RandomState
) -> tuple[int, ...]:
    """Pick the patches that stand for an object in an answer.

    Args:
        patches: foreground patches of the object, ``(n,)`` row-major indices, n >= 1.
        grid_w: columns of the image's patch grid.
        rule: ``random``: ``count`` at random, with replacement only where there are fewer (the paper's rule);
            ``distinct``: up to ``count`` different ones; ``extreme``: one that is not outermost (any, if all are), then
            one of the leftmost, topmost, rightmost and bottommost; ``all``: every foreground patch, in order.
        count: number of VRTs per object.
        rng: source of the draw.

    Raises:
        UserError: the rule is unknown, or there is no foreground patch.
    """
    if len(patches) == 0:
        raise UserError("An object without foreground patches cannot be written as VRTs: leave it out of the answer.")
    if rule == "random":
        chosen = rng.choice(patches, count, replace=len(patches) < count)
    elif rule == "distinct":
        chosen = rng.choice(patches, min(count, len(patches)), replace=False)
    elif rule == "all":
        chosen = patches
    elif rule == "extreme":
        rows, columns = np.divmod(patches, grid_w)
        ends = [columns == columns.min(), rows == rows.min(), columns == columns.max(), rows == rows.max()]
        inner = ~np.any(ends, axis=0)
        candidates = [patches[inner] if inner.any() else patches, *(patches[end] for end in ends)]
        chosen = np.array([rng.choice(some) for some in candidates])
    else:
        raise UserError(f"VRT rule {rule!r} is unknown: {suggestion(rule, get_args(VRTRule))}")
    return tuple(int(patch) for patch in chosen)
