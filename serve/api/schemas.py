"""What goes over HTTP: requests, answers and errors of ``/v1/predict`` and ``/v1/models``."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from padt.data.tasks import TASKS
from padt.errors import UserError, look_up


def _known(task: str) -> str:
    try:
        look_up("task", task, TASKS)
    except UserError as error:
        # In this form it becomes an answer about the field.
        raise ValueError(str(error)) from error
    return task


def _visible(text: str) -> str:
    if not any(letter.isprintable() and not letter.isspace() for letter in text):
        raise ValueError("is blank: write at least one visible character")
    return text


Task = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(TASKS)})]
Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_visible)]


class Question(BaseModel):
    """What is asked about the image; the fields that `application/json` and `multipart/form-data` share."""

    model_config = ConfigDict(extra="forbid")

    task: Task = Field(description="detect needs `names`, refer needs `sentence`, chat needs `prompt`.")
    names: list[Label] = Field(default_factory=list, description="Classes to detect.", max_length=200)
    sentence: str = Field("", description="What to find, as in 'the red car on the left'.", max_length=2000)
    prompt: str = Field("", description="A free prompt, sent to the model as it is.", max_length=8000)
    mask: Literal["rle", "none"] = Field("rle", description="Masks as COCO run lengths, or none.")
    max_new_tokens: int | None = Field(None, ge=1, description="Longest answer; none = the server's limit.")

    @model_validator(mode="after")
    def _complete(self) -> "Question":
        needed = TASKS[self.task].words
        if needed and not getattr(self, needed):
            raise ValueError(f"task '{self.task}' needs the field '{needed}'")
        if needed and isinstance(self.words, str):
            try:
                _visible(self.words)
            except ValueError as error:
                raise ValueError(f"the field '{needed}' {error}") from error
        for task in TASKS.values():
            if task.words and task.words != needed and getattr(self, task.words):
                raise ValueError(f"the field '{task.words}' does not belong to task '{self.task}'")
        return self

    @property
    def words(self) -> Any:
        """What the task names; None where it names nothing."""
        needed = TASKS[self.task].words
        return getattr(self, needed) if needed else None


class PredictRequest(Question):
    """A question with its image, as JSON."""

    image: str = Field(description="The encoded picture (JPEG, PNG, ...) in base64; a data URL will do.", min_length=1)


class PredictedObjectBody(BaseModel):
    """One grounded thing."""

    label: str
    score: float = Field(description="Between 0 and 1.")
    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels of the upright image.")
    mask: dict[str, Any] | None = Field(description="COCO run lengths {size: [height, width], counts}, or null.")
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


class PredictResponse(BaseModel):
    """An answer."""

    model: str
    task: Task
    text: str
    objects: list[PredictedObjectBody]
    images: list[FrameBody] = Field(description="The request's pictures.")
    width: int = Field(description="Of the first picture.")
    height: int
    grid: tuple[int, int] = Field(description="Rows and columns of the first picture's patches.")
    truncated: bool = Field(description="The answer was cut at max_new_tokens.")
    warnings: list[str]
    milliseconds: dict[str, float] = Field(description="Time spent: decode, answer (queue, batch, model).")


class ModelCard(BaseModel):
    """One entry of the model list."""

    id: str
    object: Literal["model"] = "model"
    owned_by: str = "padt"
    source: str
    device: str
    tasks: list[Task]


class ModelList(BaseModel):
    """All models that answer here."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """Why a request was refused."""

    code: str = Field(description="Stable name, for programs.")
    message: str = Field(description="What is wrong and what to do about it, for people.")


class ErrorBody(BaseModel):
    """Every answer that is not 2xx."""

    error: ErrorDetail
