"""What a step of the engine did, for whoever watches it."""

from dataclasses import dataclass


@dataclass
class Work:
    """What the model was made to do.

    Attributes:
        tokens: of answers, end tokens included.
        objects: that were decoded.
        prefill_s, decode_s, objects_s: seconds of the clock in the vision tower and prompts, in the steps of running
            answers, and in the object decoder.
    """

    tokens: int = 0
    objects: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    objects_s: float = 0.0


@dataclass(frozen=True)
class StepReport:
    """One step.

    Attributes:
        rows: answers that it wrote a token of: the batch.
        admitted: requests that it let in.
        waiting: requests that still wait after it.
        work: what the model did in it.
    """

    rows: int
    admitted: int
    waiting: int
    work: Work
