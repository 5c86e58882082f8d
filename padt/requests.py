"""What is asked about pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

from padt.errors import UserError
from padt.tasks import CAPTION_PROMPT, detect_prompt, refer_prompt


@dataclass(frozen=True)
class Request:
    """What is asked about a picture, about several, or about none.

    Attributes:
        task: ``detect``, ``refer``, ``caption`` or ``text``; only ``text`` goes without a picture.
        prompt: the user's turn.
    """

    task: str
    prompt: str


def detect_request(names: Sequence[str]) -> Request:
    """Find every object of the named classes."""
    return Request("detect", detect_prompt(names))


def refer_request(sentence: str) -> Request:
    """Find the object that a sentence describes."""
    return Request("refer", refer_prompt(sentence))


def caption_request() -> Request:
    """Describe the picture, every noun grounded."""
    return Request("caption", CAPTION_PROMPT)


def text_request(prompt: str) -> Request:
    """Ask anything.

    Raises:
        UserError: the prompt is blank.
    """
    if not prompt.strip():
        raise UserError("The prompt is blank: say what you want to know.")
    return Request("text", prompt)


def as_request(words: str | Request) -> Request:
    """A request as it is; plain words become a text request."""
    return words if isinstance(words, Request) else text_request(words)
