"""Many requests answered together by one model, step by step: ``Engine(model).submit(images, request)``."""

from padt.inference.engine.loop import Engine
from padt.inference.engine.scheduler import EngineBusyError, EngineLimits
from padt.inference.engine.tickets import CancelledError, Ticket
from padt.inference.events import Ended, Event, ObjectFound, TextPiece, Times

__all__ = [
    "CancelledError",
    "Ended",
    "Engine",
    "EngineBusyError",
    "EngineLimits",
    "Event",
    "ObjectFound",
    "TextPiece",
    "Ticket",
    "Times",
]
