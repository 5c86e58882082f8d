"""Folders and files on any file system that fsspec knows, written so that nothing half-written has its final name."""

import hashlib
import os
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from padt.errors import UserError
from pipelines.io.archives import archive_url, open_archive

_TEMPORARY = ".tmp-"
# Tries for a file on the network, and seconds before the second one; each later one waits twice as long.
_TRIES = 4
_FIRST_PAUSE = 0.5


@dataclass(frozen=True)
class Folder:
    """A folder at a URL or local path. Names inside it are relative, with ``/``."""

    url: str

    @cached_property
    def _place(self) -> tuple[Any, str]:
        return resolve(self.url)

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system that the folder lies on."""
        return self._place[0]

    def path(self, name: str = "") -> str:
        """Path of a name inside the folder, as its file system writes it."""
        root = self._place[1].rstrip("/")
        return f"{root}/{name}" if name else root

    def check_target(self) -> None:
        """Make sure, where that can be known beforehand, that the folder can be made or written.

        Raises:
            UserError: something that is no folder, or no right to write, stands in the way.
        """
        if not is_local(self.fs):
            return
        place = Path(self.path())
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise UserError(f"{self.url} cannot be written: {place} is not a folder. Give another --out.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"{self.url} cannot be written: you have no right to write in {place}. Give another --out.")

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder is there."""
        return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is no such file."""
        try:
            return int(self.fs.size(self.path(name)))
        except FileNotFoundError:
            return None

    def names(self, folder: str = "") -> list[str]:
        """Names of the entries of a sub-folder, sorted; empty where it does not exist."""
        try:
            # A listing kept from before would hide what another process has written since.
            self.fs.invalidate_cache()
            entries = self.fs.ls(self.path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return self.fs.cat_file(self.path(name))

    @contextmanager
    def writing(self, name: str) -> Iterator["HashingFile"]:
        """A file to write; it appears under its name when the block ends without an error, and not before.

        Raises:
            UserError: there is no room or no right to write there, or the network failed. What was complete before
                stays.
        """
        path = self.path(name)
        temporary = f"{path}{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            if not _is_object_store(self.fs):
                # There, folders are but parts of names, and making one would make a bucket whose name is misspelt.
                self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            try:
                with self.fs.open(temporary, "wb") as handle:
                    yield (file := HashingFile(handle))
                    file.flush()
                self.fs.mv(temporary, path)
            except BaseException:
                if self.fs.exists(temporary):
                    self.fs.rm_file(temporary)
                raise
        except transport_errors() as error:
            if isinstance(error, FileNotFoundError) and is_local(self.fs):
                raise
            raise UserError(
                f"{self.url.rstrip('/')}/{name} cannot be written ({_reason(error)}): make room or check your rights, "
                "and run the command again; what is complete stays."
            ) from error

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file at once; see ``writing``."""
        with self.writing(name) as file:
            file.write(content)

    def remove(self, name: str = "") -> None:
        """Remove a file, or a folder with all that is in it; nothing happens where it does not exist."""
        if self.exists(name):
            self.fs.rm(self.path(name), recursive=True)

    def sweep(self, folder: str) -> None:
        """Remove what killed writers have left in a sub-folder."""
        for name in self.names(folder):
            if _TEMPORARY in name:
                self.fs.rm_file(self.path(f"{folder}/{name}"))


class HashingFile:
    """A file for writing that counts and hashes what goes through it."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Write bytes (or a buffer of them)."""
        view = memoryview(data)
        self._handle.write(view)
        self._hash.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Hand what was written on to the file system."""
        self._handle.flush()

    def tell(self) -> int:
        """Bytes written so far."""
        return self.bytes

    def writable(self) -> bool:
        """Always: the file is for writing."""
        return True

    def readable(self) -> bool:
        """Never: the file is for writing."""
        return False

    def seekable(self) -> bool:
        """Never: what was hashed cannot be written again."""
        return False

    def close(self) -> None:
        """Leave the file to its owner: ``Folder.writing`` closes and commits it."""

    @property
    def sha256(self) -> str:
        """Hash of what was written so far."""
        return self._hash.hexdigest()


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


def _is_object_store(fs: Any) -> bool:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(protocols & {"s3", "s3a", "gs", "gcs", "abfs", "az", "oss"})


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
            f"{what} {url} cannot be read ({_reason(error)}): check the path, the network, and your rights to it."
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
                    f"{url} could not be read in {_TRIES} tries ({_reason(error)}): check the network and run the "
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


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
