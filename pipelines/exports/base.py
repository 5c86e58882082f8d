"""What exports share: a set read several times in few columns, and files written entry by entry."""

import json
import pickle
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.dataset.manifest import Manifest
from pipelines.dataset.read import iterate_rows
from pipelines.io.storage import Folder, HashingFile


@dataclass
class Exported:
    """What an export wrote.

    Attributes:
        out: folder.
        files: names of the files with the number of entries in each (images of ``images/``).
        renumbered: annotation ids came more than once in the set, so they were numbered anew.
    """

    out: str
    files: dict[str, int] = field(default_factory=dict)
    renumbered: bool = False


class ExportedSet:
    """A set that is read several times, each time only in the columns that are needed."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        self.url, self.manifest = url, manifest
        self._own_names = manifest.images_mode == "copy"

    def rows(self, *columns: str) -> Iterator[dict[str, Any]]:
        """All rows in order: key, image id, path and size of the image, and the given columns."""
        always = ["key", "image_id", "split", "image.path", "width", "height"]
        return iterate_rows(self.url, self.manifest, [*always, *columns])

    def file_name(self, row: Mapping[str, Any]) -> str:
        """File name of a row's image, relative to the folder of the images; it never leads out of that folder."""
        path = str(row["image"]["path"] or "")
        name = posixpath.normpath(path.replace("\\", "/")) if self._own_names else posixpath.basename(path)
        inside = name and not name.startswith(("/", "..")) and ":" not in name and name != "."
        return name if inside else f"{row['image_id']}{posixpath.splitext(path)[1]}".replace("/", "_")


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
