"""Conversations: turns of text, pictures and objects, and how they are read from messages.

Two ways of writing are understood. ``read_messages`` takes what a shard stores (and LLaVA writes): plain text in which
``<image>`` marks the next picture. ``read_chat`` takes what chat APIs send: content in parts, where text is only text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from padt.errors import UserError

Role = Literal["system", "user", "assistant"]
IMAGE_MARKER = "<image>"


@dataclass(frozen=True)
class ImagePlace:
    """Where the next picture of the sample stands among the words."""


IMAGE_PLACE = ImagePlace()


@dataclass(frozen=True)
class Said:
    """What the model itself has said before, token by token, VRTs included.

    See ``padt.inference.results.Prediction.turn``.
    """

    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ObjectTarget:
    """One grounded thing of an image, as the losses need it.

    Attributes:
        label: class name or sentence.
        box: ``(x0, y0, x1, y1)`` normalised to [0, 1] of the upright image.
        patches: indices of the foreground patches, row-major in the image's grid, ascending.
        rle: COCO run-length mask ``{"size": [height, width], "counts": str}``, or None for boxes without masks.
    """

    label: str
    box: tuple[float, float, float, float]
    patches: tuple[int, ...]
    rle: dict[str, Any] | None = None


@dataclass(frozen=True)
class Group:
    """The place of an object in an answer: consecutive VRTs.

    Attributes:
        target: the object.
        vrts: patch indices in the object's own image.
        image: which of the sample's images that is.
    """

    target: ObjectTarget
    vrts: tuple[int, ...]
    image: int = 0


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: who speaks.
        content: text, and places of pictures in user turns; in the assistant's also groups of VRTs (to learn), or what
            was generated before.
    """

    role: Role
    content: tuple[str | Group | ImagePlace | Said, ...]

    @property
    def text(self) -> str:
        """The words alone."""
        return "".join(piece for piece in self.content if isinstance(piece, str))


class ConversationError(UserError):
    """A conversation that cannot be used.

    Attributes:
        reason: one of ``CONVERSATION_REASONS``; prepared data sets store it with the reject row.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


CONVERSATION_REASONS = (
    "conversation_malformed",
    "role_unknown",
    "roles_out_of_order",
    "answer_empty",
    "image_marker_mismatch",
    "content_unsupported",
)


def question(prompt: str, images: int) -> Turn:
    """A user's turn: pictures first, then the words."""
    return Turn("user", (IMAGE_PLACE,) * images + (prompt,))


def prompt_turns(prompt: str | Sequence[Turn], images: int) -> tuple[Turn, ...]:
    """A prompt as turns. Pictures that no turn has a place for, if none has one, come before the first user's words."""
    if isinstance(prompt, str):
        return (question(prompt, images),)
    if images and not any(IMAGE_PLACE in turn.content for turn in prompt):
        return _with_leading_images(prompt, images)
    return tuple(prompt)


def check_turns(turns: Sequence[Turn], images: int, answered: bool) -> None:
    """Refuse what no chat template has a form for.

    A conversation may begin with one system turn; then user and assistant alternate, the user first.

    Args:
        turns: the conversation.
        images: number of its pictures.
        answered: it must end with the assistant's turn (training), or else with the user's (a prompt).

    Raises:
        ConversationError: roles are unknown or out of order, the assistant says nothing, or pictures and their places
            do not match.
    """
    for number, turn in enumerate(turns, start=1):
        if turn.role not in get_args(Role):
            raise ConversationError(
                "role_unknown", f"Turn {number} has role {turn.role!r}: use {', '.join(get_args(Role))}."
            )
        if turn.role == "assistant" and not any(not isinstance(piece, str) or piece.strip() for piece in turn.content):
            raise ConversationError("answer_empty", f"Turn {number}, the assistant's, has no text: fill or remove it.")
    spoken = [turn.role for turn in turns]
    rest = spoken[1:] if spoken[:1] == ["system"] else spoken
    wanted = ["user" if place % 2 == 0 else "assistant" for place in range(len(rest))]
    last = "assistant" if answered else "user"
    if not rest or rest != wanted or rest[-1] != last:
        place = next((n for n, (a, b) in enumerate(zip(rest, wanted, strict=True)) if a != b), len(rest) - 1)
        raise ConversationError(
            "roles_out_of_order",
            f"The turns do not go user, assistant, ..., {last} (turn {place + 1 + len(spoken) - len(rest)} of "
            f"{len(spoken)}): put them in order.",
        )
    places = sum(isinstance(piece, ImagePlace) for turn in turns for piece in turn.content)
    if places != images:
        raise ConversationError(
            "image_marker_mismatch", f"The turns have {places} places for {images} pictures: give each picture one."
        )


def read_messages(messages: Sequence[Mapping[str, Any]], images: int) -> tuple[Turn, ...]:
    """Turns of stored messages (``{"role", "content"}``), in which ``<image>`` in a user's text marks a picture.

    One line break between a marker and the words belongs to the marker: in a chat, words follow a picture directly.
    Pictures without any marker come first, as LLaVA means it.

    Raises:
        ConversationError: see ``check_turns``.
    """
    turns = tuple(
        Turn(
            message["role"], tuple(_marked(message["content"])) if message["role"] == "user" else (message["content"],)
        )
        for message in messages
    )
    turns = prompt_turns(turns, images)
    check_turns(turns, images, answered=True)
    return turns


def read_chat(messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[Turn, ...], tuple[Any, ...]]:
    """Turns and picture sources of chat messages whose content is text, or parts of text and pictures.

    Parts are ``{"type": "text", "text": ...}``, ``{"type": "image", "image": ...}`` (whatever stands there is handed
    on) and ``{"type": "image_url", "image_url": {"url": ...}}`` (the URL is handed on as text). Order and roles are not
    checked here: see ``check_turns``.

    Raises:
        ConversationError: a message lacks role or content, or a part is of another kind.
    """
    turns: list[Turn] = []
    images: list[Any] = []
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not isinstance(content, str | list | tuple):
            raise ConversationError("conversation_malformed", f"Message {number} lacks a role or its content: add it.")
        pieces: list[Any] = [content] if isinstance(content, str) else []
        for part in () if isinstance(content, str) else content:
            kind, value = _part(part, number)
            if kind == "image":
                images.append(value)
            pieces.append(IMAGE_PLACE if kind == "image" else value)
        turns.append(Turn(role, tuple(pieces)))  # type: ignore[arg-type]  # check_turns knows the roles
    return tuple(turns), tuple(images)


def _part(part: Any, number: int) -> tuple[str, Any]:
    if isinstance(part, str):
        return "text", part
    if isinstance(part, Mapping):
        kind = part.get("type") or next((each for each in ("text", "image", "image_url") if each in part), None)
        value = part.get(kind) if isinstance(kind, str) else None
        if kind == "image_url" and isinstance(value, Mapping):
            value = value.get("url")
        if kind == "text" and isinstance(value, str):
            return "text", value
        if kind in ("image", "image_url") and value is not None:
            return "image", value
    raise ConversationError(
        "content_unsupported", f"Message {number} has a part that is neither text nor a picture ({str(part)[:60]})."
    )


def _marked(text: str) -> Iterator["str | ImagePlace"]:
    pieces = text.split(IMAGE_MARKER)
    for number, piece in enumerate(pieces):
        if number:
            yield IMAGE_PLACE
            piece = piece.removeprefix("\n")
        if number < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece:
            yield piece


def _with_leading_images(turns: Sequence[Turn], images: int) -> tuple[Turn, ...]:
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    return tuple(
        Turn(turn.role, (IMAGE_PLACE,) * images + turn.content) if number == first else turn
        for number, turn in enumerate(turns)
    )
