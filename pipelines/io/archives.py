"""Zip and tar files as folders: ``zip://INNER/FOLDER::WHERE/THE.zip``, on any file system that fsspec knows.

fsspec opens an archive anew for every URL, which reads its whole directory each time. Here an archive is opened once in
a process, and its files are read one at a time.
"""

import tarfile
import threading
import zipfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.tar import TarFileSystem
from fsspec.implementations.zip import ZipFileSystem

from padt.errors import UserError
from pipelines.io.transport import patiently

_KINDS = {"zip": ZipFileSystem, "tar": TarFileSystem}
_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
# Files are far apart in an archive: reading far ahead of one would fetch what nobody asked for.
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class ArchiveUrl:
    """A place inside an archive.

    Attributes:
        kind: ``zip`` or ``tar``.
        inner: path inside the archive; empty for all of it.
        target: local path or fsspec URL of the archive.
    """

    kind: str
    inner: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind}://{self.inner}::{self.target}"


@dataclass
class Archive:
    """An open archive: a read-only file system, and the lock that keeps its reads apart."""

    fs: Any
    lock: threading.Lock = field(default_factory=threading.Lock)


def archive_url(url: str, bare: bool = False) -> ArchiveUrl | None:
    """The archive that a URL leads into, or None where it leads into none.

    Args:
        url: ``zip://INNER::TARGET`` or ``tar://INNER::TARGET``.
        bare: take a plain path or URL of an archive (``val2017.zip``) for all that is in it.
    """
    outer, chained, target = url.partition("::")
    kind, scheme, inner = outer.partition("://")
    if chained and scheme and kind in _KINDS:
        return ArchiveUrl(kind, inner.strip("/"), _absolute(target))
    if bare and not chained and url.lower().endswith((".zip", ".tar", *_COMPRESSED_TAR)):
        return ArchiveUrl("zip" if url.lower().endswith(".zip") else "tar", "", _absolute(url))
    return None


def open_archive(url: ArchiveUrl) -> Archive:
    """The archive, opened once in this process.

    Raises:
        UserError: it is missing, damaged, or a compressed tar.
    """
    return _open(url.kind, url.target)


@lru_cache(maxsize=16)
def _open(kind: str, target: str) -> Archive:
    if target.lower().endswith(_COMPRESSED_TAR):
        raise UserError(
            f"{target} is a compressed tar, whose files can only be read from its beginning on: unpack it "
            f"(tar -xf {Path(target).name}) and give the folder."
        )
    try:
        fs, path = url_to_fs(target)
        return patiently(target, lambda: Archive(_KINDS[kind](fo=fs.open(path, "rb", block_size=_BLOCK_BYTES))))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"The archive {target} is not a file: check the path.") from error
    except (zipfile.BadZipFile, tarfile.TarError, OSError, ValueError, ImportError) as error:
        raise UserError(
            f"{target} cannot be read as a {kind} file ({error}): check the path, and whether the file is whole."
        ) from error


def _absolute(target: str) -> str:
    # Workers have folders of their own.
    return target if "://" in target else str(Path(target).expanduser().absolute())
