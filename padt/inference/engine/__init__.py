"""Many requests answered together by one model, step by step: ``Engine(model).submit(images, request)``."""

from padt.inference.engine.loop import Engine
from padt.inference.engine.reports import StepReport, Work
from padt.inference.engine.scheduler import EngineLimits
from padt.inference.engine.tickets import CancelledError, Ticket
from padt.inference.engine.waiting import EngineBusyError
from padt.inference.events import Ended, Event, ObjectFound, TextPiece, Times

__all__ = [
    "CancelledError",
    "Ended",
    "Engine",
    "EngineBusyError",
    "EngineLimits",
    "Event",
    "ObjectFound",
    "StepReport",
    "TextPiece",
    "Ticket",
    "Times",
    "Work",
]
