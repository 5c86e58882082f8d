"""Folders and files on any file system that fsspec knows, written so that nothing half-written has its final name."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec

from padt.errors import UserError
from pipelines.io.reading import is_local, reason_of, resolve, transport_errors

_TEMPORARY = ".tmp-"


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
                f"{self.url.rstrip('/')}/{name} cannot be written ({reason_of(error)}): make room or check your "
                "rights, and run the command again; what is complete stays."
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


def _is_object_store(fs: Any) -> bool:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(protocols & {"s3", "s3a", "gs", "gcs", "abfs", "az", "oss"})
