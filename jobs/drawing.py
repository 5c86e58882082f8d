"""From predictions as JSON to objects that ``padt.draw`` draws. Needs nothing but the model library."""

import re
from collections.abc import Mapping
from typing import Any

from padt.draw import DrawnObject
from padt.rle import decode

_LONGEST = 600
_VRTS = re.compile(r"(?:<\|VRT_\d+\|>)+")
_PLACEHOLDER = re.compile(r"<\|Obj_(\d+)\|>")


def readable(text: str) -> str:
    """An answer or stored caption for people: VRTs as ``#7 #8``, placeholders as ``object 1``.

    Blank lines go and the end of a very long text is cut, so that a rambling answer leaves room for the picture.
    """
    text = _VRTS.sub(lambda match: " ".join(f"#{number}" for number in re.findall(r"\d+", match[0])), text)
    text = _PLACEHOLDER.sub(lambda match: f"object {int(match[1]) + 1}", text)
    text = re.sub(r"\s*\n\s*", "\n", text).strip()
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


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
