"""Places as fsspec knows them, opened for reading; what goes wrong is told as a sentence that names the place."""

import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from padt.errors import UserError
from pipelines.io.archives import archive_url, open_archive

# Tries for a file on the network, and seconds before the second one; each later one waits twice as long.
_TRIES = 4
_FIRST_PAUSE = 0.5


def resolve(url: str) -> tuple[Any, str]:
    """File system and path of a URL or local path; ``zip://INNER::TARGET`` and ``tar://INNER::TARGET`` included.

    Raises:
        UserError: the scheme is unknown, its package is not installed, or the archive cannot be read.
    """
    if (inside := archive_url(url)) is not None:
        return open_archive(inside).fs, inside.inner
    try:
        return url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url} cannot be opened ({error}): use a local path or a URL that fsspec can open.") from error


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's own disk."""
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return protocol in ("file", "local")


def transport_errors() -> tuple[type[Exception], ...]:
    """What reading and writing may raise: the system's errors, and those of the network libraries that are in use."""
    known = (
        ("botocore.exceptions", "BotoCoreError"),
        ("aiohttp", "ClientError"),
        ("google.auth.exceptions", "GoogleAuthError"),
    )
    return (OSError, *(getattr(sys.modules[module], name) for module, name in known if module in sys.modules))


@contextmanager
def reaching(url: str, what: str) -> Iterator[None]:
    """Turn what the network or the system says into a sentence that names the place.

    Raises:
        UserError: something in the block could not be reached or read.
    """
    try:
        yield
    except transport_errors() as error:
        cause = error.__cause__
        # fsspec says of every file on the web that it cannot reach that it is not there.
        unreachable = isinstance(cause, transport_errors()) and getattr(cause, "status", 0) != 404
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) and not unreachable:
            raise UserError(f"{what} {url} is not a file: check the path.") from error
        error = cause if isinstance(cause, Exception) and unreachable else error
        raise UserError(
            f"{what} {url} cannot be read ({reason_of(error)}): check the path, the network, and your rights to it."
        ) from error


def read_file(url: str, most: int) -> bytes:
    """First ``most`` bytes of a file (all of it, if it is not longer); the network gets several tries.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read, or not by this user.
        UserError: the network failed every time.
    """
    if (inside := archive_url(url)) is not None:
        archive = open_archive(inside)
        with archive.lock, archive.fs.open(inside.inner, "rb") as handle:
            return read_most(handle, most)
    # A local name may hold what means something in a URL.
    fs, path = (None, url) if url.startswith("/") else resolve(url)
    if fs is None or is_local(fs):
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            # Opening a pipe would wait for ever.
            raise OSError("it is not a regular file")
        with open(path, "rb") as handle:
            return handle.read(min(most, facts.st_size))
    pause = _FIRST_PAUSE
    for left in reversed(range(_TRIES)):
        try:
            return bytes(fs.cat_file(path, start=0, end=most))[:most]
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except transport_errors() as error:
            if 400 <= getattr(error, "status", 0) < 500:
                raise OSError(str(error)) from error
            if not left:
                raise UserError(
                    f"{url} could not be read in {_TRIES} tries ({reason_of(error)}): check the network and run the "
                    "command again."
                ) from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("the last try returns or raises")


def read_most(handle: IO[bytes], most: int) -> bytes:
    """Up to ``most`` bytes of an open file. A single ``read(most)`` would make room for all of them at once."""
    parts = []
    while most > 0 and (part := handle.read(min(most, 1 << 22))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def open_input(url: str, what: str) -> IO[bytes]:
    """Open a user's file for reading bytes; compressed files (``.gz`` and the like) are unpacked on the way.

    Args:
        url: path or fsspec URL.
        what: what the file is, for the message.

    Raises:
        UserError: there is no such file, or it cannot be opened.
    """
    fs, path = resolve(url)
    with reaching(url, what):
        if archive_url(url) is not None:
            return fs.open(path, "rb")
        if path.lower().endswith(".zip"):
            _only_member(url, what)
        return fsspec.open(url, "rb", compression="infer").open()


def _only_member(url: str, what: str) -> None:
    """Raise where a zip given as a file holds several, since one of them has to be chosen."""
    inside = archive_url(url, bare=True)
    assert inside is not None
    members = [info["name"] for info in open_archive(inside).fs.find("", detail=True).values()]
    if len(members) != 1:
        example = f"zip://{members[0]}::{url}" if members else "its only file"
        raise UserError(
            f"{what} {url} is a zip of {len(members)} files ({', '.join(members[:8])}): name one, as in {example!r}."
        )


def hash_file(url: str, what: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a user's file, as it lies there."""
    fs, path = resolve(url)
    digest, size = hashlib.sha256(), 0
    with reaching(url, what), fs.open(path, "rb") as handle:
        while chunk := handle.read(1 << 22):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def reason_of(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return str(error) or type(error).__name__
