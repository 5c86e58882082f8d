"""Places of a source's images: each name's own, and none that two pictures share."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from padt.errors import ImageError
from pipelines.dataset.losses import Notes
from pipelines.images.folders import Found, ImageFolders
from pipelines.images.names import picture_of
from pipelines.sources.base import Header, ImageEntry, Reject


@dataclass(frozen=True)
class PlannedImage:
    """An image with its place on disk.

    Attributes:
        entry: as the source lists it.
        places: of every picture of the image, the URLs that it may lie at, the likeliest first (more than one only on
            the web); none where there is no picture, or it stands in the source itself.
        bytes: size of the pictures; None where they were not found or it is not known.
        missing: where a picture was not found: which one, where it was looked for, and why.
    """

    entry: ImageEntry
    places: tuple[tuple[str, ...], ...]
    bytes: int | None
    missing: str = ""


def locate_images(header: Header, folders: ImageFolders) -> tuple[list[PlannedImage], list[Reject], Notes]:
    """Places of a source's images, the images whose names are refused, and what looks wrong about the names.

    No two pictures are read from one file: where names lead to the same one after folders were left out or spellings
    changed, only the one that names it as it lies there gets it.
    """
    found: dict[str, Found | ImageError] = {}
    for entry in header.images:
        for name in _names(entry):
            if name not in found:
                try:
                    found[name] = folders.locate(name)
                except ImageError as error:
                    found[name] = error
    places = {name: place for name, place in found.items() if isinstance(place, Found)}
    refused = places | _one_picture_each(places)
    planned, rejects = [], []
    for entry in header.images:
        names = _names(entry)
        errors = [place for name in names if isinstance(place := found[name], ImageError)]
        if errors:
            rejects.append(Reject(entry.image_id, "image", errors[0].reason, str(errors[0])))
            continue
        if entry.embedded:
            planned.append(PlannedImage(entry, (), entry.embedded))
            continue
        its = [refused[name] for name in names]
        missing = next((place.why for place in its if not place.urls), "")
        sizes = [place.size for place in its if place.size is not None]
        size = sum(sizes) if len(sizes) == len(its) and not missing else None
        planned.append(PlannedImage(entry, () if missing else tuple(place.urls for place in its), size, missing))
    return planned, rejects, _same_names(header.images)


def _names(entry: ImageEntry) -> list[str]:
    return [entry.file_name, *entry.more] if entry.file_name and not entry.embedded else []


def _same_names(images: Iterable[ImageEntry]) -> Notes:
    """Images that share their file although nothing but objects is said of them: one of the names may be wrong."""
    notes = Notes()
    owners: dict[str, str] = {}
    for entry in images:
        if entry.width is None or not entry.file_name or entry.more:
            continue
        first = owners.setdefault(entry.file_name, entry.image_id)
        if first != entry.image_id:
            notes.add("file_name_repeated", f"image {entry.image_id} and image {first}: {entry.file_name}")
    return notes


def _one_picture_each(places: dict[str, Found]) -> dict[str, Found]:
    """What is to stand for places that belong to another picture, by name."""
    return _shared_files(places) | _shared_folders(places) | _shared_addresses(places)


def _shared_files(places: dict[str, Found]) -> dict[str, Found]:
    by_file: dict[str, list[str]] = defaultdict(list)
    for name, place in places.items():
        if len(place.urls) == 1 and not place.loose:
            by_file[place.urls[0]].append(name)
    refused = {}
    for url, names in by_file.items():
        if len(names) == 1 or len({picture_of(name) for name in names}) == 1:
            continue
        exact = [name for name in names if places[name].exact]
        owner = min(exact, key=lambda name: places[name].order) if exact else None
        for name in names:
            if owner is None or picture_of(name) != picture_of(owner):
                refused[name] = Found((), why=_both(name, owner or names[name == names[0]], url))
    return refused


def _both(name: str, other: str, url: str) -> str:
    return f"{name} could only be {url}, which is {other} as well: two pictures cannot be one file"


def _shared_folders(places: dict[str, Found]) -> dict[str, Found]:
    """A folder that other names call by its own name is not that of a name whose folder is another one."""
    named: dict[str, dict[str, str]] = defaultdict(dict)
    for name, place in places.items():
        if place.exact and place.tail:
            named[place.folder].setdefault(place.tail, name)
    refused = {}
    for name, place in places.items():
        owners = named.get(place.folder) if place.urls and not place.exact else None
        if owners and place.tail not in owners and not picture_of(name).startswith("coco:"):
            why = f"{name} is not there: {place.urls[0]} lies in the folder of {next(iter(owners.values()))}"
            refused[name] = Found((), why=why)
    return refused


def _shared_addresses(places: dict[str, Found]) -> dict[str, Found]:
    """On the web, no picture is looked for where folders were left out and another may lie."""
    loose = {url for place in places.values() for url in place.loose}
    if not loose:
        return {}
    owners: dict[str, list[str]] = defaultdict(list)
    for name, place in places.items():
        for url in loose.intersection(place.urls):
            owners[url].append(name)
    shared = {url for url, names in owners.items() if len(names) > 1 and len({picture_of(name) for name in names}) > 1}
    refused = {}
    for name, place in places.items():
        if taken := shared.intersection(place.loose):
            urls = tuple(url for url in place.urls if url not in taken)
            others = owners[min(taken)]
            why = "" if urls else _both(name, others[name == others[0]], min(taken))
            refused[name] = replace(place, urls=urls, why=why)
    return refused


def described(images: Iterable[PlannedImage], most: int = 2) -> str:
    """The commonest reasons why images were not found, for a message."""
    return "; ".join(why for why, _ in Counter(image.missing for image in images if image.missing).most_common(most))
