"""Images of a source: where they lie, and whether they can be read."""

import io
import posixpath
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from padt.data.image import DEFAULT_PIXEL_BUDGET, orientation, read_picture
from padt.errors import ImageError, UserError
from pipelines.dedup.hashes import look_hash
from pipelines.io.archives import archive_url
from pipelines.io.images import read_image
from pipelines.io.reading import is_local, reaching, resolve

# Pixels of a side that the hash of the look is made from, at least.
_FEWEST_PIXELS = 48
# EXIF orientations that exchange width and height.
_TURNED = (5, 6, 7, 8)
_COCO_PREFIX = re.compile(r"^COCO_(?:train|val|test)\d{4}_")
_COCO_NUMBER = re.compile(r"^\d{12}\.jpg$")
# Folders that people unpack COCO into; the same photographs go by both years.
_FOLDERS = ("train2017", "val2017", "train2014", "val2014", "images", "test2017")


class Measured(NamedTuple):
    """Width and height of an image after its EXIF orientation, and the hash of its look (``look_hash``)."""

    width: int
    height: int
    look: str | None


def measure(content: bytes, pixel_budget: int = DEFAULT_PIXEL_BUDGET, name: str = "the image") -> Measured:
    """Size and look of an encoded image, having read it to its end.

    JPEGs are decoded at an eighth of their size: all their data is read, so a file that is cut off is found, at a
    fraction of the time.

    Raises:
        ImageError: the image is unreadable, cut off, or larger than the budget.
    """
    return read_picture(io.BytesIO(content), _measured, pixel_budget, name)


def _measured(image: Image.Image) -> Measured:
    width, height = image.size
    if orientation(image) in _TURNED:
        width, height = height, width
    image.draft("L", (max(_FEWEST_PIXELS, image.size[0] // 8), max(_FEWEST_PIXELS, image.size[1] // 8)))
    image.load()
    return Measured(width, height, look_hash(image))


class ImagesAhead:
    """``read_image`` for images that are asked for in a known order: those on the network are fetched ahead.

    A request to an object store takes tens of milliseconds, most of them waiting; one after the other, they would take
    longer than all the work on the images.
    """

    def __init__(self, urls: Iterable[str], ahead: int = 16) -> None:
        """Args: urls: of the images, in order; ahead: most images that are held or under way."""
        self._left = deque(url for url in urls if _is_far(url))
        self._ahead = ahead
        self._under_way: deque[tuple[str, Future[bytes]]] = deque()
        self._pool = ThreadPoolExecutor(ahead) if self._left else None

    def read(self, url: str) -> bytes:
        """The image at a URL; images before it that nobody asked for are passed over.

        Raises:
            ImageError, UserError: see ``read_image``.
        """
        if self._pool is None or not _is_far(url):
            return read_image(url)
        self._fetch(self._pool)
        while self._under_way:
            fetched, future = self._under_way.popleft()
            if fetched == url:
                self._fetch(self._pool)
                return future.result()
            future.cancel()
            self._fetch(self._pool)
        return read_image(url)

    def _fetch(self, pool: ThreadPoolExecutor) -> None:
        while self._left and len(self._under_way) < self._ahead:
            url = self._left.popleft()
            self._under_way.append((url, pool.submit(read_image, url)))


def _is_far(url: str) -> bool:
    # Files in an archive are read one at a time anyhow.
    return "://" in url and archive_url(url) is None and not url.startswith(("file://", "local://"))


@dataclass(frozen=True)
class _Place:
    """A folder that names are looked for in: its file system, the path there, and the URL that leads to it."""

    fs: Any
    path: str
    url: str

    def below(self, name: str) -> "_Place":
        archive = archive_url(self.url)
        path = f"{self.path}/{name}".lstrip("/") if archive else f"{self.path}/{name}"
        if archive is not None:
            return _Place(self.fs, path, f"{archive.kind}://{path}::{archive.target}")
        return _Place(self.fs, path, path if is_local(self.fs) else f"{self.url}/{name}")


@dataclass
class ImageFolders:
    """Finds images by the names that annotation files give them.

    RefCOCO's files say ``COCO_train2014_000000000790.jpg`` where most people's copy is ``train2017/000000000790.jpg``,
    Objects365's say ``images/v1/patch0/NAME.jpg`` where the archives unpack to ``patch0/NAME.jpg``, and exports of
    annotation tools put their own folders before the name: all are found below the given folder.

    Attributes:
        roots: paths or URLs of the folders (or zip or tar files) that the names are relative to, the first one first.
    """

    roots: Sequence[str]
    _listings: dict[tuple[str, str], dict[str, int | None]] = field(default_factory=dict)
    _places: list[_Place] = field(default_factory=list)

    def __post_init__(self) -> None:
        for root in self.roots:
            archive = archive_url(root, bare=True)
            url = root.rstrip("/") if archive is None else str(archive)
            fs, path = resolve(url)
            place = _Place(fs, path.rstrip("/"), url)
            self._places.append(place)
            if not _has_listing(fs):
                continue
            with reaching(root, "The image folder"):
                if place.path and not fs.isdir(place.path):
                    raise UserError(f"The image folder {root} does not exist or is not a folder: check --images.")
                self._places += self._known_folders(place)

    def locate(self, file_name: str) -> tuple[str, int | None]:
        """URL of an image and its size in bytes; the size is None where the file was not found or cannot be listed.

        Raises:
            ImageError: the name leads out of the folder (reason ``image_outside_root``).
            UserError: there are no folders.
        """
        if not self._places:
            raise UserError(f"The annotations name pictures, such as {file_name}: say where they lie with --images.")
        clean = self._inside(file_name)
        for name in _names(clean):
            for place in self._places:
                folder, _, leaf = name.rpartition("/")
                if not _has_listing(place.fs):
                    return place.below(name).url, None
                listing = self._list(place, folder)
                if leaf in listing:
                    return place.below(name).url, listing[leaf]
        return self._places[0].below(clean).url, None

    def _inside(self, file_name: str) -> str:
        """The name relative to the folder, with plain separators."""
        if "://" in file_name or "::" in file_name:
            raise ImageError("image_outside_root", f"{file_name} is a URL, not a name inside the image folder")
        clean = posixpath.normpath(file_name.replace("\\", "/"))
        for place in self._places:
            # Some tools write whole paths; those that lie inside the folder lead nowhere else.
            if is_local(place.fs) and clean.startswith(f"{place.path}/"):
                clean = clean.removeprefix(f"{place.path}/")
        if clean.startswith("/") or clean.split("/")[0] == ".." or re.match(r"^[A-Za-z]:", clean) or clean == ".":
            raise ImageError("image_outside_root", f"{file_name} leads out of the image folder")
        return clean

    def _known_folders(self, place: _Place) -> Iterator[_Place]:
        """Folders below one that images usually lie in; the only folder of an archive among them."""
        entries = self._list(place, "")
        if archive_url(place.url) is not None and len(entries) == 1 and None in entries.values():
            yield from (place.below(name) for name in entries if name not in _FOLDERS)
        for name in _FOLDERS:
            if name in entries:
                yield place.below(name)
        if "images" in entries:
            inner = self._list(place, "images")
            yield from (place.below(f"images/{name}") for name in _FOLDERS if name in inner)

    def _list(self, place: _Place, folder: str) -> dict[str, int | None]:
        """Names and sizes in a folder below a place (folders have size None); empty where there is no such folder."""
        key = (place.url, folder)
        if key not in self._listings:
            path = f"{place.path}/{folder}".strip("/") if archive_url(place.url) else f"{place.path}/{folder}"
            try:
                entries = place.fs.ls(path.rstrip("/"), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            self._listings[key] = {
                entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] if entry["type"] == "file" else None
                for entry in entries
            }
        return self._listings[key]


def _names(clean: str) -> list[str]:
    """Names that an image may have below the folder: as written, without its leading folders, and under other years."""
    parts = clean.split("/")
    names = ["/".join(parts[start:]) for start in range(len(parts))]
    base = parts[-1]
    names.append(_COCO_PREFIX.sub("", base))
    if _COCO_NUMBER.match(base):
        names += [f"COCO_train2014_{base}", f"COCO_val2014_{base}"]
    return list(dict.fromkeys(names))


def _has_listing(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not set(protocols) & {"http", "https"}
