"""Places as fsspec knows them, opened for reading; what goes wrong is told as a sentence that names the place."""

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any

import fsspec
from fsspec.compression import compr
from fsspec.core import url_to_fs
from fsspec.utils import infer_compression

from padt.errors import UserError
from pipelines.io.archives import Archive, archive_url, open_archive
from pipelines.io.transport import is_web, patiently, reason_of, transport_errors, without_keys
from pipelines.io.web import WebFile, fetch


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


@contextmanager
def reaching(url: str, what: str) -> Iterator[None]:
    """Turn what the network or the system says into a sentence that names the place.

    Raises:
        UserError: something in the block could not be reached or read.
    """
    try:
        yield
    except transport_errors() as error:
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            raise UserError(f"{what} {without_keys(url)} is not a file: check the path.") from error
        raise UserError(
            f"{what} {without_keys(url)} cannot be read ({reason_of(error)}): check the path, the network, and your "
            "rights to it."
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
        with archive.lock:
            return patiently(inside.target, lambda: _read_member(archive, inside.inner, most))
    # A local name may hold what means something in a URL.
    fs, path = (None, url) if url.startswith("/") else resolve(url)
    if fs is None or is_local(fs):
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            # Opening a pipe would wait for ever.
            raise OSError("it is not a regular file")
        with open(path, "rb") as handle:
            return handle.read(min(most, facts.st_size))
    if is_web(path):
        return fetch(fs, path, 0, most)[:most]
    return patiently(url, lambda: bytes(fs.cat_file(path, start=0, end=most))[:most])


def _read_member(archive: Archive, inner: str, most: int) -> bytes:
    try:
        opened = archive.fs.open(inner, "rb")
    except (KeyError, AttributeError) as error:
        # In a tar: a link that leads out of it, or a device.
        raise FileNotFoundError(inner) from error
    with opened as handle:
        return read_most(handle, most)


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
    compression = None if archive_url(url) is not None else infer_compression(without_keys(url).lower())
    with reaching(url, what):
        if compression == "zip":
            return _open(_only_member(url, what))
        if compression is None:
            return _open(url)
        if is_web(url):
            return compr[compression](_open(url), mode="rb")
        return patiently(url, fsspec.open(url, "rb", compression=compression).open)


def _open(url: str) -> IO[bytes]:
    fs, path = resolve(url)
    if is_web(path):
        return io.BufferedReader(WebFile(fs, path), 1 << 20)
    return patiently(url, lambda: fs.open(path, "rb"))


def _only_member(url: str, what: str) -> str:
    """URL of the file in a zip; raises where it holds several, since one of them has to be chosen."""
    inside = archive_url(f"zip://::{url}")
    assert inside is not None
    members = [info["name"] for info in open_archive(inside).fs.find("", detail=True).values()]
    if len(members) != 1:
        example = f"zip://{members[0]}::{url}" if members else "its only file"
        raise UserError(
            f"{what} {url} is a zip of {len(members)} files ({', '.join(members[:8])}): name one, as in {example!r}."
        )
    return str(replace(inside, inner=members[0]))


def hash_file(url: str, what: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a user's file, as it lies there."""
    digest, size = hashlib.sha256(), 0
    with reaching(url, what), _open(url) as handle:
        while chunk := handle.read(1 << 22):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
