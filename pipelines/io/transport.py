"""The network, which fails now and then: what it raises, what is tried again and when, and what is given up at once."""

import math
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from padt.errors import UserError

Answer = TypeVar("Answer")


class RefusedError(UserError):
    """A server or store does not let this user have a file."""


# Tries for a request, and seconds before the second one; each later one waits twice as long.
_TRIES = 5
_FIRST_PAUSE = 0.5
# However long a server asks to be left alone.
_LONGEST_PAUSE = 60.0
_REFUSED = (401, 403, 407)
_GONE = (404, 410)
_LATER = (408, 425, 429)


def transport_errors() -> tuple[type[Exception], ...]:
    """What reading and writing may raise: the system's errors, and those of the network libraries that are in use."""
    known = (
        ("botocore.exceptions", "BotoCoreError"),
        ("aiohttp", "ClientError"),
        ("google.auth.exceptions", "GoogleAuthError"),
    )
    return (OSError, *(getattr(sys.modules[module], name) for module, name in known if module in sys.modules))


def reason_of(error: Exception) -> str:
    """What an error says, or its kind where it says nothing; of a server's answer its code and words."""
    status, said = status_of(error), getattr(error, "message", "")
    return f"{status} {said}".strip() if status else str(error) or type(error).__name__


def status_of(error: Exception) -> int | None:
    """Code of a web server's answer, or None where an error is none."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) and status >= 100 else None


def without_keys(url: str) -> str:
    """A URL for people: what follows the ``?`` of a web address may be a key."""
    return urlsplit(url)._replace(query="", fragment="").geturl() if is_web(url) else url


def is_web(url: str) -> bool:
    """Whether a URL is that of a web server, which has no listing."""
    return url.startswith(("http://", "https://"))


def patiently(url: str, request: Callable[[], Answer]) -> Answer:
    """The answer to a request over the network; failures that may pass are tried again.

    Tried again are failed connections and the codes 408, 425, 429 and 500 to 599, each pause twice as long as the one
    before, or as long as the server asks for (``Retry-After``), a minute at most. What lies on this machine's own disk
    is asked for once, and its errors are left as they are.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the server does not answer such a request.
        UserError: the network failed every time, or the server or store refuses to give the file.
    """
    if "://" not in url or url.startswith(("file://", "local://")):
        return request()
    pause = _FIRST_PAUSE
    for left in reversed(range(_TRIES)):
        try:
            return request()
        except transport_errors() as error:
            cause = error.__cause__
            # fsspec says of every file on the web that it cannot reach that it is not there.
            if isinstance(error, FileNotFoundError) and isinstance(cause, transport_errors()):
                error = cause
            wait = _wait(url, error, left)
        time.sleep(max(wait, pause * random.uniform(0.8, 1.2)))
        pause *= 2
    raise AssertionError("the last try returns or raises")


def _wait(url: str, error: Exception, left: int) -> float:
    """Seconds that a server wants to be left alone after an error that may pass; raises what is the end of it."""
    status, shown = status_of(error), without_keys(url)
    if status in _GONE:
        raise FileNotFoundError(shown) from error
    if status in _REFUSED or isinstance(error, PermissionError):
        raise RefusedError(
            f"{shown} is refused ({reason_of(error)}): check your keys, or get a new address where it was signed for a "
            "time (some stores refuse what is not there, too), and run the command again; what is complete stays."
        ) from error
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        raise error
    if (status is not None and 400 <= status < 500 and status not in _LATER) or isinstance(error, ValueError):
        raise OSError(reason_of(error)) from error
    if not left:
        raise UserError(
            f"{shown} could not be read in {_TRIES} tries ({reason_of(error)}): check the network and run the command "
            "again."
        ) from error
    headers: Any = getattr(error, "headers", None) or {}
    return _retry_after(str(headers.get("Retry-After", "")))


def _retry_after(value: str) -> float:
    """Seconds that a header ``Retry-After`` asks for (as number or date), a minute at most; 0 where it says nothing."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_PAUSE) if math.isfinite(seconds) else 0.0
