"""Boxes written as numbers among the words of an answer, as models without Visual Reference Tokens give them.

A box is ``[x0, y0, x1, y1]`` in whole pixels of the resized picture, which is what Qwen2.5-VL writes.
"""

import re
from collections.abc import Iterator, Sequence

_BOX = re.compile(r"\[\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\]")


def text_box(box: Sequence[float]) -> str:
    """``(x0, y0, x1, y1)`` in pixels of the resized picture, as an answer writes it."""
    return f"[{', '.join(str(round(edge)) for edge in box)}]"


def read_text_boxes(text: str) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Each box of a text in pixels of the resized picture, with the words between it and the box before it.

    Boxes without an inside (``x1 <= x0`` or ``y1 <= y0``) are passed over.
    """
    end = 0
    for found in _BOX.finditer(text):
        x0, y0, x1, y1 = (int(number) for number in found.groups())
        if x1 > x0 and y1 > y0:
            yield text[end : found.start()], (x0, y0, x1, y1)
        end = found.end()
