"""What goes over the wire, both ways, as pure functions: questions as bodies, answers as predictions or errors."""

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypedDict, cast

from padt.data.image import ImageSource, open_image
from padt.data.tasks import TASKS, asked
from padt.errors import EndpointError, ImageError, UserError
from padt.inference.events import ObjectFound, TextPiece
from padt.inference.requests import Images, Request, as_request, ask
from padt.inference.results import PredictedObject, Prediction

StreamEvent = TextPiece | ObjectFound | Prediction
Asked = str | Request

JSON_LINES = {"Content-Type": "application/jsonl"}
# One call of a batch: enough to keep an endpoint busy, little enough to be held and sent again.
BATCH_LINES = 64
BATCH_BYTES = 12 * 2**20


class Options(TypedDict, total=False):
    """How a question is answered; what is left out is as the endpoint has it.

    Attributes:
        score_threshold: leave out objects with a lower score, 0 to 1.
        masks: whether objects have masks.
        max_new_tokens: longest answer.
        temperature: 0 = greedy, else sampling.
        top_p: nucleus of the sampling.
        seed: of the sampling.
    """

    score_threshold: float
    masks: bool
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class ServedModel:
    """One model of an endpoint.

    Attributes:
        id: its name.
        tasks: what it can be asked.
        about: everything that the endpoint says of it (version, fingerprint, device, source).
    """

    id: str
    tasks: tuple[str, ...]
    about: dict[str, Any] = field(default_factory=dict)


def body(images: Images | None, requests: Sequence[Asked], options: Options, stream: bool = False) -> dict[str, Any]:
    """The body of ``POST /v1/predict``: one question, or several about the same pictures.

    Raises:
        UserError: nothing is asked, or a request is one that the endpoint has no form for.
        ImageError: a picture cannot be read.
    """
    if not requests:
        raise UserError("Nothing is asked: give at least one request.")
    fields: dict[str, Any] = {key: value for key, value in options.items() if key != "masks"}
    if not options.get("masks", True):
        fields["mask"] = "none"
    if isinstance(images, list | tuple):
        fields |= {"images": [picture(image) for image in images]} if images else {}
    elif images is not None:
        fields["image"] = picture(cast(ImageSource, images))
    questions = [question(request) for request in requests]
    fields.update(questions[0] if len(questions) == 1 else {"questions": questions})
    return {**fields, "stream": True} if stream else fields


def question(request: Asked) -> dict[str, Any]:
    """A request as the fields of a question.

    Raises:
        UserError: it is a conversation, or its prompt is not the one of its task.
    """
    request = as_request(request)
    if not isinstance(request.prompt, str):
        raise UserError(
            "A conversation is no question of /v1/predict: send it to /v1/chat/completions, for example with the "
            "openai package."
        )
    needed = TASKS[request.task].words
    words: Any = request.prompt
    if request.task != "chat":
        found = asked(request.prompt)
        words = list(found[1]) if found and isinstance(found[1], tuple) else found and found[1]
        if found is None or found[0] != request.task or ask(request.task, words) != request:
            raise UserError(
                f"The prompt {request.prompt[:80]!r} is not worded as task {request.task!r}: make the request with "
                "padt.inference.requests, or send other words with text_request."
            )
    return {"task": request.task, **({needed: words} if needed else {})}


def picture(source: ImageSource) -> str:
    """A picture as base64: a file's bytes as they are, pixels as PNG; an address of the web stays one.

    Raises:
        ImageError: there is no such file, or it is no picture.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
    elif isinstance(source, str | Path) or hasattr(source, "__fspath__"):
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise ImageError("image_missing", f"{source} cannot be read ({error.strerror}): check the path.") from error
    else:
        # Lossless, so that the answer is the one that the same pixels would get without a wire.
        buffer = io.BytesIO()
        open_image(source).save(buffer, "PNG", compress_level=1)
        content = buffer.getvalue()
    return base64.b64encode(content).decode("ascii")


def predictions(answer: Mapping[str, Any]) -> list[Prediction]:
    """The predictions of an answer of ``/v1/predict``: one for each question.

    Raises:
        UserError: the answer is none of this version.
    """
    return [Prediction.from_dict(each) for each in answer.get("answers", [answer])]


def models(answer: Mapping[str, Any]) -> list[ServedModel]:
    """The entries of an answer of ``/v1/models``."""
    return [ServedModel(card["id"], tuple(card.get("tasks", ())), dict(card)) for card in answer["data"]]


def refusal(status: int, headers: Mapping[str, str], content: bytes) -> EndpointError:
    """The error of an answer that is not 2xx; whoever stands between may have answered in another shape."""
    request_id = headers.get("x-request-id", "")
    try:
        return told(json.loads(content), status, request_id)
    except (ValueError, KeyError, TypeError):
        text = " ".join(content.decode("utf-8", "replace").split())[:200]
        message = f"The endpoint answered with status {status}: {text}"
        return EndpointError(message, status, f"http_{status}", request_id)


def parsed(headers: Mapping[str, str], content: bytes) -> dict[str, Any]:
    """The body of an answer with status 2xx.

    Raises:
        EndpointError: it is no JSON object.
    """
    try:
        values = json.loads(content)
        if isinstance(values, dict):
            return values
    except ValueError:
        pass
    message = f"The endpoint answered with {content[:80]!r}, which is no JSON object: check its address."
    raise EndpointError(message, 200, "no_json", headers.get("x-request-id", ""))


def told(values: Mapping[str, Any], status: int, request_id: str) -> EndpointError:
    """The error of a body ``{"error": {"code", "message"}}``."""
    error = values["error"]
    return EndpointError(str(error["message"]), status, str(error["code"]), request_id)


def wait_before(attempt: int, headers: Mapping[str, str], now: datetime | None = None) -> float:
    """Seconds to wait before attempt number ``attempt`` (the first repetition is 1), by ``Retry-After`` where told."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return float(min(8.0, 0.25 * 2**attempt))
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


class _Lines:
    """Cuts bytes into lines as they come.

    Lines end with a line feed only: what else counts as a line end in Unicode may stand within JSON.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, content: bytes) -> list[str]:
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [line.decode("utf-8").removesuffix("\r") for line in lines]


def _cut_off(request_id: str) -> EndpointError:
    return EndpointError("The endpoint broke off in the middle: ask again.", 200, "cut_off", request_id)


class EventReader:
    """Reads the server-sent events of ``/v1/predict`` as their bytes come."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._request_id = headers.get("x-request-id", "")
        self._lines = _Lines()
        self._name = ""
        self._data: list[str] = []
        self._ended = False

    def feed(self, content: bytes) -> Iterator[StreamEvent]:
        """The events that these bytes complete.

        Raises:
            EndpointError: the answer failed on the way.
        """
        for line in self._lines.feed(content):
            name, _, value = line.partition(":")
            if name == "event":
                self._name = value.removeprefix(" ")
            elif name == "data":
                self._data.append(value.removeprefix(" "))
            elif not line and self._data:
                yield from self._event(self._name, json.loads("\n".join(self._data)))
                self._name, self._data = "", []

    def finish(self) -> None:
        """The bytes are over.

        Raises:
            EndpointError: the answer is not.
        """
        if not self._ended:
            raise _cut_off(self._request_id)

    def _event(self, name: str, values: dict[str, Any]) -> Iterator[StreamEvent]:
        if name == "text":
            yield TextPiece(values["text"])
        elif name == "object":
            yield ObjectFound(values["number"], PredictedObject.from_dict(values["object"]))
        elif name == "done":
            self._ended = True
            yield predictions(values)[0]
        elif name == "error":
            raise told(values, 200, self._request_id)


def batch_pieces(
    items: Iterable[tuple[Images | None, Asked]], options: Options, lines: int = BATCH_LINES, size: int = BATCH_BYTES
) -> Iterator[tuple[list[int], bytes]]:
    """JSON lines for ``POST /v1/batch``, in pieces of at most ``lines`` lines and ``size`` bytes, or one line.

    Yields:
        Numbers of the items, from 0, and their lines.
    """
    numbers: list[int] = []
    piece = bytearray()
    for number, (images, request) in enumerate(items):
        line = json.dumps({"custom_id": str(number), "body": body(images, [request], options)}).encode() + b"\n"
        if numbers and (len(numbers) >= lines or len(piece) + len(line) > size):
            yield numbers, bytes(piece)
            numbers, piece = [], bytearray()
        numbers.append(number)
        piece += line
    if numbers:
        yield numbers, bytes(piece)


class BatchReader:
    """Reads the JSON lines that ``/v1/batch`` answers with, as their bytes come."""

    def __init__(self, numbers: Sequence[int], headers: Mapping[str, str]) -> None:
        """Wait for the answers to the items with these numbers, which were sent in this order."""
        self._numbers = numbers
        self._waiting = set(numbers)
        self._request_id = headers.get("x-request-id", "")
        self._rest: EndpointError | None = None
        self._lines = _Lines()

    def feed(self, content: bytes) -> Iterator[tuple[int, Prediction | EndpointError]]:
        """Number and answer of the items that these bytes complete."""
        for line in self._lines.feed(content):
            if not line.strip():
                continue
            values = json.loads(line)
            place, status, answer = int(values["line"]) - 1, int(values["status"]), values["body"]
            result = predictions(answer)[0] if status == 200 else told(answer, status, self._request_id)
            if place < len(self._numbers):
                self._waiting.discard(self._numbers[place])
                yield self._numbers[place], result
            elif isinstance(result, EndpointError):
                # What is wrong with the body as a whole is told after its last line.
                self._rest = result

    def finish(self) -> Iterator[tuple[int, Prediction | EndpointError]]:
        """The bytes are over: items without an answer get an error."""
        error = self._rest or _cut_off(self._request_id)
        yield from ((number, error) for number in sorted(self._waiting))
