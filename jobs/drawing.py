"""From predictions as JSON to objects that ``padt.draw`` draws. Needs nothing but the model library."""

import re
from collections.abc import Mapping
from typing import Any

from padt.draw import DrawnObject
from padt.rle import decode

_VRTS = re.compile(r"(?:<\|VRT_\d+\|>)+")
_PLACEHOLDER = re.compile(r"<\|Obj_(\d+)\|>")


def readable(text: str) -> str:
    """An answer or stored caption for people: VRTs as ``#7 #8``, placeholders as ``object 1``."""
    text = _VRTS.sub(lambda match: " ".join(f"#{number}" for number in re.findall(r"\d+", match[0])), text)
    return _PLACEHOLDER.sub(lambda match: f"object {int(match[1]) + 1}", text)


def found_objects(prediction: Mapping[str, Any]) -> list[DrawnObject]:
    """Objects of ``Prediction.to_dict()``; their VRTs are emphasised."""
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
    ]
