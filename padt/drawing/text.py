"""Words on pictures: letters, lines of a width, and answers as people read them."""

import math
import re
from functools import cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER = (250, 250, 248)
INK = (32, 33, 36)
_LONGEST = 600
_VRTS = re.compile(r"(?:<\|VRT_\d+\|>)+")
_PLACEHOLDER = re.compile(r"<\|Obj_(\d+)\|>")


@cache
def font_of(size: int) -> Font:
    """Letters of a size in pixels."""
    return ImageFont.load_default(size)


def height_of(font: Font) -> int:
    """Pixels from the top of a line to the foot of its deepest letter."""
    return math.ceil(font.getbbox("Ågy|")[3])


def shortened(text: str, font: Font, width: int) -> str:
    """A line that fits into ``width`` pixels; what is cut off is shown by dots."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines that fit into ``width`` pixels; the text's own lines are kept."""
    lines = []
    for paragraph in text.splitlines():
        words = paragraph.split() or [""]
        line = words[0]
        for word in words[1:]:
            if font.getlength(f"{line} {word}") <= width:
                line = f"{line} {word}"
            else:
                lines.append(line)
                line = word
        lines.append(line)
    return [shortened(line, font, width) for line in lines]


def readable(text: str) -> str:
    """An answer or stored caption for people: VRTs as ``#7 #8``, placeholders as ``object 1``.

    Blank lines go and the end of a very long text is cut, so that a rambling answer leaves room for the picture.
    """
    text = _VRTS.sub(lambda match: " ".join(f"#{number}" for number in re.findall(r"\d+", match[0])), text)
    text = _PLACEHOLDER.sub(lambda match: f"object {int(match[1]) + 1}", text)
    text = re.sub(r"\s*\n\s*", "\n", text).strip()
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
