"""Which images two prepared sets share, and which a set holds twice: by id, by bytes and by look, from columns alone.

Ids and hashes are compared as 64-bit numbers (a chance in a billion that two of a million images against a million are
taken for the same), so that a set of 1.7 million images takes 60 MB.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from padt.errors import UserError
from pipelines.dataset.manifest import Manifest, open_set
from pipelines.dataset.read import read_columns
from pipelines.dedup.hashes import NEAR_BITS, source_id

logger = logging.getLogger(__name__)

SAME = ("same_source_id", "same_bytes", "same_look")
"""How two images can be the same, surest first; each image counts once, for the first that holds."""

_BANDS = 8
_SHARDS_AT_ONCE = 16
_PAIRS_AT_ONCE = 200_000
# A picture with hardly any edges (a plain page, a clear sky) looks like every other such picture.
_FEWEST_EDGES = 12


@dataclass(frozen=True)
class ImageNames:
    """What the images of (a part of) a set are recognised by, as text.

    Attributes:
        keys: keys of the rows.
        ids: see ``pipelines.dedup.hashes.source_id``.
        sha256, looks: hexadecimal; None where the set was prepared before they were kept.
    """

    keys: list[str]
    ids: list[str]
    sha256: list[str | None]
    looks: list[str | None]


@dataclass(frozen=True)
class SetImages:
    """What the images of a set are recognised by, as numbers; rows in the order of the shards.

    Attributes:
        name: name of the set with its split, ``refcoco/val``.
        url: folder of the set.
        fingerprint: of the set's content.
        keys: keys of the rows, ``(images,)``.
        ids: hashed source ids, ``(images,)`` uint64.
        contents: first 64 bits of the SHA-256, ``(images,)`` uint64; 0 = not known.
        looks: look hashes, ``(images, 2)`` uint64; 0 = not known, or a picture without features.
    """

    name: str
    url: str
    fingerprint: str
    keys: pa.ChunkedArray = field(repr=False)
    ids: np.ndarray = field(repr=False)
    contents: np.ndarray = field(repr=False)
    looks: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Overlap:
    """What one set shares with another.

    Attributes:
        name, other: names of the two sets.
        images: images of the other set.
        shared: images of the first that the other holds too, by ``SAME``.
        examples: pairs of keys.
    """

    name: str
    other: str
    images: int
    shared: dict[str, int]
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def certain(self) -> int:
        """Images that are the same by id or by bytes."""
        return self.shared["same_source_id"] + self.shared["same_bytes"]

    @property
    def finding(self) -> str:
        """What is shared, in words that follow the name of the first set."""
        words = {"same_source_id": "by id", "same_bytes": "by bytes", "same_look": "by look"}
        how = ", ".join(f"{count:,} {words[name]}" for name, count in self.shared.items() if count)
        return f"shares {sum(self.shared.values()):,} images with {self.other} ({how or 'none'})"

    def __str__(self) -> str:
        return f"{self.name} {self.finding}"


@dataclass(frozen=True)
class Duplicates:
    """Images that an earlier image of the same set equals, by bytes or (other bytes) by look, and groups of keys."""

    same_bytes: int
    same_look: int
    examples: tuple[tuple[str, ...], ...] = ()


def image_names(url: str, manifest: Manifest, split: str | None = None) -> Iterator[ImageNames]:
    """Ids and hashes of a set's images, shard by shard; only small columns are read.

    Raises:
        UserError: a shard is missing or damaged.
    """
    columns = ["key", "split", "image.path", "sha256", "look"]
    with ThreadPoolExecutor(8) as pool:  # many small reads, mostly waiting where the set lies in an object store
        tables = pool.map(lambda number: read_columns(url, manifest, number, columns), range(len(manifest.shards)))
        for table in tables:
            if split is not None:
                table = table.filter(pc.equal(table["split"], split))
            # Conversations without pictures have no image.
            table = table.filter(pc.is_valid(table["image"]))
            keys = table["key"].to_pylist()
            paths = [image["path"] for image in table["image"].to_pylist()]
            ids = [source_id(*pair) for pair in zip(keys, paths, strict=True)]
            yield ImageNames(keys, ids, _hashes(table, "sha256"), _hashes(table, "look"))


def _hashes(table: pa.Table, name: str) -> list[str | None]:
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)


def load_images(url: str, split: str | None = None) -> SetImages:
    """Ids and hashes of a prepared set's images.

    Args:
        url: folder of the set.
        split: only this split's images.

    Raises:
        UserError: there is no finished set, it has no such split, or a shard is missing or damaged.
    """
    manifest = open_set(url)
    check_split(url, manifest, split)
    return images_of(url, manifest, split)


def images_of(url: str, manifest: Manifest, split: str | None = None) -> SetImages:
    """As ``load_images``, for a set whose manifest is at hand (and perhaps not written yet)."""
    parts = image_names(url, manifest, split)
    name = f"{manifest.name}/{split or '+'.join(manifest.splits)}"
    return as_numbers(name, url, manifest.fingerprint, parts)


def check_split(url: str, manifest: Manifest, split: str | None) -> None:
    """Refuse a split that a set does not have.

    Raises:
        UserError: the set has no such split.
    """
    if split is not None and split not in manifest.splits:
        raise UserError(f"{url} has no split {split!r}: it holds {', '.join(manifest.splits)}.")


def as_numbers(name: str, url: str, fingerprint: str, parts: Iterable[ImageNames]) -> SetImages:
    """Names of images as numbers, part by part; a set whose hashes were not kept is said so in the log."""
    keys, ids, contents, looks = [], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)], [np.zeros((0, 2), np.uint64)]
    for part in parts:
        keys.append(pa.array(part.keys, pa.string()))
        ids.append(hash_ids(part.ids))
        contents.append(content_words(part.sha256))
        looks.append(look_words(part.looks))
    images = SetImages(
        name,
        url,
        fingerprint,
        pa.chunked_array(keys, pa.string()),
        np.concatenate(ids),
        np.concatenate(contents),
        np.concatenate(looks),
    )
    if len(images) and not images.contents.any():
        logger.warning(
            "%s was prepared before hashes of its images were kept: it is compared by ids only; "
            "prepare it again (--overwrite) to find copies under other names",
            url,
        )
    return images


def hash_ids(ids: Sequence[str]) -> np.ndarray:
    """Source ids as numbers, ``(n,)`` uint64."""
    digests = b"".join(hashlib.blake2b(each.encode(), digest_size=8).digest() for each in ids)
    return np.frombuffer(digests, np.uint64)


def content_words(sha256: Sequence[str | None]) -> np.ndarray:
    """First 64 bits of SHA-256 hashes, ``(n,)`` uint64; 0 for None."""
    return np.frombuffer(bytes.fromhex("".join((each or "0" * 16)[:16] for each in sha256)), np.uint64)


def look_words(looks: Sequence[str | None]) -> np.ndarray:
    """Look hashes as numbers, ``(n, 2)`` uint64; 0 for None and for pictures without features."""
    words = np.frombuffer(bytes.fromhex("".join(each or "0" * 32 for each in looks)), np.uint64).reshape(-1, 2)
    edges = np.bitwise_count(words).sum(axis=1)
    return np.where((edges >= _FEWEST_EDGES)[:, None], words, np.uint64(0))


def compare(ours: SetImages, theirs: SetImages, most_examples: int = 5) -> Overlap:
    """Which of our images their set holds too."""
    partner = _partners(ours.ids, theirs.ids)
    how = np.where(partner >= 0, 0, -1)
    for kind, found in (
        (1, _partners(ours.contents, theirs.contents)),
        (2, near(ours.looks, theirs.looks)),
    ):
        new = (how < 0) & (found >= 0)
        how[new], partner[new] = kind, found[new]
    rows = np.flatnonzero(how >= 0)[:most_examples]
    examples = tuple((ours.keys[int(row)].as_py(), theirs.keys[int(partner[row])].as_py()) for row in rows)
    shared = {name: int((how == kind).sum()) for kind, name in enumerate(SAME)}
    return Overlap(ours.name, theirs.name, len(theirs), shared, examples)


def near(ours: np.ndarray, theirs: np.ndarray, most_bits: int = NEAR_BITS) -> np.ndarray:
    """For each of our looks ``(n, 2)`` the place of a look of theirs ``(m, 2)`` within ``most_bits`` bits, or -1.

    Two looks that differ in fewer bits than there are bands agree in at least one of any ``most_bits + 1`` bands, so
    only pairs that share a band are compared.
    """
    assert most_bits < _BANDS
    found = np.full(len(ours), -1, dtype=np.int64)
    known = np.flatnonzero(theirs.any(axis=1))
    theirs = theirs[known]
    ours_bands, theirs_bands = (looks.view(np.uint16).reshape(-1, _BANDS) for looks in (ours, theirs))
    for band in range(most_bits + 1):
        order = np.argsort(theirs_bands[:, band], kind="stable")
        values = theirs_bands[order, band]
        left = np.flatnonzero((found < 0) & ours.any(axis=1))
        left = left[np.argsort(ours_bands[left, band], kind="stable")]
        # Rows of ours with the same value stand together, and meet the same rows of theirs.
        edges = np.flatnonzero(np.diff(ours_bands[left, band], prepend=-1, append=-1))
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            value = ours_bands[left[first], band]
            start, stop = np.searchsorted(values, value, "left"), np.searchsorted(values, value, "right")
            if start < stop:
                _find_close(ours, left[first:last], theirs[order[start:stop]], order[start:stop], most_bits, found)
    return np.where(found >= 0, known[found], -1) if len(known) else found


def _find_close(ours: np.ndarray, rows: np.ndarray, theirs: np.ndarray, places: np.ndarray, bits: int, found) -> None:
    """Enter the place of a close look for some of our rows, block by block."""
    at_once = max(1, _PAIRS_AT_ONCE // len(theirs))
    for begin in range(0, len(rows), at_once):
        part = rows[begin : begin + at_once]
        apart = np.bitwise_count(ours[part, 0, None] ^ theirs[None, :, 0])
        apart += np.bitwise_count(ours[part, 1, None] ^ theirs[None, :, 1])
        nearest = apart.argmin(axis=1)
        close = apart[np.arange(len(part)), nearest] <= bits
        found[part[close]] = places[nearest[close]]


def duplicates(images: SetImages, most_examples: int = 8) -> Duplicates:
    """Images of a set that have the bytes, or exactly the look, of an earlier one."""
    later_bytes = _repeats(images.contents)
    looks = np.ascontiguousarray(images.looks).view([("a", np.uint64), ("b", np.uint64)]).reshape(-1)
    later_look = _repeats(looks) & images.looks.any(axis=1) & ~later_bytes
    examples: list[tuple[str, ...]] = []
    for column, later in ((images.contents, later_bytes), (looks, later_look)):
        for value in dict.fromkeys(column[np.flatnonzero(later)[:1000]].tolist()):
            if len(examples) == most_examples:
                break
            same = np.flatnonzero(column == np.array(value, dtype=column.dtype))[:4]
            examples.append(tuple(images.keys[int(row)].as_py() for row in same))
    return Duplicates(int(later_bytes.sum()), int(later_look.sum()), tuple(examples))


def _partners(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """For each of our values the place of an equal one of theirs, or -1; zeros equal nothing."""
    if not len(theirs):
        return np.full(len(ours), -1, dtype=np.int64)
    order = np.argsort(theirs, kind="stable")
    place = order[np.minimum(np.searchsorted(theirs[order], ours), len(theirs) - 1)]
    return np.where((theirs[place] == ours) & (ours != 0), place, -1)


def _repeats(values: np.ndarray) -> np.ndarray:
    """Which values an earlier place holds too, ``(n,)`` bool; zeros never."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return ~first & (values != np.zeros(1, values.dtype))
