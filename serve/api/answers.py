"""What clients get: the shapes of answers, lists and errors."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from serve.api.schemas import Task
from serve.messages import Outcome


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
        "refine (masks by SAM 2, where the server does), encode (masks into their format), total."
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
