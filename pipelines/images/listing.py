"""Folders of images and what is in them, each listed once: on disks, in object stores and in archives."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.images.names import folded
from pipelines.io.archives import ArchiveUrl, open_archive
from pipelines.io.reading import is_local

# Encodings of names in zips that say nothing about it.
_ENCODINGS = ("utf-8", "gb18030", "cp932", "cp949", "big5")
_UTF8_FLAG = 0x800
_JUNK = re.compile(r"(^|/)(__MACOSX(/|$)|\._|\.DS_Store$)")


@dataclass
class Listing:
    """What is in a folder.

    Attributes:
        path: of the folder, as its file system writes it; ``url`` leads there.
        files: names with sizes in bytes (None where a file cannot be looked at).
        folders: names, with what is in them where that is known already.
        real: paths of files whose name is not simply that below ``path``.
    """

    path: str
    url: str
    files: dict[str, int | None] = field(default_factory=dict)
    folders: dict[str, "Listing | None"] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)
    _alike: dict[str, list[str]] | None = None
    _stems: dict[str, list[str]] | None = None

    def alike(self, name: str) -> list[str]:
        """Files and folders whose names differ from a name in what systems change only (``folded``)."""
        if self._alike is None:
            self._alike = {}
            for each in (*self.files, *self.folders):
                self._alike.setdefault(folded(each), []).append(each)
        return self._alike.get(folded(name), [])

    def same_stem(self, name: str) -> list[str]:
        """Files whose names differ in their endings only."""
        if self._stems is None:
            self._stems = {}
            for each in self.files:
                self._stems.setdefault(folded(os.path.splitext(each)[0]), []).append(each)
        return self._stems.get(folded(os.path.splitext(name)[0]), []) or self._stems.get(folded(name), [])

    def add(self, name: str, size: int | None, real: str) -> None:
        """Add a file by its path below this folder; the folders on the way are made."""
        *folders, leaf = name.split("/")
        here = self
        for each in folders:
            inner = here.folders.get(each)
            if inner is None:
                if each in here.folders:  # A folder of its own, which is not read for the sake of this file.
                    return
                inner = here.folders[each] = Listing(f"{here.path}/{each}".lstrip("/"), "")
            here = inner
        if leaf not in here.files:
            here.files[leaf], here.real[leaf] = size, real


class Tree:
    """A file system's folders; each is listed when it is first asked for, and once."""

    def __init__(self, fs: Any, path: str, url: str, archive: ArchiveUrl | None = None) -> None:
        """Args: fs, path, url: of the outermost folder; archive: where that lies in one."""
        self._fs, self._archive = fs, archive
        self.local = archive is None and is_local(fs)
        if archive is None:
            self.root = self._listed(path, path if self.local else url)
        else:
            self.root = _archived(archive)

    def child(self, listing: Listing, name: str) -> Listing | None:
        """A folder in a folder, or None where there is none of this name."""
        if name not in listing.folders:
            return None
        inner = listing.folders[name]
        if inner is None:
            inner = listing.folders[name] = self._listed(f"{listing.path}/{name}", f"{listing.url}/{name}")
        return inner

    def url(self, listing: Listing, name: str) -> str:
        """Where a file lies."""
        if self._archive is not None:
            return f"{self._archive.kind}://{listing.real[name]}::{self._archive.target}"
        return listing.real.get(name) or f"{listing.url}/{name}"

    def _listed(self, path: str, url: str) -> Listing:
        listing = Listing(path, url)
        broken: list[tuple[str, int | None, str]] = []
        for name, size, folder in self._entries(path):
            if folder:
                listing.folders[name] = None
            elif "\\" in name:
                # Unpacked from a zip of Windows by a tool that took its separators for letters.
                broken.append((name.replace("\\", "/").strip("/"), size, f"{url}/{name}"))
            else:
                listing.files[name] = size
        for name, size, real in broken:
            listing.add(name, size, real)
        return listing

    def _entries(self, path: str) -> Iterator[tuple[str, int | None, bool]]:
        if self.local:
            yield from _local_entries(path or "/")
            return
        try:
            entries = self._fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            # What stands behind '::' would be opened as another place.
            if name and "::" not in name:
                yield name, entry["size"], entry["type"] == "directory"


def _local_entries(path: str) -> Iterator[tuple[str, int | None, bool]]:
    """Links are followed: whoever made the folder put them there."""
    try:
        found = os.scandir(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    with found:
        for entry in found:
            try:
                yield entry.name, entry.stat().st_size, entry.is_dir()
            except OSError:
                # A link that leads nowhere, or round in a circle.
                continue


def _archived(archive: ArchiveUrl) -> Listing:
    """All of an archive, or the folder in it that its URL names."""
    listing = Listing("", "")
    aliases: dict[str, set[tuple[str, int]]] = {}
    for member, size, others in _members(open_archive(archive).fs):
        if (name := _member_name(member)) is not None:
            listing.add(name, size, member)
        for other in others:
            if (name := _member_name(other)) is not None:
                aliases.setdefault(name, set()).add((member, size))
    for name, owners in aliases.items():
        if len(owners) == 1:
            ((member, size),) = owners
            listing.add(name, size, member)
    for part in filter(None, archive.inner.replace("\\", "/").split("/")):
        listing = listing.folders.get(part) or Listing("", "")
    return listing


def _members(fs: Any) -> Iterator[tuple[str, int, list[str]]]:
    """Path, size and other possible spellings of every file of an archive."""
    if not hasattr(fs, "zip"):
        for name, (info, *_) in fs.index.items():
            if info["type"] != "directory":
                yield name, info["size"], []
        return
    for info in fs.zip.infolist():
        if not info.is_dir():
            yield info.filename, info.file_size, _spellings(info.filename, info.flag_bits)


def _spellings(name: str, flags: int) -> list[str]:
    """What a name in a zip may be that was written in an encoding which the zip does not tell."""
    if flags & _UTF8_FLAG or name.isascii():
        return []
    try:
        raw = name.encode("cp437")
    except UnicodeEncodeError:
        return []
    found = []
    for encoding in _ENCODINGS:
        try:
            found.append(raw.decode(encoding))
        except UnicodeDecodeError:
            continue
    return list(dict.fromkeys(found))


def _member_name(member: str) -> str | None:
    """Path of a member with plain separators; None for what no name can mean."""
    parts = [part for part in member.replace("\\", "/").split("/") if part not in ("", ".")]
    name = "/".join(parts)
    return None if not parts or ".." in parts or "::" in member or _JUNK.search(name) else name
