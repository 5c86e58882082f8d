"""Rows of a data set as pictures."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from padt.data.image import open_image
from padt.data.patches import unpack_patches
from padt.drawing.objects import DrawnObject, contact_sheet, draw_objects
from pipelines.io.images import read_image

_NO_PICTURE = (640, 32)
_MOST_LETTERS = 300
_PLACEHOLDER = re.compile(r"<\|Obj_(\d+)\|>")


def draw_row(row: Mapping[str, Any], most_lines: int = 6) -> Image.Image:
    """A row's image with its patch grid, foreground patches, masks, boxes, and sentences below; or a conversation.

    Args:
        row: a row of a shard as a dictionary; a linked image is read from its path.
        most_lines: longest list of sentences and captions.

    Raises:
        ImageError: the image cannot be read.
    """
    if row.get("messages"):
        return _draw_conversation(row, most_lines)
    image = _opened(row["image"])
    cells = row["grid_h"] * row["grid_w"]
    objects = [
        DrawnObject(
            label=f"{number} {item['label']}" + (" (crowd)" if item["iscrowd"] else ""),
            box=_in_pixels(item["box"], row["width"], row["height"]),
            mask=item["rle"],
            patches=tuple(np.flatnonzero(unpack_patches(item["patches"], cells)).tolist()),
        )
        for number, item in enumerate(row["objects"])
    ]
    return draw_objects(image, objects, (row["grid_h"], row["grid_w"]), _lines(row, most_lines))


def _opened(stored: Mapping[str, Any]) -> Image.Image:
    return open_image(read_image(stored["path"]) if stored["bytes"] is None else stored["bytes"])


def _draw_conversation(row: Mapping[str, Any], most: int) -> Image.Image:
    """The pictures of a conversation side by side, and what is said below."""
    stored = [row["image"], *(row.get("more_images") or ())] if row["image"] is not None else []
    pictures = [_opened(image) for image in stored] or [Image.new("RGB", _NO_PICTURE, "white")]
    picture = pictures[0] if len(pictures) == 1 else contact_sheet(pictures, len(pictures))
    said = [_shortened(f"{message['role']}: {message['content']}") for message in row["messages"]]
    left_out = [f"and {len(said) - most + 1} more turns"] if len(said) > most else []
    return draw_objects(picture, [], None, "\n".join([*said[: most - len(left_out)], *left_out]))


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_LETTERS else f"{line[: _MOST_LETTERS - 1]}\u2026"


def _in_pixels(box, width: int, height: int) -> tuple[float, float, float, float]:
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _lines(row: Mapping[str, Any], most: int) -> str:
    references = [
        f"“{item['text']}”: {', '.join(str(place) for place in item['objects']) or 'nothing'}"
        for item in row["references"]
    ]
    captions = [_with_places(caption["text"], caption["objects"]) for caption in row["captions"]]
    if len(references) + len(captions) <= most:
        return "\n".join([*references, *captions])
    # Some of both kinds, and a line that says how many are left out.
    shown_captions = min(len(captions), max(most // 3, most - 1 - len(references)))
    shown_references = most - 1 - shown_captions
    left_out = len(references) + len(captions) - most + 1
    return "\n".join([*references[:shown_references], *captions[:shown_captions], f"and {left_out} more"])


def _with_places(text: str, objects: Sequence[int]) -> str:
    """A caption with the places of its objects in the row where its placeholders are."""
    return _PLACEHOLDER.sub(lambda match: str(objects[int(match.group(1))]), text)
