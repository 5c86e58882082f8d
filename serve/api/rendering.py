"""How predictions are put into answers: sizes of the pictures as they came, formats of masks, scores that suffice."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from padt.data.polygons import polygons
from padt.data.rle import decode, resize
from padt.inference.events import ObjectFound, TextPiece
from serve.api.answers import AnswerBody, FrameBody, PredictedObjectBody, usage_of
from serve.api.pictures import Picture
from serve.api.schemas import MaskFormat
from serve.messages import Outcome, StreamItem

Size = tuple[int, int]


def in_original_pixels(found: Mapping[str, Any], seen: Size, original: Size) -> dict[str, Any]:
    """An object, in pixels of the picture as it came; sizes are ``(width, height)``."""
    if seen == original:
        return dict(found)
    scale = (original[0] / seen[0], original[1] / seen[1])
    x0, y0, x1, y1 = found["box"]
    box = (x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1])
    mask = found["mask"] and resize(found["mask"], height=original[1], width=original[0])
    return {**found, "box": box, "mask": mask}


def mask_as(rle: Mapping[str, Any] | None, kind: MaskFormat) -> Any:
    """A run-length mask in another format."""
    if rle is None or kind == "none":
        return None
    if kind == "polygon":
        return polygons(rle)
    return png_url(rle) if kind == "png" else rle


def png_url(rle: Mapping[str, Any]) -> str:
    """A mask as a data URL of a 1-bit PNG of the picture's size, white where the object is."""
    buffer = io.BytesIO()
    Image.fromarray(decode(rle)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Rendering:
    """How the answers to a request are written.

    Attributes:
        name: of the model.
        pictures: of the request.
        mask: format of masks.
        score_threshold: objects with a lower score are left out.
    """

    name: str
    pictures: Sequence[Picture]
    mask: MaskFormat = "rle"
    score_threshold: float = 0.0

    def object(self, found: Mapping[str, Any]) -> PredictedObjectBody:
        """An object (``PredictedObject.to_dict``) in pixels of the picture as it came."""
        picture = self.pictures[found["image"]]
        values = in_original_pixels(found, picture.image.size, picture.size)
        return PredictedObjectBody.model_validate({**values, "mask": mask_as(values["mask"], self.mask)})

    def answer(self, task: str, outcome: Outcome) -> AnswerBody:
        """An outcome with a prediction; times are those of the engine."""
        prediction = outcome.prediction
        assert prediction is not None
        frames = [
            FrameBody(width=picture.size[0], height=picture.size[1], grid=tuple(frame["grid"]))
            for frame, picture in zip(prediction["images"], self.pictures, strict=True)
        ]
        first = frames[0] if frames else FrameBody(width=0, height=0, grid=(0, 0))
        times = outcome.times
        phases = {"queue": times.queued, "prefill": times.prefill, "steps": times.decode, "objects": times.objects}
        if times.refine:
            phases["refine"] = times.refine
        return AnswerBody(
            model=self.name,
            version=outcome.version,
            fingerprint=outcome.fingerprint,
            task=task,
            objects=[self.object(one) for one in prediction["objects"] if one["score"] >= self.score_threshold],
            images=frames,
            width=first.width,
            height=first.height,
            grid=first.grid,
            finish_reason="length" if prediction["truncated"] else "stop",
            usage=usage_of(outcome),
            milliseconds=milliseconds(phases),
            **{key: prediction[key] for key in ("text", "truncated", "warnings")},
        )


def milliseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Times as they are sent."""
    return {phase: round(value * 1e3, 1) for phase, value in seconds.items()}


@dataclass
class Written:
    """An answer that is written bit by bit."""

    rendering: Rendering
    _length: int = field(default=0, init=False)
    _found: int = field(default=0, init=False)

    def take(self, items: Sequence[StreamItem]) -> list[tuple[str, dict[str, Any]]]:
        """What has come of the answer, as names and data of events.

        Returns:
            ``("text", {"text"})`` and ``("object", {"number", "at", "object"})``, where ``at`` counts the characters of
            text before the object.
        """
        events: list[tuple[str, dict[str, Any]]] = []
        for item in items:
            if isinstance(item, TextPiece):
                events.append(("text", {"text": item.text}))
                self._length += len(item.text)
            elif isinstance(item, ObjectFound) and item.object.score >= self.rendering.score_threshold:
                body = self.rendering.object(item.object.to_dict()).model_dump(mode="json")
                events.append(("object", {"number": self._found, "at": self._length, "object": body}))
                self._found += 1
        return events
