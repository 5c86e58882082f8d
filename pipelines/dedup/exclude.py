"""The leak guard: images of other prepared sets that a set must not hold, by source id, by bytes and by look.

COCO's train2017 contains every image of RefCOCO's val and test splits; a model that is trained on the one and measured
on the other is measured on what it has seen.
"""

import hashlib
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from padt.errors import UserError
from pipelines.dataset.manifest import ExcludedSet, Manifest, open_set
from pipelines.dedup.hashes import NEAR_BITS
from pipelines.dedup.overlap import (
    ImageNames,
    SetImages,
    as_numbers,
    check_split,
    content_words,
    hash_ids,
    image_names,
    load_images,
    look_words,
)
from pipelines.io.reading import open_input, resolve
from pipelines.io.storage import Folder

LIST_FORMAT = "padt exclude list"
_LIST_VERSION = 1


@dataclass(frozen=True)
class Exclusion:
    """Images that are not wanted, in a form that is cheap to send to tasks and to ask about one image.

    Attributes:
        sets: where they come from; ``owners`` are places in it.
        ids: hashed source ids, ``(n,)`` uint64, sorted.
        contents: first 64 bits of SHA-256 hashes, ``(m,)`` uint64, sorted.
        looks: look hashes, ``(2, k)`` uint64: first and second halves, each in one piece.
        id_owners, content_owners, look_owners: set of each entry.
    """

    sets: tuple[ExcludedSet, ...]
    ids: np.ndarray = field(repr=False)
    id_owners: np.ndarray = field(repr=False)
    contents: np.ndarray = field(repr=False)
    content_owners: np.ndarray = field(repr=False)
    looks: np.ndarray = field(repr=False)
    look_owners: np.ndarray = field(repr=False)

    @property
    def digest(self) -> str:
        """Hash of all that decides what is left out; where the sets lie does not."""
        content = hashlib.sha256()
        for values in (self.ids, self.contents, self.looks):
            content.update(np.ascontiguousarray(values).tobytes())
        return content.hexdigest()

    def by_id(self, source_id: str) -> int | None:
        """The set that holds an image with this source id, or None."""
        return _owner(self.ids, self.id_owners, hash_ids([source_id])[0])

    def by_content(self, sha256: str | None, look: str | None) -> tuple[str, int] | None:
        """Why and for which set an image is left out for what it holds, or None."""
        if sha256 is not None:
            owner = _owner(self.contents, self.content_owners, content_words([sha256])[0])
            if owner is not None:
                return "same_bytes", owner
        words = look_words([look])[0]
        if words.any() and len(self.look_owners):
            apart = np.bitwise_count(self.looks[0] ^ words[0])
            apart += np.bitwise_count(self.looks[1] ^ words[1])
            nearest = int(apart.argmin())
            if apart[nearest] <= NEAR_BITS:
                return "same_look", int(self.look_owners[nearest])
        return None


def _owner(values: np.ndarray, owners: np.ndarray, value: np.uint64) -> int | None:
    place = int(np.searchsorted(values, value))
    return int(owners[place]) if place < len(values) and values[place] == value else None


def split_spec(spec: str) -> tuple[str, str | None]:
    """Folder and split of ``SET`` or ``SET:split``."""
    head, colon, tail = spec.rpartition(":")
    return (head, tail) if colon and head and tail and "/" not in tail and "\\" not in tail else (spec, None)


def load_exclusion(specs: Sequence[str], out: str) -> Exclusion | None:
    """The images of sets that another set must not hold; None where none are named.

    Args:
        specs: ``SET``, ``SET:split``, or a list that ``write_exclude_list`` has made (``NAME.json``).
        out: folder of the set that is prepared.

    Raises:
        UserError: a set or list is missing, unfinished or damaged, has no such split, or is the prepared set itself.
    """
    if not specs:
        return None
    parts: list[tuple[ExcludedSet, SetImages]] = []
    for spec in dict.fromkeys(specs):
        try:
            parts += _read_list(spec) if spec.endswith(".json") else [_read_set(spec, out)]
        except UserError as error:
            raise UserError(f"--exclude {spec}: {error}") from error
    return _merged(parts)


def load_compared(spec: str, out: str) -> SetImages:
    """The images of a set that another is to be compared with.

    Args:
        spec: ``SET`` or ``SET:split``.
        out: folder of the other set.

    Raises:
        UserError: as ``load_exclusion``.
    """
    try:
        return _read_set(spec, out)[1]
    except UserError as error:
        raise UserError(f"--against {spec}: {error}") from error


def write_exclude_list(specs: Sequence[str], out: str) -> list[ExcludedSet]:
    """Write the images of prepared sets as one JSON file that ``--exclude`` takes.

    A set that is there for training (its split is ``train``) goes in only where its split is named (``SET:train``).

    Args:
        specs: ``SET`` or ``SET:split``.
        out: file to write, ``NAME.json``.

    Returns:
        The sets, with the number of their images.

    Raises:
        UserError: a set is missing, unfinished or has no such split; the file is not called ``.json`` or exists.
    """
    if not specs:
        raise UserError("No set is named: give prepared sets, such as runs/refcoco-val.")
    if not out.endswith(".json"):
        raise UserError(f"The list {out} must be called NAME.json: --exclude knows it by that.")
    folder, name = posixpath.split(resolve(out)[1])
    place = Folder(out[: len(out) - len(name)].rstrip("/") or ("." if not out.startswith("/") else "/"))
    if place.exists(name):
        raise UserError(f"{out} exists: remove it, or give another name.")
    sets, images = [], []
    for number, spec in enumerate(dict.fromkeys(specs)):
        url, split = split_spec(spec)
        manifest = _opened(url, split)
        if split is None and "train" in manifest.splits:
            raise UserError(f"{url} holds a train split: leave it out, or say that it is meant with {url}:train.")
        count = 0
        for part in image_names(url, manifest, split):
            columns = zip(part.keys, part.ids, part.sha256, part.looks, strict=True)
            images += [
                {"key": key, "id": id_, "sha256": sha256, "look": look, "set": number}
                for key, id_, sha256, look in columns
            ]
            count += len(part.keys)
        sets.append(_excluded_set(manifest, url, split, count))
    content = {
        "format": LIST_FORMAT,
        "version": _LIST_VERSION,
        "sets": [each.model_dump(exclude={"removed"}) for each in sets],
        "images": images,
    }
    place.write(name, json.dumps(content, indent=0, ensure_ascii=False).encode())
    return sets


def _opened(url: str, split: str | None) -> Manifest:
    manifest = open_set(url)
    check_split(url, manifest, split)
    return manifest


def _excluded_set(manifest: Manifest, url: str, split: str | None, images: int) -> ExcludedSet:
    name = f"{manifest.name}/{split or '+'.join(manifest.splits)}"
    return ExcludedSet(name=name, url=url, fingerprint=manifest.fingerprint, images=images)


def _read_set(spec: str, out: str) -> tuple[ExcludedSet, SetImages]:
    url, split = split_spec(spec)
    if Folder(url).path() == Folder(out).path() and Folder(url).fs == Folder(out).fs:
        raise UserError("this is the set that is being prepared: name another one.")
    manifest = _opened(url, split)
    images = load_images(url, split)
    return _excluded_set(manifest, url, split, len(images)), images


def _read_list(url: str) -> list[tuple[ExcludedSet, SetImages]]:
    with open_input(url, "The exclude list") as handle:
        try:
            content = json.loads(handle.read())
        except ValueError as error:
            raise UserError(f"{url} is not JSON ({error}): make it again with `padt exclude-list`.") from error
    if not isinstance(content, dict) or content.get("format") != LIST_FORMAT or content.get("version") != _LIST_VERSION:
        raise UserError(f"{url} is not an exclude list of version {_LIST_VERSION}: make it with `padt exclude-list`.")
    try:
        sets = [ExcludedSet(**each) for each in content["sets"]]
        by_set: list[list[dict[str, Any]]] = [[] for _ in sets]
        for image in content["images"]:
            by_set[image["set"]].append(image)
        return [(each, _listed(each, images)) for each, images in zip(sets, by_set, strict=True)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{url} is damaged ({error!r}): make it again with `padt exclude-list`.") from error


def _listed(source: ExcludedSet, images: Sequence[dict[str, Any]]) -> SetImages:
    columns = [[image[name] for image in images] for name in ("key", "id", "sha256", "look")]
    return as_numbers(source.name, source.url, source.fingerprint, [ImageNames(*columns)])


def _merged(parts: Sequence[tuple[ExcludedSet, SetImages]]) -> Exclusion:
    owners = np.concatenate([np.full(len(images), number, np.uint16) for number, (_, images) in enumerate(parts)])
    ids, id_owners = _sorted(np.concatenate([images.ids for _, images in parts]), owners)
    contents, content_owners = _sorted(np.concatenate([images.contents for _, images in parts]), owners)
    looks = np.concatenate([images.looks for _, images in parts])
    known = looks.any(axis=1)
    sets = tuple(source for source, _ in parts)
    halves = np.ascontiguousarray(looks[known].T)
    return Exclusion(sets, ids, id_owners, contents, content_owners, halves, owners[known])


def _sorted(values: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values in order, each once with its first owner; zeros are left out."""
    values, first = np.unique(values, return_index=True)
    kept = values != 0
    return values[kept], owners[first][kept]
