"""What is known of a request, and how those hear of it who count, log, keep or trace it.

The recorder (``serve.observability.recorder``) makes a record for each request and puts it into the context of its
task. Whoever answers tells it with ``answered`` and ``timed``, from wherever in the ingress that is known; without a
record, in a test of a part, both do nothing.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields

from padt.data.conversation import Turn
from padt.inference.events import Times
from serve.messages import Job, Outcome

logger = logging.getLogger("ray.serve")

SEVERAL = "several"
"""What a request is called that holds questions of several tasks, or was answered by several versions."""

MOST_KEPT = 64
"""So many questions of a request are remembered one by one."""

_current: ContextVar["RequestRecord | None"] = ContextVar("padt_request_record", default=None)


@dataclass(frozen=True)
class AnswerRecord:
    """One question of a request and its end.

    Attributes:
        task: of the question.
        version, fingerprint: of the model that answered; empty where none did.
        result: ``stop``, ``length``, ``cancelled``; or the trouble that there was (``serve.messages.Trouble``).
        ended: seconds since the epoch.
        times: where its time in the engine went.
        prompt_tokens, completion_tokens, objects: how much it was.
        prompt, text: the words of question and answer; for those who were told that they may keep them.
    """

    task: str
    version: str
    fingerprint: str
    result: str
    ended: float
    times: Times
    prompt_tokens: int
    completion_tokens: int
    objects: int
    prompt: str = field(repr=False)
    text: str = field(repr=False)

    @classmethod
    def of(cls, job: Job, outcome: Outcome) -> "AnswerRecord":
        """What a job and its end come to."""
        prediction = outcome.prediction or {}
        return cls(
            task=job.request.task,
            version=outcome.version,
            fingerprint=outcome.fingerprint,
            result=outcome.trouble or outcome.reason,
            ended=time.time(),
            times=outcome.times,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            objects=len(prediction.get("objects", ())),
            prompt=words(job.request.prompt),
            text=prediction.get("text", ""),
        )


@dataclass
class RequestRecord:
    """One request over HTTP.

    Attributes:
        method, path: what was called.
        observers: who is told.
        request_id: its id, in and out.
        client: name of its key; empty without one.
        began: seconds since the epoch.
        status: of the answer; 499 = the client went away before.
        code: of the error, where it is one.
        seconds: how long ``preprocess`` (body read, picture decoded), ``encode`` (answer written) and ``total`` took.
        count, prompt_tokens, completion_tokens, objects, engine: sums over its questions that came to an end in the
            engine: how many they are, how long, and where the time went.
        answers: the first ``MOST_KEPT`` of them; a batch may have any number.
    """

    method: str
    path: str
    observers: "Observers"
    request_id: str = ""
    client: str = ""
    began: float = field(default_factory=time.time)
    status: int = 0
    code: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    objects: int = 0
    engine: Times = field(default_factory=Times)
    answers: list[AnswerRecord] = field(default_factory=list)
    _tasks: set[str] = field(default_factory=set)
    _versions: set[str] = field(default_factory=set)

    @property
    def task(self) -> str:
        """The task of its questions, ``several``, or empty where none came to the engine."""
        return _one(self._tasks)

    @property
    def version(self) -> str:
        """The version that answered, ``several``, or empty where none did."""
        return _one(self._versions)

    def add(self, answer: AnswerRecord) -> None:
        """Note a question that came to its end in the engine."""
        self.count += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.objects += answer.objects
        for part in fields(Times):
            setattr(self.engine, part.name, getattr(self.engine, part.name) + getattr(answer.times, part.name))
        self._tasks.add(answer.task)
        self._versions |= {answer.version} - {""}
        if len(self.answers) < MOST_KEPT:
            self.answers.append(answer)


class Observer:
    """Somebody who hears of requests. Called in the ingress's event loop: what takes long goes into a thread."""

    def answered(self, job: Job, outcome: Outcome, answer: AnswerRecord) -> None:
        """A question came to its end in the engine."""

    def ended(self, record: RequestRecord) -> None:
        """A request is over: its answer was sent, or its client is gone."""

    def close(self) -> None:
        """The process stops."""


class Observers:
    """All observers; one that fails is told of in the log, and never to the client."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def answered(self, record: RequestRecord, job: Job, outcome: Outcome) -> None:
        """See ``Observer.answered``."""
        answer = AnswerRecord.of(job, outcome)
        record.add(answer)
        for observer in self._observers:
            with _harmless(observer):
                observer.answered(job, outcome, answer)

    def ended(self, record: RequestRecord) -> None:
        """See ``Observer.ended``."""
        for observer in self._observers:
            with _harmless(observer):
                observer.ended(record)

    def close(self) -> None:
        """See ``Observer.close``."""
        for observer in self._observers:
            with _harmless(observer):
                observer.close()


@contextmanager
def recording(record: RequestRecord) -> Iterator[None]:
    """Make a record that of the running task, and of all that it starts."""
    token = _current.set(record)
    try:
        yield
    finally:
        _current.reset(token)


def answered(job: Job, outcome: Outcome) -> None:
    """Tell the observers of the running request that a question of it came to its end in the engine."""
    record = _current.get()
    if record is not None:
        record.observers.answered(record, job, outcome)


def failed(code: str) -> None:
    """Note the error of a request whose status had been sent before: it has begun to stream its answer."""
    record = _current.get()
    if record is not None:
        record.code = code


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Count the time of a block for the running request; ``stage`` is a key of ``RequestRecord.seconds``."""
    began = time.perf_counter()
    try:
        yield
    finally:
        record = _current.get()
        if record is not None:
            record.seconds[stage] = record.seconds.get(stage, 0.0) + time.perf_counter() - began


def words(prompt: str | tuple[Turn, ...]) -> str:
    """The words of a prompt; of a conversation those of its last turn."""
    return prompt if isinstance(prompt, str) else prompt[-1].text if prompt else ""


def _one(names: set[str]) -> str:
    return min(names) if len(names) == 1 else SEVERAL if names else ""


@contextmanager
def _harmless(observer: Observer) -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.exception("%s failed over a request; the request is none the worse", type(observer).__name__)
