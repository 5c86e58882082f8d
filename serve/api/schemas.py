"""What clients send to ``/v1/predict``: fields, their limits, and which of them belong together."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from padt.data.tasks import TASKS
from padt.errors import UserError, look_up
from serve.api.bodies import Body
from serve.api.errors import RequestError
from serve.api.strict_json import described, parse_object

MOST_QUESTIONS = 32


def _known(task: str) -> str:
    try:
        look_up("task", task[:80], TASKS)
    except UserError as error:
        # In this form it becomes an answer about the field.
        raise ValueError(str(error)) from error
    return task


def visible(text: str) -> str:
    """The text, if there is something to see in it.

    Raises:
        ValueError: it is blank.
    """
    if not any(letter.isprintable() and not letter.isspace() for letter in text):
        raise ValueError("is blank: write at least one visible character")
    return text


Task = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(TASKS)})]
Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(visible)]
MaskFormat = Literal["rle", "polygon", "png", "none"]


class Question(BaseModel):
    """One question."""

    model_config = ConfigDict(extra="forbid")

    task: Task = Field(description="detect needs `names`, refer needs `sentence`, chat needs `prompt`.")
    names: list[Label] = Field(default_factory=list, description="Classes to detect.", max_length=200)
    sentence: str = Field("", description="What to find, as in 'the red car on the left'.", max_length=2000)
    prompt: str = Field("", description="A free prompt, sent to the model as it is.", max_length=8000)

    @model_validator(mode="after")
    def _complete(self) -> "Question":
        needed = TASKS[self.task].words
        if needed and not getattr(self, needed):
            raise ValueError(f"task '{self.task}' needs the field '{needed}'")
        if needed and isinstance(self.words, str):
            try:
                visible(self.words)
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


class Sampling(BaseModel):
    """How an answer is generated; what ``/v1/predict`` and ``/v1/chat/completions`` share."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(0.0, ge=0, le=2, description="0 = the likeliest answer, else sampling.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus of the sampling.")
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="Of the sampling: the same seed, the same answer. None = a fresh one."
    )
    stream: bool = Field(False, description="Answer bit by bit, as server-sent events.")


class PredictRequest(Sampling):
    """A question with its picture, or several questions about the same pictures."""

    image: str | None = Field(
        None, min_length=1, description="The encoded picture (JPEG, PNG, ...) in base64; a data URL will do."
    )
    images: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=1, description="Several pictures, instead of `image`, that each question is about together."
    )
    task: Task | None = Field(None, description="detect needs `names`, refer needs `sentence`, chat needs `prompt`.")
    names: list[Label] = Field(default_factory=list, description="Classes to detect.", max_length=200)
    sentence: str = Field("", description="What to find, as in 'the red car on the left'.", max_length=2000)
    prompt: str = Field("", description="A free prompt, sent to the model as it is.", max_length=8000)
    questions: list[Question] | None = Field(
        None,
        min_length=1,
        max_length=MOST_QUESTIONS,
        description="Several questions about the same pictures, instead of `task`; answered in their order.",
    )
    score_threshold: float = Field(0.0, ge=0, le=1, description="Leave out objects with a lower score.")
    mask: MaskFormat = Field(
        "rle",
        description="Masks as COCO run lengths, as polygons (flat rings x0, y0, x1, y1, ... along the pixels' edges), "
        "as a data URL of a 1-bit PNG, or none.",
    )
    max_new_tokens: int | None = Field(None, ge=1, le=2**31, description="Longest answer; none = the server's limit.")

    @model_validator(mode="after")
    def _one_way_of_asking(self) -> "PredictRequest":
        if self.image is not None and self.images is not None:
            raise ValueError("give either 'image' or 'images', not both")
        if self.questions is None:
            if self.task is None:
                raise ValueError("name a 'task', or give 'questions'")
            Question(task=self.task, names=self.names, sentence=self.sentence, prompt=self.prompt)
        elif self.task is not None or self.names or self.sentence or self.prompt:
            raise ValueError("'task' and its words stand within 'questions' where these are given")
        return self

    @property
    def asked(self) -> list[Question]:
        """The questions, one or several."""
        if self.questions is not None:
            return self.questions
        assert self.task is not None
        return [Question(task=self.task, names=self.names, sentence=self.sentence, prompt=self.prompt)]

    @property
    def sources(self) -> list[str]:
        """The pictures as they were sent."""
        return self.images or ([self.image] if self.image is not None else [])


def read_predict(body: Body) -> tuple[PredictRequest, list[str | bytes]]:
    """The questions of a body, and the pictures that they are about.

    In a form everything is text: ``names`` are separated by commas, and ``questions`` are written in JSON.

    Raises:
        RequestError: 422, fields are missing, unknown or of the wrong kind.
    """
    values = dict(body.fields)
    if body.form:
        if "names" in values:
            values["names"] = [name.strip() for name in values["names"].split(",") if name.strip()]
        if "questions" in values:
            values["questions"] = parse_object(f'{{"questions": {values["questions"]}}}'.encode())["questions"]
        if "images" in values:
            raise RequestError(422, "invalid_request", "images: a form has files 'image'.", param="images")
    asked = validated(PredictRequest, values, strict=not body.form)
    sources: list[str | bytes] = [*body.files, *asked.sources]
    if body.files and asked.sources:
        raise RequestError(422, "invalid_request", "image: it is there as a file and as text.", param="image")
    if not sources and any(TASKS[question.task].grounded for question in asked.asked):
        message = "A picture is missing: add the field 'image', or in a form a file of that name."
        raise RequestError(422, "missing_image", message, param="image")
    return asked, sources


def validated(kind: type, values: Any, strict: bool = True, status: int = 422) -> Any:
    """Values as a pydantic model.

    Raises:
        RequestError: ``status``, they are none; it names each field and what is wrong with it.
    """
    try:
        return kind.model_validate(values, strict=strict)  # type: ignore[attr-defined]
    except ValidationError as error:
        message, param = described(error.errors(include_url=False, include_input=False))
        raise RequestError(status, "invalid_request", message, param=param) from error
