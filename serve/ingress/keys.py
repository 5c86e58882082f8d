"""Bearer keys: who may ask. Keys have names, by which limits and logs know them; the keys themselves are never kept."""

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from padt.errors import UserError

logger = logging.getLogger("ray.serve")

KEYS_VARIABLE = "PADT_API_KEYS"
# A shorter key can be guessed by trying.
SHORTEST_KEY = 16
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# A file is looked at again after this time at the earliest.
_LOOK_AGAIN_S = 1.0


def parse_keys(text: str, source: str) -> dict[str, bytes]:
    """Names and SHA-256 digests of keys.

    Args:
        text: ``name:key`` in lines, or separated by commas; blank lines and those that begin with # do not count.
        source: what messages call it.

    Raises:
        UserError: a line is no name and key, a key is short, or a name or key comes twice. Never quotes a key.
    """
    found: dict[str, bytes] = {}
    for number, line in enumerate(text.replace(",", "\n").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not colon or not _NAME.fullmatch(name) or not key.isascii() or not key.isprintable():
            raise UserError(
                f"{source}, entry {number}: write NAME:KEY, with a name of letters, digits, '.', '_' or '-'."
            )
        if len(key) < SHORTEST_KEY or " " in key:
            raise UserError(
                f"{source}, entry {number}: the key of {name!r} must have at least {SHORTEST_KEY} characters and no "
                "space; `openssl rand -hex 24` makes one."
            )
        digest = _digest(key)
        if name in found or digest in found.values():
            raise UserError(f"{source}, entry {number}: the name {name!r} or its key comes twice.")
        found[name] = digest
    return found


class KeyRing:
    """The keys of a file and of the environment. A file that changes is read again."""

    def __init__(self, path: str | None, environment: Mapping[str, str] | None = None) -> None:
        """Read the keys.

        Args:
            path: of the file; None = none.
            environment: holds ``PADT_API_KEYS``; None = the process's.

        Raises:
            UserError: the file is not there, holds no key, or cannot be understood.
        """
        given = (os.environ if environment is None else environment).get(KEYS_VARIABLE, "")
        self._fixed = parse_keys(given, KEYS_VARIABLE)
        self._path = Path(path) if path else None
        self._stamp: tuple[int, int] | None = None
        self._from_file: dict[str, bytes] = {}
        self._look_at = 0.0
        if self._path is not None:
            self._read()

    @property
    def needed(self) -> bool:
        """Whether there are keys, so that nobody may ask without one."""
        return self._path is not None or bool(self._fixed)

    @property
    def names(self) -> list[str]:
        """Names of the keys that are valid now."""
        self._look()
        return [*self._fixed, *self._from_file]

    def name_of(self, authorization: str) -> str | None:
        """Name of the key in an ``Authorization`` header; None where it holds no valid key.

        Compares with every key in constant time, so that the time taken tells nothing of the keys.
        """
        self._look()
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        found = None
        for name, known in [*self._fixed.items(), *self._from_file.items()]:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _look(self) -> None:
        now = time.monotonic()
        if self._path is None or now < self._look_at:
            return
        self._look_at = now + _LOOK_AGAIN_S
        try:
            if self._stamp_now() != self._stamp:
                self._read()
                logger.info("%s was read again: keys of %s", self._path, ", ".join(self._from_file))
        except UserError as error:
            # Half a file, in the middle of an edit, must not lock everybody out.
            logger.error("The keys stay as they were: %s", error)

    def _stamp_now(self) -> tuple[int, int]:
        assert self._path is not None
        try:
            state = self._path.stat()
        except OSError as error:
            raise UserError(f"The file of keys {self._path} cannot be read ({error.strerror}).") from error
        return state.st_mtime_ns, state.st_size

    def _read(self) -> None:
        assert self._path is not None
        stamp = self._stamp_now()
        try:
            text = self._path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The file of keys {self._path} cannot be read ({error}).") from error
        found = parse_keys(text, str(self._path))
        if not found:
            raise UserError(f"The file of keys {self._path} holds no key: write lines NAME:KEY.")
        if twice := found.keys() & self._fixed.keys():
            raise UserError(f"The key {min(twice)!r} stands in {self._path} and in {KEYS_VARIABLE}: keep one of them.")
        self._from_file, self._stamp = found, stamp


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
