"""What clients get: answers, lists and errors, and how a prediction is put into them."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, Field

from padt.data.polygons import polygons
from padt.data.rle import decode, resize
from serve.api.schemas import MaskFormat, Task
from serve.messages import Outcome

Size = tuple[int, int]


class PredictedObjectBody(BaseModel):
    """One grounded thing."""

    label: str
    score: float = Field(description="Between 0 and 1.")
    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels of the upright image.")
    mask: dict[str, Any] | list[list[int]] | str | None = Field(
        description="In the format that was asked for: COCO run lengths {size: [height, width], counts}, rings, a data "
        "URL, or null."
    )
    patches: list[int] = Field(
        description="The Visual Reference Tokens: patch numbers, row-major in the picture's grid."
    )
    span: tuple[int, int] = Field(description="Its tokens in the answer, end exclusive.")
    confidence: float = Field(description="Geometric mean of the probabilities of its Visual Reference Tokens.")
    complete: bool = Field(description="False where the answer was cut within the object, or a part was dropped.")
    image: int = Field(description="Which of the request's pictures it is in, from 0.")


class FrameBody(BaseModel):
    """Size of one picture."""

    width: int = Field(description="Of the upright picture as it came, in pixels.")
    height: int
    grid: tuple[int, int] = Field(description="Rows and columns of its patches.")


class Usage(BaseModel):
    """Lengths of a question and its answer."""

    prompt_tokens: int = Field(description="Patches of the pictures included.")
    completion_tokens: int
    total_tokens: int


class AnswerBody(BaseModel):
    """An answer."""

    model: str
    version: str = Field(description="Of the model that answered.")
    fingerprint: str = Field(description="Of that model's weights.")
    task: Task
    text: str = Field(description="With Visual Reference Tokens as <|VRT_k|>.")
    objects: list[PredictedObjectBody]
    images: list[FrameBody] = Field(description="The request's pictures.")
    width: int = Field(description="Of the first picture; 0 without one.")
    height: int
    grid: tuple[int, int] = Field(description="Rows and columns of the first picture's patches.")
    truncated: bool = Field(description="The answer was cut at max_new_tokens.")
    finish_reason: Literal["stop", "length"]
    warnings: list[str]
    usage: Usage
    milliseconds: dict[str, float] = Field(
        description="Time spent: decode (reading the request, opening pictures), queue, prefill, steps, objects, "
        "encode (masks into their format), total."
    )


class AnswersBody(BaseModel):
    """Answers to several questions, in their order."""

    model: str
    version: str
    fingerprint: str
    answers: list[AnswerBody]


class ModelCard(BaseModel):
    """One entry of the model list."""

    id: str
    object: Literal["model"] = "model"
    owned_by: str = "padt"
    source: str
    device: str
    version: str
    fingerprint: str
    tasks: list[Task]


class ModelList(BaseModel):
    """All models that answer here."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """Why a request was refused."""

    message: str = Field(description="What is wrong and what to do about it, for people.")
    type: str = Field(description="Kind of error, as OpenAI's API names them.")
    code: str = Field(description="Stable name, for programs.")
    param: str | None = Field(description="The field that is to blame, if it is one.")


class ErrorBody(BaseModel):
    """Every answer that is not 2xx."""

    error: ErrorDetail


def usage_of(outcome: Outcome) -> Usage:
    """Lengths of a question and its answer."""
    asked, said = outcome.prompt_tokens, outcome.completion_tokens
    return Usage(prompt_tokens=asked, completion_tokens=said, total_tokens=asked + said)


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


def object_body(found: Mapping[str, Any], seen: Size, original: Size, mask: MaskFormat) -> PredictedObjectBody:
    """An object (``PredictedObject.to_dict``) as it is sent.

    Args:
        found: in pixels of the picture that the engine saw.
        seen: width and height of that picture.
        original: width and height of the upright picture as it came.
        mask: format of its mask.
    """
    values = in_original_pixels(found, seen, original)
    return PredictedObjectBody.model_validate({**values, "mask": mask_as(values["mask"], mask)})


def answer_body(
    name: str, task: str, outcome: Outcome, objects: Sequence[PredictedObjectBody], originals: Sequence[Size]
) -> AnswerBody:
    """An outcome with a prediction as it is sent.

    Args:
        name: of the model.
        task: that was asked.
        outcome: about the pictures that the engine saw.
        objects: of the prediction, as they are sent.
        originals: widths and heights of the upright pictures as they came.
    """
    prediction = outcome.prediction
    assert prediction is not None
    frames = [
        FrameBody(width=width, height=height, grid=tuple(frame["grid"]))
        for frame, (width, height) in zip(prediction["images"], originals, strict=True)
    ]
    first = frames[0] if frames else FrameBody(width=0, height=0, grid=(0, 0))
    times = outcome.times
    phases = {"queue": times.queued, "prefill": times.prefill, "steps": times.decode, "objects": times.objects}
    return AnswerBody(
        model=name,
        version=outcome.version,
        fingerprint=outcome.fingerprint,
        task=task,
        objects=list(objects),
        images=frames,
        width=first.width,
        height=first.height,
        grid=first.grid,
        finish_reason="length" if prediction["truncated"] else "stop",
        usage=usage_of(outcome),
        milliseconds={phase: round(seconds * 1e3, 1) for phase, seconds in phases.items()},
        **{key: prediction[key] for key in ("text", "truncated", "warnings")},
    )
