"""Many requests answered together by one model, step by step: ``Engine(model).submit(images, request)``."""

from padt.inference.engine.loop import Engine
from padt.inference.engine.scheduler import EngineBusyError, EngineLimits
from padt.inference.engine.tickets import CancelledError, Ended, Event, Ticket, Times
from padt.inference.stream import ObjectFound, TextPiece

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
