"""Names of exported pictures: those of their source where every file system can hold them, and no name twice."""

import hashlib
import posixpath
import re
import unicodedata
from collections.abc import Hashable
from itertools import count

_UNSAFE = re.compile(r'[\x00-\x1f<>:"|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
# File systems hold 255 bytes; some of them are for a number behind the name.
_MOST_BYTES = 200


def safe_name(path: str) -> str:
    """A path as a relative one that Linux, macOS and Windows can hold; empty where nothing of it is left.

    Drives, schemes, leading slashes and ``..`` go; letters that Windows refuses become ``_``.
    """
    path = re.sub(r"^[A-Za-z]:(?=[/\\])|^\w+://", "", path).replace("\\", "/")
    return "/".join(_safe_part(part) for part in path.split("/") if part.strip(" .") not in ("",))


def _safe_part(part: str) -> str:
    part = _UNSAFE.sub("_", part).rstrip(" .").lstrip(" ")
    stem, ending = posixpath.splitext(part)
    if _RESERVED.fullmatch(stem.split(".")[0]):
        stem = f"_{stem}"
    if len((stem + ending).encode()) > _MOST_BYTES:
        digest = hashlib.sha256(part.encode()).hexdigest()[:16]
        ending = ending if len(ending.encode()) <= 16 else ""
        stem = stem.encode()[: _MOST_BYTES - 17 - len(ending.encode())].decode(errors="ignore") + f"-{digest}"
    return stem + ending


class Names:
    """Gives every picture a name of its own.

    Two names are the same where a file system may take them for one: letter case and Unicode's ways of writing an
    accent do not count, and a name is not both a file and a folder.
    """

    def __init__(self) -> None:
        self._files: dict[str, Hashable] = {}
        self._folders: set[str] = set()
        self._numbered: dict[tuple[str, Hashable], str] = {}
        self._last: dict[str, int] = {}

    def give(self, wanted: str, picture: Hashable) -> str:
        """The name for a picture: the one that is wanted, or with a number behind it where another has that.

        Args:
            wanted: a safe name.
            picture: what tells it from others: the same picture gets the same name again.
        """
        if self._take(wanted, picture):
            return wanted
        if (wanted, picture) not in self._numbered:
            stem, ending = posixpath.splitext(wanted)
            if self._inside_a_file(wanted):
                stem = stem.replace("/", "_")
            tries = count(self._last.get(wanted, 1) + 1)
            number = next(number for number in tries if self._take(f"{stem}~{number}{ending}", picture))
            self._last[wanted] = number
            self._numbered[wanted, picture] = f"{stem}~{number}{ending}"
        return self._numbered[wanted, picture]

    def _take(self, name: str, picture: Hashable) -> bool:
        folded = _folded(name)
        if folded in self._files:
            return self._files[folded] == picture
        if folded in self._folders or self._inside_a_file(name):
            return False
        self._files[folded] = picture
        self._folders.update(_parents(folded))
        return True

    def _inside_a_file(self, name: str) -> bool:
        return any(parent in self._files for parent in _parents(_folded(name)))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts))]
