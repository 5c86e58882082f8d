"""Small files and folders of a run at any fsspec URL; each appears under its final name only when complete."""

import posixpath
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec

from padt.errors import UserError


def filesystem(url: str) -> tuple[Any, str]:
    """File system of a URL and the path inside it (absolute for local folders).

    Raises:
        UserError: the scheme is unknown or its package is missing.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{url} cannot be opened: {error}. Use a local path or install the package of its scheme."
        ) from error


def is_local(url: str) -> bool:
    """Whether a URL is a folder of this machine."""
    protocol = filesystem(url)[0].protocol
    return "file" in (protocol if isinstance(protocol, (tuple, list)) else (protocol,))


def join(url: str, *parts: str) -> str:
    """A path below a URL."""
    return posixpath.join(url, *parts)


def read_text(url: str) -> str | None:
    """Content of a small file, or None where there is none."""
    system, path = filesystem(url)
    if not system.isfile(path):
        return None
    with system.open(path, "rb") as handle:
        return handle.read().decode("utf-8")


def write_text(url: str, text: str) -> None:
    """Write a small file: a temporary sibling first, then renamed."""
    system, path = filesystem(url)
    system.makedirs(posixpath.dirname(path), exist_ok=True)
    with system.open(path + ".tmp", "wb") as handle:
        handle.write(text.encode("utf-8"))
    system.mv(path + ".tmp", path)


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    system, path = filesystem(url)
    return bool(system.exists(path))


def publish_folder(url: str, write: Callable[[Path], object]) -> None:
    """Make a folder at ``url``: ``write(folder)`` fills a new local folder, which is then moved or uploaded whole.

    A folder that an earlier, unfinished attempt left there is replaced.
    """
    system, path = filesystem(url)
    if is_local(url):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            write(holder / "new")
            if target.exists():
                target.rename(holder / "old")
            (holder / "new").rename(target)
        finally:
            shutil.rmtree(holder, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "new")
        for stale in (path, path + ".tmp"):
            if system.exists(stale):
                system.rm(stale, recursive=True)
        system.put(str(Path(folder) / "new"), path + ".tmp", recursive=True)
        system.mv(path + ".tmp", path, recursive=True)
