"""What happens while a request is answered, as plain values. Imports neither torch nor transformers."""

from dataclasses import dataclass
from typing import Literal

from padt.inference.results import PredictedObject, Prediction

Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TextPiece:
    """Some more of the answer's text: whole characters, and VRTs only if they were asked for."""

    text: str


@dataclass(frozen=True)
class ObjectFound:
    """An object whose group is closed. ``number`` counts the objects of the answer from 0."""

    number: int
    object: PredictedObject


@dataclass(frozen=True)
class Finished:
    """The end of a stream: the whole answer, as ``predict`` gives it."""

    prediction: Prediction


@dataclass
class Times:
    """Where the time of a request went, in seconds of the clock.

    Attributes:
        queued: from the submission to the admission.
        prefill: the vision tower and the prompt, of all requests that were admitted in one pass with it.
        decode: steps while it ran.
        objects: runs of the object decoder in which it took part.
        refine: from its end to masks that SAM 2 has refined, where it does; the wait for its turn included.
    """

    queued: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    objects: float = 0.0
    refine: float = 0.0


@dataclass(frozen=True)
class Ended:
    """The last event of a request to the engine.

    Attributes:
        reason: ``stop`` = the answer is whole, ``length`` = it has ``max_new_tokens`` tokens, ``cancelled``, ``error``.
        prediction: the answer, as ``predict`` gives it; None after ``cancelled`` and ``error``.
        error: what went wrong.
        times: where the time went.
        prompt_tokens: length of the prompt, patches included.
        completion_tokens: length of the answer, without its end token; of what was written where it was cut short.
    """

    reason: Reason
    prediction: Prediction | None
    error: Exception | None
    times: Times
    prompt_tokens: int = 0
    completion_tokens: int = 0


StreamEvent = TextPiece | ObjectFound | Finished
Event = TextPiece | ObjectFound | Ended
