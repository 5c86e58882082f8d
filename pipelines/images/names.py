"""Names of image files as tools write them: what they may mean below a folder of images.

Pure functions on text. No reading of a name ever holds ``..``: whatever an annotation file says, it is looked for below
the folders that the user gave.
"""

import posixpath
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

# Folders that people unpack COCO into; the same photographs go by both years.
COCO_FOLDERS = ("train2017", "val2017", "train2014", "val2014", "test2017")
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif", ".ppm")

_ODD = re.compile(r"[:?%]|/$")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*")
_DRIVE = re.compile(r"^/*[A-Za-z]:(?=/)")
# In its own folder of a drive; on other systems any name may begin so.
_DRIVE_NAME = re.compile(r"^[A-Za-z]:(?=[^/\\])")
_COCO = re.compile(r"^(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})(\.[A-Za-z]+)$")


class Reading(NamedTuple):
    """One way to read a name.

    Attributes:
        parts: folders and the file's own name, outermost first; empty where nothing is left of the name.
        outside: whether the name, as it is written, leads out of the folder of images.
    """

    parts: tuple[str, ...]
    outside: bool


def readings(file_name: str, roots: Sequence[str] = ()) -> list[Reading]:
    """All ways to read a name, the most literal one first.

    Backslashes separate folders; drives, servers and leading ``..`` are left out; the path that a web address asks for
    may stand in its query (``?d=folder/1.png``); per-cent escapes are read as they are, and as what they stand for.

    Args:
        file_name: as the annotation file has it.
        roots: absolute paths of the folders of images; whole paths into one of them lead nowhere else.
    """
    found: dict[tuple[str, ...], Reading] = {}
    for text, outside in _texts(file_name):
        reading = _reading(text, outside, roots)
        found.setdefault(reading.parts, reading)
    return [reading for reading in found.values() if reading.parts] or [Reading((), True)]


def _texts(file_name: str) -> list[tuple[str, bool]]:
    if not _ODD.search(file_name):
        return [(file_name, False)]
    address = _URL.match(file_name)
    text = file_name[address.end() :] if address else file_name
    outside = address is not None or "::" in file_name
    texts = [text]
    if drive := _DRIVE_NAME.match(text):
        outside = True
        texts.append(text[drive.end() :])
    if address is not None:
        texts.append(text.partition("#")[0])
    path, asked, query = text.partition("?")
    if asked:
        texts.append(path)
        texts += [value for _, value in parse_qsl(query) if "." in posixpath.basename(value)]
    for each in list(texts):
        once = unquote(each)
        texts += [once, unquote(once)]
    return [(each, outside) for each in texts if each and not each.endswith("/")]


def _reading(text: str, outside: bool, roots: Sequence[str]) -> Reading:
    clean = text.replace("\\", "/")
    if drive := _DRIVE.match(clean):
        clean, outside = clean[drive.end() :], True
    clean = posixpath.normpath(clean)
    for root in roots:
        if clean.startswith(f"{root}/"):
            clean = clean.removeprefix(f"{root}/")
    parts = [part for part in clean.split("/") if part not in ("", ".")]
    inner = [part for part in parts if part != ".."]
    return Reading(tuple(inner), outside or clean.startswith("/") or len(inner) < len(parts))


def other_years(leaf: str) -> tuple[str, ...]:
    """Names that the same photograph of COCO has in the sets of other years; empty for other names."""
    match = _COCO.match(leaf)
    if match is None:
        return ()
    number = "".join(match.groups())
    names = (number, f"COCO_train2014_{number}", f"COCO_val2014_{number}")
    return tuple(name for name in names if name != leaf)


def picture_of(file_name: str) -> str:
    """What tells the picture of a name from others: COCO's number, which is one picture's only, or the whole name."""
    reading = readings(file_name)[0]
    match = _COCO.match(reading.parts[-1]) if reading.parts else None
    if match is not None:
        return f"coco:{match[1]}"
    return file_name.replace("\\", "/") if reading.outside else "/".join(reading.parts)


def folded(name: str) -> str:
    """A name without what differs between systems: case, accents' composition, per-cent escapes, outer blanks."""
    return unicodedata.normalize("NFC", unquote(name)).casefold().strip()
