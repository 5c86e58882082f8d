"""From predictions as JSON to objects that ``padt.drawing.objects`` draws. Needs nothing but the model library."""

from collections.abc import Mapping
from typing import Any

from padt.data.rle import decode
from padt.drawing.objects import DrawnObject
from padt.drawing.text import readable as readable


def found_objects(prediction: Mapping[str, Any], image: int = 0) -> list[DrawnObject]:
    """Objects of ``Prediction.to_dict()`` in one image of the request; their VRTs are emphasised."""
    return [
        DrawnObject(
            label=found["label"],
            score=found["score"],
            box=tuple(found["box"]),
            mask=decode(found["mask"]) if found.get("mask") else None,
            patches=(),
            vrts=tuple(found["patches"]),
        )
        for found in prediction["objects"]
        if found.get("image", 0) == image
    ]
