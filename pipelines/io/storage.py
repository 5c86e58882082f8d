"""Folders and files on any file system that fsspec knows, written so that nothing half-written passes for whole.

A file appears under its name when it is complete. An object store does that by itself: an object is there when its
upload is closed, so it is written in place, and given up where the writer fails. (fsspec's ``autocommit=False`` is the
same there with two requests more for each small file. On disks it fills the system's temporary folder and copies to
the target, which a kill can cut in half.) Elsewhere a temporary sibling is written and renamed.

A folder is whole when its *sign* is there: one of its files, which is removed first and written last (``config.json``
of a model, ``manifest.json`` of a set, ``metrics.json`` of an evaluation). Readers look for the sign. On this machine's
disks a published folder also appears in one rename.
"""

import errno
import glob
import hashlib
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec

from padt.errors import UserError
from pipelines.io.reading import is_local, resolve
from pipelines.io.transport import reason_of, transport_errors

_TEMPORARY = ".tmp-"
# Which of an entry's values changes with its content, by file system.
_VERSION_MARKS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")


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
            UserError: something that is no folder, no right to write, or a bucket that is not there stands in the way.
        """
        if "::" in self.url:
            raise UserError(
                f"{self.url} cannot be written: '::' means one file system inside another to fsspec, so the name would "
                "be read as another one. Give an output without it."
            )
        if {"http", "https"} & ({self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)):
            raise UserError(f"{self.url} cannot be written: web servers are only read. Give a folder or a bucket.")
        if _is_object_store(self.fs):
            bucket = self.path().partition("/")[0]
            try:
                # Who may write below a prefix need not be allowed to ask for the bucket.
                if not self.fs.exists(bucket):
                    self.fs.find(self.path())
            except FileNotFoundError as error:
                raise UserError(
                    f"{self.url} cannot be written: there is no bucket {bucket}. Check its name, or make it first."
                ) from error
            except transport_errors() as error:
                raise UserError(
                    f"{self.url} cannot be written ({reason_of(error)}): check the network, and your rights there."
                ) from error
        if not is_local(self.fs):
            if self.fs.isfile(self.path()):
                raise UserError(f"{self.url} cannot be written: it is not a folder. Give another one as output.")
            return
        place = Path(self.path())
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise UserError(f"{self.url} cannot be written: {place} is not a folder. Give another one as output.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(
                f"{self.url} cannot be written: you have no right to write in {place}. Give another folder as output."
            )

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder is there."""
        # What is remembered of a listing would hide what another process has written since.
        self.fs.invalidate_cache()
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

    def read_text(self, name: str) -> str | None:
        """Content of a text file, or None where there is none.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            return self.read(name).decode()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except transport_errors() as error:
            raise UserError(
                f"{posixpath.join(self.url, name)} cannot be read ({reason_of(error)}): check the network, and your "
                "rights to it."
            ) from error

    @contextmanager
    def writing(self, name: str) -> Iterator["HashingFile"]:
        """A file to write; it appears under its name when the block ends without an error, and not before.

        Raises:
            UserError: there is no room or no right to write there, or the network failed. What was complete before
                stays.
        """
        path = self.path(name)
        with self._telling(name):
            if _is_object_store(self.fs):
                # No folders are made: there they are but parts of names, and a bucket whose name is misspelt would be
                # made with them.
                with _upload(self.fs, path) as handle:
                    yield HashingFile(handle)
                return
            self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            temporary = f"{path}{_TEMPORARY}{uuid.uuid4().hex}"
            try:
                with self.fs.open(temporary, "wb") as handle:
                    yield HashingFile(handle)
                self.fs.mv(temporary, path)
            except BaseException:
                if self.fs.exists(temporary):
                    self.fs.rm_file(temporary)
                raise

    @contextmanager
    def _telling(self, name: str = "") -> Iterator[None]:
        """Turn what the system or the network says to a write into a sentence that names the place."""
        try:
            yield
        except transport_errors() as error:
            if isinstance(error, FileNotFoundError) and is_local(self.fs):
                raise
            raise UserError(
                f"{posixpath.join(self.url, name).rstrip('/')} cannot be written ({reason_of(error)}): make room or "
                "check your rights, and run the command again; what is complete stays."
            ) from error

    def write(self, name: str, content: bytes | str) -> None:
        """Write a whole file at once; see ``writing``."""
        with self.writing(name) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def publish(self, fill: Callable[[Path], object], sign: str, *, replace: bool = True) -> None:
        """Make this folder from a local one, whole or not at all; what an unfinished attempt left is replaced.

        Args:
            fill: makes and fills the local folder whose path it is given.
            sign: name of the file that says that the folder is whole.
            replace: put it in the place of a whole folder; False = leave one that has come meanwhile.

        Raises:
            UserError: there is no room or no right to write at the target or in the temporary folder, or the network
                failed. An error of ``fill`` is raised as it is, unless there was no room.
        """
        self.check_target()
        if is_local(self.fs):
            self._publish_here(fill, replace)
        else:
            self._publish_there(fill, sign, replace)

    def _publish_here(self, fill: Callable[[Path], object], replace: bool) -> None:
        target = Path(self.path())
        prefix = f".{target.name}{_TEMPORARY}"
        with self._telling():
            target.parent.mkdir(parents=True, exist_ok=True)
            for left in target.parent.glob(f"{glob.escape(prefix)}*") if replace else ():
                shutil.rmtree(left)
            holder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            with self._room(f"{target.parent}: make room there"):
                fill(holder / "new")
            with self._telling():
                if replace and target.exists():
                    target.rename(holder / "old")
                try:
                    (holder / "new").rename(target)
                except OSError:
                    if replace or not target.exists():
                        raise
        finally:
            shutil.rmtree(holder, ignore_errors=True)

    def _publish_there(self, fill: Callable[[Path], object], sign: str, replace: bool) -> None:
        with ExitStack() as stack:
            with self._room("the temporary folder: make room there, or name another one by TMPDIR,"):
                new = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="padt-publish-"))) / "new"
                fill(new)
            if not replace and self.exists(sign):
                return
            names = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
            names.remove(sign)
            with self._telling():
                self._empty(sign)
                try:
                    for some in (names, [sign]):
                        # File by file: the upload of a folder makes folders there, and with them a missing bucket.
                        self.fs.put([str(new / name) for name in some], [self.path(name) for name in some])
                except BaseException:
                    with suppress(*transport_errors()):
                        self._empty(sign)
                    raise

    def _empty(self, sign: str) -> None:
        """Remove all files, the sign first; the folder itself may be a bucket, which stays."""
        self.remove(sign)
        if files := self.fs.find(self.path()):
            self.fs.rm(files)

    @contextmanager
    def _room(self, where: str) -> Iterator[None]:
        """Turn a full disk, in whose words ever, into a sentence that names it."""
        try:
            yield
        except Exception as error:
            if not no_room(error):
                raise
            raise UserError(
                f"{self.url} cannot be written: no space is left in {where} and run the command again."
            ) from error

    def download(self, folder: Path) -> None:
        """Copy all that is in it to a local folder, which is made."""
        self.fs.get(self.path() + "/", f"{folder}/", recursive=True)

    def listing(self, endings: tuple[str, ...]) -> str:
        """SHA-256 over names, sizes and versions (tags or times) of the files with some endings: it tells a change."""
        self.fs.invalidate_cache()
        digest = hashlib.sha256()
        for path, entry in sorted(self.fs.find(self.path(), detail=True).items()):
            if path.endswith(endings):
                marks = (str(entry[name]) for name in _VERSION_MARKS if entry.get(name) is not None)
                digest.update(f"{path} {entry['size']} {next(marks, '')}\n".encode())
        return digest.hexdigest()

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


@contextmanager
def _upload(fs: Any, path: str) -> Iterator[IO[bytes]]:
    """An object to write; it appears when the block ends, and is given up where it fails."""
    handle = fs.open(path, "wb")
    try:
        yield handle
    except BaseException:
        with suppress(*transport_errors()):
            handle.discard()
        # Closing it would complete the object.
        handle.closed = True
        raise
    handle.close()


def no_room(error: Exception) -> bool:
    """Whether a disk was full; the libraries of weights and of temporary folders say so in words of their own."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    words = ("No space left on device", "No usable temporary directory", "PytorchStreamWriter failed writing file")
    return full or any(each in str(error) for each in words)
