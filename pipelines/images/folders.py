"""Images of a source found by the names that annotation files give them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from padt.errors import ImageError, UserError
from pipelines.images.listing import Listing, Tree
from pipelines.images.names import COCO_FOLDERS, PICTURE_ENDINGS, Reading, other_years, readings
from pipelines.io.archives import archive_url
from pipelines.io.reading import reaching, read_file, resolve
from pipelines.io.transport import RefusedError, is_web

# Levels that a lone folder in a folder or archive is followed down, and folders that a hint is looked for in.
_MOST_LEVELS = 4
_MOST_HINT_FOLDERS = 2000
# On the web: places that one name is looked for in, and names that are tried before the work starts.
_MOST_PLACES = 12
_MOST_PROBED = 5


@dataclass(frozen=True)
class Found:
    """Where an image lies.

    Attributes:
        urls: its place; on the web all places that it may have, the likeliest first; empty where it was not found.
        size: in bytes; None where it was not found or cannot be known.
        exact: whether the name was taken as it is written.
        order: of the folder that it lies in, among those looked into.
        folder: that folder.
        tail: folders of the name that led there, without those that were left out.
        why: where it was not found: the name, where it was looked for, and what is there.
        loose: those of ``urls`` that leave folders of the name out.
    """

    urls: tuple[str, ...]
    size: int | None = None
    exact: bool = False
    order: int = 0
    folder: str = ""
    tail: str = ""
    why: str = ""
    loose: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Place:
    """A folder that names are looked for in.

    Attributes:
        tree, listing: the folder, and what it lies in.
        free: whether names are looked for there without all their folders. Not so in folders that are only likely, and
            whose name says something: ``val/1.png`` is not ``train/1.png``.
    """

    tree: Tree
    listing: Listing
    free: bool


@dataclass
class ImageFolders:
    """Finds images by the names that annotation files give them.

    RefCOCO's files say ``COCO_train2014_000000000790.jpg`` where most people's copy is ``train2017/000000000790.jpg``,
    Objects365's say ``images/v1/patch0/NAME.jpg`` where the archives unpack to ``patch0/NAME.jpg``, and exports of
    annotation tools put their own folders, drives and servers before the name: all are found below the given folders by
    the longest tail of their names. Every folder is listed once.

    Attributes:
        roots: paths or URLs of the folders (or zip or tar files) that the names are relative to, the first one first.
    """

    roots: Sequence[str]
    _places: list[_Place] = field(default_factory=list)
    _ways: dict[tuple[str, ...], list[list[tuple[int, Listing, bool]]]] = field(default_factory=dict)
    _form: tuple[object, ...] | None = None
    _probed: int = 0

    def __post_init__(self) -> None:
        for root in self.roots:
            if is_web(root):
                continue
            archive = archive_url(root, bare=True)
            fs, path = resolve(str(archive) if archive is not None else root.rstrip("/"))
            with reaching(root, "The image folder"):
                tree = Tree(fs, path.rstrip("/"), root.rstrip("/"), archive)
                empty = not (tree.root.files or tree.root.folders)
                if path.strip("/") and empty and (archive is not None or not fs.isdir(path)):
                    raise UserError(f"The image folder {root} does not exist or is not a folder: check --images.")
                self._places.append(_Place(tree, tree.root, True))
                self._places += [_Place(tree, listing, free) for listing, free in _likely(tree)]
        self._local = [place.tree.root.path for place in self._places if place.tree.local]

    def locate(self, file_name: str) -> Found:
        """Where an image lies, or why it was not found.

        Raises:
            ImageError: the name leads out of the folder (reason ``image_outside_root``), and nothing that it may mean
                is in the folder.
            UserError: there are no folders, or a web server refuses to answer.
        """
        if not self.roots:
            raise UserError(f"The annotations name pictures, such as {file_name}: say where they lie with --images.")
        meant = readings(file_name, self._local)
        try:
            for number, reading in enumerate(meant):
                if (found := self._listed(reading, number == 0)) is not None:
                    return found
        except _AmbiguousError as error:
            return Found(
                (), why=f"{file_name} may be {' or '.join(error.names)} in {error.folder}: rename one of them."
            )
        candidates = self._on_the_web(meant)
        if candidates:
            return candidates
        if all(reading.outside for reading in meant):
            raise ImageError(
                "image_outside_root",
                f"{file_name} leads out of the image folder, and {', '.join(self.roots)} has nothing of that name",
            )
        return Found((), why=self._why(file_name, meant))

    def _listed(self, reading: Reading, literal: bool) -> Found | None:
        *folders, leaf = reading.parts or ("",)
        ways = self._ways_of(tuple(folders))
        for dropped, options in enumerate(ways):
            for loosely in (False, True):
                for order, listing, loose in options:
                    if dropped and not self._places[order].free and dropped == len(folders):
                        continue
                    name = leaf if leaf in listing.files or leaf in listing.folders else None
                    if name is None and loosely:
                        name = _only(listing, leaf)
                    if name is not None and (loosely or not loose):
                        exact = literal and not (dropped or loosely or reading.outside)
                        return self._found(order, listing, name, exact, "/".join(folders[dropped:]))
        others = other_years(leaf)
        for name in (leaf, *others) if others else ():
            for options in ways:
                for order, listing, _ in options:
                    if name in listing.files:
                        return self._found(order, listing, name, False, "")
        return None

    def _found(self, order: int, listing: Listing, name: str, exact: bool, tail: str) -> Found:
        url = self._places[order].tree.url(listing, name)
        folder = url.removesuffix(f"/{name}")
        return Found((url,), listing.files.get(name), exact, order, folder, tail)

    def _ways_of(self, folders: tuple[str, ...]) -> list[list[tuple[int, Listing, bool]]]:
        """Folders that exist, by the number of leading folders that are left out; each with its place's number."""
        if folders not in self._ways:
            self._ways[folders] = [
                [
                    (order, *way)
                    for order, place in enumerate(self._places)
                    if (way := _walk(place, folders[dropped:])) is not None
                ]
                for dropped in range(len(folders) + 1)
            ]
        return self._ways[folders]

    def _on_the_web(self, meant: Sequence[Reading]) -> Found | None:
        """Places that a name may have on servers without a listing; the form that led to a picture before is first."""
        forms = list(dict.fromkeys(_forms(meant)))
        candidates = {
            _join(root, relative): (root, *form) for root in self.roots if is_web(root) for form, relative in forms
        }
        if len(candidates) > 1 and self._form is None and self._probed < _MOST_PROBED:
            self._probed += 1
            self._form = next((form for url, form in candidates.items() if _is_there(url)), None)
        ordered = sorted(candidates, key=lambda url: candidates[url] != self._form)[:_MOST_PLACES]
        loose = frozenset(url for url in ordered if candidates[url][-1])
        return Found(tuple(ordered), loose=loose) if ordered else None

    def _why(self, file_name: str, meant: Sequence[Reading]) -> str:
        said = f"{file_name} is not in {', '.join(self.roots)}"
        if len(meant[0].parts) > 1:
            said += ", with or without its folders"
        for reading in meant:
            *folders, leaf = reading.parts or ("",)
            for options in self._ways_of(tuple(folders)):
                for _, listing, _ in options:
                    if near := listing.same_stem(leaf):
                        return f"{said}; {near[0]} is: if that is the picture, rename it or correct the annotations"
        return said

    def hint(self, file_name: str) -> str:
        """The folder below the given ones that has a file of this name, for a message; empty where none has."""
        leaf = readings(file_name)[0].parts[-1:]
        for place in self._places if leaf else ():
            queue = [place.listing]
            for listing in queue:
                if leaf[0] in listing.files:
                    url = place.tree.url(listing, leaf[0])
                    return url.removesuffix(f"/{leaf[0]}")
                if len(queue) < _MOST_HINT_FOLDERS:
                    inner = (place.tree.child(listing, name) for name in sorted(listing.folders))
                    queue += [each for each in inner if each is not None]
        return ""


class _AmbiguousError(Exception):
    """A name may mean several files."""

    def __init__(self, names: Sequence[str], folder: str) -> None:
        self.names, self.folder = sorted(names), folder
        super().__init__(folder)


def _only(listing: Listing, name: str) -> str | None:
    alike = listing.alike(name)
    if len(alike) > 1:
        raise _AmbiguousError(alike, listing.url or listing.path or "the archive")
    return alike[0] if alike else None


def _walk(place: _Place, folders: Sequence[str]) -> tuple[Listing, bool] | None:
    """The folder that a path leads to below a place, and whether a name on the way was not quite that of the path."""
    listing, loose = place.listing, False
    for name in folders:
        if name not in listing.folders:
            alike = [each for each in listing.alike(name) if each in listing.folders]
            if len(alike) != 1:
                return None
            name, loose = alike[0], True
        inner = place.tree.child(listing, name)
        if inner is None:
            return None
        listing = inner
    return listing, loose


def _likely(tree: Tree) -> Iterator[tuple[Listing, bool]]:
    """Folders below the root that images usually lie in; those by the name of ``images`` may stand for any folder."""
    root = tree.root
    for level in range(_MOST_LEVELS):
        for name in ("images", *COCO_FOLDERS):
            if (inner := tree.child(root, name)) is not None:
                yield inner, name == "images"
                if name == "images":
                    for year in COCO_FOLDERS:
                        if (below := tree.child(inner, year)) is not None:
                            yield below, False
        # A folder that holds nothing but another one is only its wrapping.
        shown = [name for name in root.folders if not name.startswith(".")]
        pictures = any(name.lower().endswith(PICTURE_ENDINGS) for name in root.files)
        if pictures or len(shown) != 1:
            return
        root = tree.child(root, shown[0]) or Listing("", "")
        if shown[0] not in ("images", *COCO_FOLDERS) or level:
            yield root, False


def _forms(meant: Sequence[Reading]) -> Iterator[tuple[tuple[object, ...], str]]:
    """Forms that a name may have below a folder on the web; the last item: not the name as written."""
    for number, reading in enumerate(meant):
        *folders, leaf = reading.parts or ("",)
        for dropped in range(len(folders) + 1 if leaf else 0):
            yield (number, dropped, bool(number or dropped or reading.outside)), "/".join((*folders[dropped:], leaf))
        others = other_years(leaf)
        for name in (leaf, *others) if others else ():
            for folder in ("", *COCO_FOLDERS[:4]):
                yield (
                    ("year", folder, others.index(name) if name in others else -1, False),
                    f"{folder}/{name}".lstrip("/"),
                )


def _join(root: str, relative: str) -> str:
    """A name put after the address of a folder; keys in the address stay behind it."""
    address = urlsplit(root)
    path = f"{address.path.rstrip('/')}/{quote(relative)}"
    return address._replace(path=path, fragment="").geturl()


def _is_there(url: str) -> bool:
    try:
        read_file(url, 1)
    except (OSError, RefusedError):
        return False
    return True
