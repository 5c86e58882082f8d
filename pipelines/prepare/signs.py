"""What a set as a whole shows and no single object could: boxes in another form, masks that were lost, crowds only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Judged by comparison with each other, boxes must be at least so many.
_FEWEST_BOXES = 8


@dataclass(frozen=True)
class _Rule:
    """When a sign (or repair) is worth a note: at least ``share`` of the things ``of`` show it, and ``also`` holds."""

    sign: str
    share: float = 0.0
    of: str = "objects"
    also: Callable[[Mapping[str, int]], bool] = lambda seen: True


_RULES = (
    _Rule(
        "boxes_beyond_as_sizes",
        share=0.2,
        of="boxes",
        also=lambda seen: seen["boxes_read_as_corners"] >= 0.99 * seen["boxes"],
    ),
    _Rule("box_clipped", share=0.2),
    _Rule("areas_of_corners", share=0.2, of="boxes"),
    _Rule(
        "boxes_below_100",
        share=0.95,
        of="boxes_in_large_images",
        also=lambda seen: seen["boxes_in_large_images"] >= _FEWEST_BOXES,
    ),
    _Rule("box_reread"),
    _Rule("box_turned"),
    _Rule("boxes_unlike_masks", share=0.05),
    _Rule("size_swapped"),
    _Rule("mask_unread"),
    _Rule("mask_empty", share=0.01),
    _Rule("crowds", share=0.5),
)


def judge(seen: Mapping[str, int], examples: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """Signs that a person should know of before training on a set: count and example by code of ``NOTES``.

    Args:
        seen: signs (``pipelines.prepare.objects``) and repairs of the set, and its ``objects``; 0 where it has no key.
        examples: key of an image with a sign or repair, by its name.
    """
    return {
        rule.sign: (seen[rule.sign], examples[rule.sign])
        for rule in _RULES
        if 0 < seen[rule.sign] >= rule.share * seen[rule.of] and rule.also(seen)
    }
