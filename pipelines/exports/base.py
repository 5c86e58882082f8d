"""What exports share: a set read several times in few columns, and files written entry by entry."""

import hashlib
import json
import pickle
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipelines.dataset.manifest import Manifest
from pipelines.dataset.read import iterate_rows
from pipelines.exports.names import Names, safe_name
from pipelines.io.storage import Folder, HashingFile


@dataclass
class Exported:
    """What an export wrote.

    Attributes:
        out: folder.
        files: names of the files with the number of entries in each (images of ``images/``).
        renumbered: annotation ids came more than once in the set, so they were numbered anew.
        lost: what the format has no place for, each in a sentence with its number.
    """

    out: str
    files: dict[str, int] = field(default_factory=dict)
    renumbered: bool = False
    lost: list[str] = field(default_factory=list)


class ExportedSet:
    """A set that is read several times, each time only in the columns that are needed."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        self.url, self.manifest = url, manifest

    def rows(self, *columns: str) -> Iterator[dict[str, Any]]:
        """All rows in order: key, image id, path and size of the image, and the given columns."""
        always = ["key", "image_id", "split", "image.path", "width", "height"]
        return iterate_rows(self.url, self.manifest, [*always, *columns])

    def file_name(self, row: Mapping[str, Any]) -> str:
        """File name of a row's (first) image; see ``file_names``."""
        return self.file_names(row)[0]

    def file_names(self, row: Mapping[str, Any]) -> list[str]:
        """File names of a row's images, relative to their folder: safe anywhere, and no two pictures have one.

        Args:
            row: with ``image.path``, and ``more_images.path`` where the set holds conversations.
        """
        return [
            self._renamed.get((row["key"], place)) or self._wanted(row, image)
            for place, image in enumerate(images_of_row(row))
        ]

    @cached_property
    def _renamed(self) -> dict[tuple[str, int], str]:
        """Names that differ from what was wanted, by key and place of the image in its row."""
        names, renamed = Names(), {}
        copies = self.manifest.images_mode == "copy"
        for row in self.rows("sha256", *(["more_images"] if self.manifest.counts.conversations else [])):
            for place, image in enumerate(images_of_row(row)):
                wanted = self._wanted(row, image)
                if image.get("bytes") is not None:
                    content = hashlib.sha256(image["bytes"]).hexdigest()
                else:
                    # Sets from before there were hashes: every row's picture passes for another one.
                    content = (row.get("sha256") or row["key"]) if copies else ""
                name = names.give(wanted, (image["path"], content))
                if name != wanted:
                    renamed[row["key"], place] = name
        return renamed

    def _wanted(self, row: Mapping[str, Any], image: Mapping[str, Any]) -> str:
        path = str(image["path"] or "")
        if self.manifest.images_mode != "copy":
            # A place somewhere; in an archive the member comes first.
            path = posixpath.basename(path.split("::")[0].replace("\\", "/"))
        return safe_name(path) or safe_name(f"{row['image_id']}".replace("/", "_")) or "image"


def images_of_row(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The images of a row, none for a conversation without pictures."""
    return [] if row["image"] is None else [row["image"], *(row.get("more_images") or ())]


def id_of(image_id: str) -> int | str:
    """A whole number where the id is written as one, so that other tools find what they know."""
    return int(image_id) if image_id.isascii() and image_id.isdigit() and str(int(image_id)) == image_id else image_id


def write_json(
    folder: Folder, name: str, head: Mapping[str, Any], sections: Mapping[str, Iterable[Any]]
) -> dict[str, int]:
    """Write a JSON object whose lists are streamed; returns their lengths."""
    lengths = {}
    with folder.writing(name) as file:
        file.write(json.dumps(head, ensure_ascii=False).encode().removesuffix(b"}"))
        for section, entries in sections.items():
            file.write(f', "{section}": ['.encode())
            lengths[section] = _write_entries(file, entries, b",\n")
            file.write(b"]")
        file.write(b"}\n")
    return lengths


def write_lines(folder: Folder, name: str, entries: Iterable[Any]) -> int:
    """Write JSON lines; returns how many."""
    with folder.writing(name) as file:
        count = _write_entries(file, entries, b"\n")
        file.write(b"\n")
    return count


def _write_entries(file: HashingFile, entries: Iterable[Any], between: bytes) -> int:
    count = 0
    for count, entry in enumerate(entries, start=1):  # noqa: B007 (the last number is the result)
        text = json.dumps(entry, ensure_ascii=False).encode()
        file.write(text if count == 1 else between + text)
    return count


def write_pickle(folder: Folder, name: str, entries: Iterable[Any]) -> int:
    """Write a pickle of a list, entry by entry: each stands in the file as the body of a pickle of its own.

    An entry's body leaves it on the unpickler's stack, and APPEND moves it to the list below; what one body remembers
    the next one overwrites.
    """
    count = 0
    with folder.writing(name) as file:
        file.write(pickle.PROTO + bytes([2]) + pickle.EMPTY_LIST)
        for count, entry in enumerate(entries, start=1):  # noqa: B007 (the last number is the result)
            file.write(pickle.dumps(entry, protocol=2)[2:-1] + pickle.APPEND)
        file.write(pickle.STOP)
    return count
