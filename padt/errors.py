"""Errors that a user can mend.

Every message says what is wrong, where, and what to do about it. The command line prints them without a traceback.
"""

import difflib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from shutil import which
from typing import TypeVar

Entry = TypeVar("Entry")
# So many names may be listed beside the nearest.
_FEW = 8


class UserError(Exception):
    """Wrong input, configuration or state that the user can put right.

    The first sentence names the thing (key, value, file); the second names the fix (flag, command, accepted values).
    """


class ImageError(UserError):
    """An image that cannot be used.

    Attributes:
        reason: one of ``IMAGE_REASONS``; prepared data sets store it with the reject row.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


IMAGE_REASONS = ("image_missing", "image_unreadable", "image_too_large", "image_aspect_ratio")


class EndpointError(UserError):
    """An endpoint that refuses a question, fails over it, or does not answer.

    Attributes:
        status: HTTP status; 0 where no answer came.
        code: stable name of the reason, for programs.
        request_id: by which the endpoint's log knows the request; empty where it was not told.
    """

    def __init__(self, message: str, status: int = 0, code: str = "", request_id: str = "") -> None:
        super().__init__(f"{message} (request {request_id})" if request_id else message)
        self.status = status
        self.code = code
        self.request_id = request_id


def look_up(what: str, name: object, table: Mapping[str, Entry]) -> Entry:
    """The entry of a table of known things.

    Args:
        what: the thing and its place, as the error begins: ``Source``, ``data.sets.0.tasks: task``.
        name: as the user wrote it.
        table: entries by name.

    Raises:
        UserError: the name is unknown; the message names the nearest.
    """
    if not isinstance(name, str) or name not in table:
        raise UserError(f"{what} {name!r} is unknown: {suggestion(name, table)}")
    return table[name]


def suggestion(name: object, known: Iterable[str]) -> str:
    """What a user may have meant by an unknown name: the nearest, whatever its case, and all where they are few.

    The sentence ends here.
    """
    names = {each.lower(): each for each in known}
    near = difflib.get_close_matches(str(name).lower(), list(names), n=1, cutoff=0.5)
    listed = ", ".join(names.values())
    if not near:
        return f"known are {listed}."
    return f"did you mean {names[near[0]]}?" + (f" Known are {listed}." if len(names) <= _FEW else "")


def check_range(key: str, value: float, low: float, high: float = float("inf")) -> None:
    """Make sure that an option is a finite number from ``low`` to ``high``.

    Raises:
        UserError: it is not; the message names the key.
    """
    if not (low <= value <= high and value < float("inf")):
        limits = f"a number from {low} to {high}" if high < float("inf") else f"a number from {low}"
        raise UserError(f"{key} is {value}: give {limits}.")


def install_command(extra: str) -> str:
    """The command that brings the packages of an extra, as it works where this process runs.

    A checkout names itself: the project is on no index. Elsewhere the packages are named.
    """
    python, here, pip = Path(sys.executable), Path.cwd(), which("pip")
    if pip is None or Path(pip).parent != python.parent:
        pip = f"{python.relative_to(here) if python.is_relative_to(here) else python} -m pip"
    else:
        pip = "pip"
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f"{pip} install '{'.' if checkout == here else checkout}[{extra}]'"
    return f"{pip} install {' '.join(repr(package) for package in _packages_of(extra))}"


def _packages_of(extra: str) -> list[str]:
    """Requirements of an extra of the installed project, with those of the extras that it names."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    found: list[str] = []
    for requirement in map(Requirement, requires("padt") or ()):
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == "padt":
            found += [package for inner in sorted(requirement.extras) for package in _packages_of(inner)]
        else:
            requirement.marker = None
            found.append(str(requirement))
    return list(dict.fromkeys(found))
