"""Images of a source: where they lie, and whether they can be read."""

import io
import posixpath
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, UnidentifiedImageError

from padt.errors import ImageError, UserError
from padt.image import DEFAULT_PIXEL_BUDGET
from pipelines.storage import is_local, resolve

_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
_COCO_PREFIX = re.compile(r"^COCO_(?:train|val|test)\d{4}_")
# Folders that people unpack COCO into; the same photographs go by both years.
_FOLDERS = ("train2017", "val2017", "train2014", "val2014", "images", "test2017")


def upright_size(content: bytes, pixel_budget: int = DEFAULT_PIXEL_BUDGET) -> tuple[int, int]:
    """Width and height of an encoded image after its EXIF orientation, having read it to its end.

    JPEGs are decoded at an eighth of their size: all their data is read, so a file that is cut off is found, at a
    fraction of the time.

    Raises:
        ImageError: the image is unreadable, cut off, or larger than the budget.
    """
    with warnings.catch_warnings():
        # Pillow's own bomb warning is replaced by the budget.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
                if width * height > pixel_budget:
                    raise ImageError("image_too_large", f"{width}x{height} pixels are more than {pixel_budget:,}")
                if image.getexif().get(_EXIF_ORIENTATION) in _TURNED:
                    width, height = height, width
                image.draft("L", (max(1, image.size[0] // 8), max(1, image.size[1] // 8)))
                image.load()
        except Image.DecompressionBombError as error:
            raise ImageError("image_too_large", str(error)) from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
            raise ImageError("image_unreadable", str(error)) from error
    return width, height


def read_image(url: str) -> bytes:
    """Encoded bytes of an image.

    Raises:
        ImageError: the file is missing or cannot be read.
    """
    try:
        fs, path = resolve(url)
        return bytes(fs.cat_file(path))
    except FileNotFoundError as error:
        raise ImageError("image_missing", f"{url} does not exist") from error
    except (OSError, ValueError) as error:
        raise ImageError("image_unreadable", f"{url}: {error}") from error


@dataclass
class ImageFolders:
    """Finds images by the names that annotation files give them.

    RefCOCO's files say ``COCO_train2014_000000000790.jpg`` where most people's copy is ``train2017/000000000790.jpg``;
    both are found below the given folder.

    Attributes:
        roots: URLs of the folders that the names are relative to, the first one first.
    """

    roots: Sequence[str]
    _listings: dict[str, dict[str, int | None] | None] = field(default_factory=dict)
    _places: list[tuple[Any, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for root in self.roots:
            fs, path = resolve(root)
            path = path.rstrip("/")
            if _has_listing(fs) and not fs.isdir(path):
                raise UserError(f"The image folder {root} does not exist or is not a folder: check --images.")
            self._places.append((fs, path, root))
            self._places += [
                (fs, f"{path}/{name}", f"{root.rstrip('/')}/{name}")
                for name in _FOLDERS
                if _has_listing(fs) and name in (self._list(fs, path) or {})
            ]

    def locate(self, file_name: str) -> tuple[str, int | None]:
        """URL of an image and its size in bytes; the size is None where the file was not found or cannot be listed.

        Raises:
            ImageError: the name leads out of the folder (reason ``image_outside_root``).
        """
        if "://" in file_name:
            raise ImageError("image_outside_root", f"{file_name} is a URL, not a name inside the image folder")
        clean = posixpath.normpath(file_name.replace("\\", "/"))
        if clean.startswith(("/", "..")) or re.match(r"^[A-Za-z]:", clean) or clean == ".":
            raise ImageError("image_outside_root", f"{file_name} leads out of the image folder")
        base = posixpath.basename(clean)
        names = list(dict.fromkeys([clean, base, _COCO_PREFIX.sub("", base)]))
        for fs, path, _ in self._places:
            for name in names:
                folder, _, leaf = f"{path}/{name}".rpartition("/")
                listing = self._list(fs, folder)
                if listing is None:
                    return fs.unstrip_protocol(f"{folder}/{leaf}"), None
                if leaf in listing:
                    return self._url(fs, f"{folder}/{leaf}"), listing[leaf]
        fs, path, _ = self._places[0]
        return self._url(fs, f"{path}/{clean}"), None

    def _url(self, fs: Any, path: str) -> str:
        return path if is_local(fs) else fs.unstrip_protocol(path)

    def _list(self, fs: Any, folder: str) -> dict[str, int | None] | None:
        """Names and sizes in a folder (folders have size None); None where the file system cannot list."""
        if not _has_listing(fs):
            return None
        if folder not in self._listings:
            try:
                entries = fs.ls(folder, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            self._listings[folder] = {
                entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] if entry["type"] == "file" else None
                for entry in entries
            }
        return self._listings[folder]


def _has_listing(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not set(protocols) & {"http", "https"}
