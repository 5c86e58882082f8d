"""What is asked about pictures, and how answers are generated. Imports neither torch nor transformers."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from padt.data.conversation import Turn, check_turns, read_chat
from padt.data.image import ImageSource
from padt.data.tasks import TASKS, asked
from padt.errors import UserError, look_up

Images = ImageSource | Sequence[ImageSource]


@dataclass(frozen=True)
class Request:
    """What is asked about a picture, about several, or about none.

    Attributes:
        task: one of ``padt.data.tasks.TASKS``; those that are not grounded go without a picture too.
        prompt: the user's words, with the pictures before them; or a conversation that ends with the user's turn.

    Raises:
        UserError: the task is unknown (names the nearest).
    """

    task: str
    prompt: str | tuple[Turn, ...]

    def __post_init__(self) -> None:
        look_up("Task", self.task, TASKS)


def ask(task: str, words: Any = None) -> Request:
    """A request of a task.

    Args:
        task: one of ``padt.data.tasks.TASKS``.
        words: what it names: class names, a sentence, a free prompt; None for ``caption``.

    Raises:
        UserError: the task is unknown, or the words are blank.
    """
    return Request(task, look_up("Task", task, TASKS).prompt(words))


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated.

    Attributes:
        max_new_tokens: longest answer.
        num_beams: beams of a beam search; 1 = none.
        temperature: 0 = greedy, else sampling.
        top_p: nucleus of the sampling.
        forbid_repeats: a VRT may not come twice in one group (robust cross-entropy never punishes repeats).
        masks: decode masks to run lengths; boxes and scores come always.
        cache: transformers' name of the cache: ``dynamic`` grows with the answer; ``static`` has one size, which lets
            transformers compile the decoding step on a GPU.
        calibrated: use the model's score calibration, if it has one (``padt.inference.calibration``).
        text_boxes: read boxes that answers write in numbers (``padt.inference.text_boxes``), for models that were
            trained without VRTs; by ``predict`` and evaluations.
    """

    max_new_tokens: int = 1024
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    forbid_repeats: bool = False
    masks: bool = True
    cache: str = "dynamic"
    calibrated: bool = True
    text_boxes: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise UserError(
                f"max_new_tokens {self.max_new_tokens} and num_beams {self.num_beams} must be at least 1 each."
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature {self.temperature} must not be negative, and top_p {self.top_p} must lie in (0, 1]."
            )


def detect_request(names: Sequence[str]) -> Request:
    """Find every object of the named classes."""
    return ask("detect", names)


def class_names(request: Request) -> tuple[str, ...] | None:
    """The classes that a ``detect`` request asks for; None for any other request."""
    words = asked(request.prompt) if request.task == "detect" and isinstance(request.prompt, str) else None
    return words[1] if words is not None and words[0] == "detect" else None


def refer_request(sentence: str) -> Request:
    """Find the object that a sentence describes."""
    return ask("refer", sentence)


def caption_request() -> Request:
    """Describe the picture, every noun grounded."""
    return ask("caption")


def text_request(prompt: str) -> Request:
    """Ask anything.

    Raises:
        UserError: the prompt is blank.
    """
    return ask("chat", prompt)


def chat_request(messages: Sequence[Mapping[str, Any]], files: bool = True) -> tuple[list[ImageSource], Request]:
    """A conversation as chat APIs send it, in the form that ``predict(model, *chat_request(messages))`` takes.

    Pictures stand in the messages as ``{"type": "image", "image": ...}`` with anything that can be opened, or as
    ``{"type": "image_url", "image_url": {"url": ...}}`` with a data URL. Text is only text: nothing in it marks a
    picture, a turn or a VRT.

    Args:
        messages: roles and contents; the last is the user's.
        files: take text for a picture as the path of a file. A server that answers strangers must not.

    Returns:
        The pictures, and the request.

    Raises:
        UserError: a message lacks its role or content, the turns are out of order, or a picture is only named by a URL.
    """
    turns, sources = read_chat(messages)
    check_turns(turns, len(sources), answered=False)
    pictures = [_embedded(source, files) if isinstance(source, str) else source for source in sources]
    return pictures, Request("chat", turns)


def _embedded(text: str, files: bool) -> ImageSource:
    if not text.startswith("data:"):
        if files and "://" not in text:
            return text
        raise UserError(
            f"The picture {text[:80]} is not fetched: send its bytes as a data URL (data:image/...;base64,...)."
        )
    head, _, content = text.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it must read data:image/...;base64,...")
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"A picture's data URL cannot be read ({error}): encode the file's bytes in base64.") from error


def as_request(words: str | Request) -> Request:
    """A request as it is; plain words become a text request."""
    return words if isinstance(words, Request) else text_request(words)


def paired(
    images: Images | Sequence[Images] | None, requests: str | Request | Sequence[str | Request]
) -> tuple[list[list[ImageSource]], list[Request]]:
    """A list of images for each request, from the forms that ``padt.inference.predict.predict`` takes.

    Raises:
        UserError: they differ in number, or a prompt is blank.
    """
    if isinstance(requests, str | Request):
        return [_as_list(images)], [as_request(requests)]
    each = [as_request(request) for request in requests]
    if images is None or not isinstance(images, list | tuple):
        return [_as_list(images) for _ in each], each
    if len(images) != len(each):
        raise UserError(f"{len(images)} images for {len(each)} requests: give one image, or a list, for each.")
    return [_as_list(cast(Images, one)) for one in images], each


def _as_list(images) -> list[ImageSource]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]
