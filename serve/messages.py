"""What goes between ingress and engine: plain values and pictures, so that the ingress needs no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from padt.inference.events import ObjectFound, Reason, TextPiece, Times
from padt.inference.requests import GenerationSettings, Request


@dataclass(frozen=True)
class Job:
    """One question for the engine.

    Attributes:
        images: upright, RGB, within the server's budget of patches.
        request: what is asked about them.
        settings: how to answer.
        seed: of the sampling; None = a fresh one.
        client: whose question it is; clients share the engine fairly.
        request_id: by which logs name it, and by which its version is chosen.
        picture_key: of the pictures' content; jobs with the same one go to the same engine where there are several.
        avoid: names of engines that have lost the job.
    """

    images: tuple[Image.Image, ...]
    request: Request
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    seed: int | None = None
    client: str = ""
    request_id: str = ""
    picture_key: str = ""
    avoid: tuple[str, ...] = ()


Trouble = Literal["refused", "busy", "failed", "lost"]


@dataclass(frozen=True)
class Outcome:
    """The end of a job: a prediction, or the trouble that there was.

    Attributes:
        prediction: as plain values (``Prediction.to_dict``).
        reason: why the answer has ended.
        trouble: ``refused`` = the client can mend it, ``busy`` = the engine's queue is full, ``failed`` = the engine's
            fault on this job, ``lost`` = this engine answers nothing more and another one may; None with a prediction.
        message: what the trouble is, for people; of a failure only what a client may know.
        times: where the time went.
        prompt_tokens, completion_tokens: lengths.
        version, fingerprint: of the model that answered.
        replica: name of the engine that answered.
    """

    prediction: dict[str, Any] | None = None
    reason: Reason = "stop"
    trouble: Trouble | None = None
    message: str = ""
    times: Times = field(default_factory=Times)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    version: str = ""
    fingerprint: str = ""
    replica: str = ""


# A stream hands over what has come together, in order; the outcome is the last of all.
StreamItem = TextPiece | ObjectFound | Outcome


@dataclass(frozen=True)
class Share:
    """A version that answers.

    Attributes:
        version, fingerprint: of the model.
        source: folder that it came from.
        percent: of the requests that it answers.
    """

    version: str
    fingerprint: str
    source: str
    percent: float = 100.0


@dataclass(frozen=True)
class EngineState:
    """How an engine is.

    Attributes:
        source: where its model came from.
        device: where the model runs.
        version, fingerprint: of the model.
        stalled_s: how long its rows have been without a step of the model; 0 while nothing runs.
        replica: by which the engine is named among several.
        versions: who answers, the main model first.
        release: what answers, as the ``user_config`` said it.
        wanted: what the ``user_config`` says; the same once it is loaded.
        loading: version that is being loaded beside, or empty.
        problem: why the release that was last wanted does not answer, or empty.
        lost: why this engine answers nothing more, or empty.
        running: jobs that it answers now.
    """

    source: str
    device: str
    version: str = ""
    fingerprint: str = ""
    stalled_s: float = 0.0
    replica: str = ""
    versions: tuple[Share, ...] = ()
    release: dict[str, Any] = field(default_factory=dict)
    wanted: dict[str, Any] = field(default_factory=dict)
    loading: str = ""
    problem: str = ""
    lost: str = ""
    running: int = 0
