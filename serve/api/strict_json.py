"""JSON of strangers: what Python reads without a word but no other program would take the same way is refused."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from serve.api.errors import RequestError

# A half of a surrogate pair can only come as an escape; where there is none, nothing is looked for.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_object(body: bytes) -> dict[str, Any]:
    """The object that a JSON text is.

    Raises:
        RequestError: 400, it is no JSON text in UTF-8, no object, or holds what has no one meaning: a key twice in an
            object, numbers that are not finite, half a surrogate pair.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(f"byte {error.start} is no UTF-8") from error
    try:
        values = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
        if _SURROGATE.search(text):
            _check_strings(values)
    except RecursionError as error:
        raise _not_json("it is nested too deeply") from error
    except ValueError as error:
        # Numbers with thousands of digits are among these.
        raise _not_json(str(error)) from error
    if not isinstance(values, dict):
        raise _not_json('it is no object: send {"field": value, ...}')
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} comes twice in one object")
    return values


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _check_strings(values: Any) -> None:
    left = [values]
    while left:
        value = left.pop()
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError("a text holds half a surrogate pair (\\ud800 to \\udfff)") from error
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value


def _not_json(why: str) -> RequestError:
    return RequestError(400, "invalid_json", f"The text cannot be read as JSON: {why}.")


def described(problems: Iterable[Any]) -> tuple[str, str | None]:
    """Pydantic's problems (``ValidationError.errors()``) as one sentence, and the field if it is one."""
    sentences, places = [], set()
    for problem in problems:
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        sentences.append(f"{place}: {message}" if place else message)
        places.add(place)
    # Ten thousand wrong labels need no ten thousand sentences.
    more = f"; and {len(sentences) - 8} more" if len(sentences) > 8 else ""
    return "; ".join(sentences[:8]) + more + ".", places.pop() or None if len(places) == 1 else None
