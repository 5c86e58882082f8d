"""Rows of a data set as pictures."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from padt import rle
from padt.draw import DrawnObject, draw_objects
from padt.image import open_image
from padt.patches import unpack_patches
from pipelines.images import read_image

_PLACEHOLDER = re.compile(r"<\|Obj_(\d+)\|>")


def draw_row(row: Mapping[str, Any], most_lines: int = 6) -> Image.Image:
    """A row's image with its patch grid, foreground patches, masks, boxes, and sentences below.

    Args:
        row: a row of a shard as a dictionary; a linked image is read from its path.
        most_lines: longest list of sentences and captions.

    Raises:
        ImageError: the image cannot be read.
    """
    content = row["image"]["bytes"]
    image = open_image(read_image(row["image"]["path"]) if content is None else content)
    cells = row["grid_h"] * row["grid_w"]
    objects = [
        DrawnObject(
            label=f"{number} {item['label']}" + (" (crowd)" if item["iscrowd"] else ""),
            box=_in_pixels(item["box"], row["width"], row["height"]),
            mask=rle.decode(item["rle"]) if item["rle"] is not None else None,
            patches=tuple(np.flatnonzero(unpack_patches(item["patches"], cells)).tolist()),
        )
        for number, item in enumerate(row["objects"])
    ]
    return draw_objects(image, objects, (row["grid_h"], row["grid_w"]), _lines(row, most_lines))


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
