"""The plan of a data set: which image goes to which shard, and everything that a shard's task needs, laid out on disk.

Images are sorted by key and cut into shards; where one ends depends on the images' sizes alone, never on how many tasks
will run. What belongs to an image is sent to a file of its shard, in the order of the source, through a bounded buffer.
"""

import gzip
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.filesize import decimal

from padt.data.image import ResizePolicy
from padt.errors import ImageError, UserError
from pipelines.images.locate import PlannedImage
from pipelines.io.storage import Folder
from pipelines.prepare.rows import piece_ids
from pipelines.sources.base import ImageEntry, Piece, Reject, Source

WORK = ".work"
PLAN_NAME = f"{WORK}/plan.json"
_BUFFER_BYTES = 128 * 2**20
_UNKNOWN_IMAGE_BYTES = 160_000
_TEXT_BYTES = 4096


@dataclass
class ShardGroup:
    """Everything that one shard is made from.

    Attributes:
        images: the shard's images in the order of their keys.
        pieces: objects, references and captions by image id, in the order of the source.
        grids: ``(grid_h, grid_w)`` by ``(height, width)``, for every size that the images may turn out to have.
    """

    images: list[PlannedImage]
    pieces: dict[str, list[Piece]]
    grids: dict[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class SetPlan:
    """The plan, as ``plan.json`` keeps it for a rerun.

    Attributes:
        hash: of the sources and options.
        shards: number of shards.
        images, bytes: images to prepare and their size on disk; ``missing`` of them were not found.
        input: what the source files hold, by kind.
        categories: ``(id, name)`` in the order of the source.
        sources: the source files, as the manifest lists them.
        rejects: what belongs to no shard, by ``"KIND REASON"``.
        repairs: what was put right while planning.
        notes: what looked wrong while planning, as ``pipelines.dataset.losses.Notes`` gathers it.
    """

    hash: str
    shards: int
    images: int
    missing: int
    bytes: int
    input: dict[str, int]
    categories: list[tuple[int, str]]
    sources: list[dict[str, Any]]
    rejects: dict[str, int]
    repairs: dict[str, int]
    notes: dict[str, list[Any]]


def cut_shards(
    images: Sequence[PlannedImage], shard_bytes: int, rows_per_shard: int | None, copy_images: bool
) -> list[list[PlannedImage]]:
    """Cut images, already in order, into shards.

    A shard ends before its images would exceed ``shard_bytes``, or after ``rows_per_shard`` images where that is given.
    Linked images count with a few kilobytes each, as do conversations without pictures: what is said about them.
    """
    shards: list[list[PlannedImage]] = [[]]
    held = 0
    for image in images:
        size = (_UNKNOWN_IMAGE_BYTES if image.bytes is None else image.bytes or _TEXT_BYTES) if copy_images else 4096
        full = len(shards[-1]) >= rows_per_shard if rows_per_shard else held + size > shard_bytes
        if shards[-1] and full:
            shards.append([])
            held = 0
        shards[-1].append(image)
        held += size
    return shards


def write_groups(
    folder: Folder,
    shards: Sequence[Sequence[PlannedImage]],
    source: Source,
    policy: ResizePolicy,
    rejected_images: Collection[str] = (),
    ambiguous: Mapping[str, str] = MappingProxyType({}),
    buffer_bytes: int = _BUFFER_BYTES,
    on_piece: Callable[[int], None] | None = None,
    needed: int = 0,
) -> tuple[list[Reject], Counter[str], Counter[str]]:
    """Send every piece of a source to the group file of its shard.

    Args:
        folder: folder of the data set; groups go below its ``.work``.
        shards: the plan.
        source: read once more, piece by piece.
        policy: gives the grids.
        rejected_images: ids of images that are listed but were rejected before.
        ambiguous: what to say of the ids of images that several files have.
        buffer_bytes: memory for pieces before they are moved to temporary files.
        on_piece: called with the number of pieces so far, every ten thousand.
        needed: bytes of the source's files: about what the temporary files may take, for the message of a full disk.

    Returns:
        Rejects that belong to no shard, the number of pieces read by kind (rejects included), and what was put right.
    """
    shard_of = {image.entry.image_id: number for number, shard in enumerate(shards) for image in shard}
    strays = _Strays(shards, rejected_images)
    repairs: Counter[str] = Counter()
    rejects: list[Reject] = []
    counts: Counter[str] = Counter()
    grids = _Grids(policy)
    with tempfile.TemporaryDirectory(prefix="padt-prepare-") as spool:
        spills = _Spills(Path(spool), len(shards), buffer_bytes, needed)
        for number, piece in enumerate(source.pieces(), start=1):
            counts[piece.kind] += 1
            if on_piece is not None and number % 10_000 == 0:
                on_piece(number)
            if isinstance(piece, Piece) and piece.image_id not in shard_of:
                piece = strays.joined(piece)
                repairs["image_id_matched"] += isinstance(piece, Piece)
            if isinstance(piece, Reject):
                rejects.append(piece)
            elif piece.image_id in ambiguous:
                said = ambiguous[piece.image_id]
                rejects.append(Reject(piece.image_id, piece.kind, "image_ambiguous", said, *piece_ids(piece)))
            else:
                spills.add(shard_of[piece.image_id], _piece_line(piece))
        for number, shard in enumerate(shards):
            lines = _group_lines(shard, grids)
            content = b"".join(lines) + spills.take(number)
            # The fastest level: the file is read once and thrown away. No time stamp, so that equal plans are equal.
            folder.write(group_name(number), gzip.compress(content, compresslevel=1, mtime=0))
    return rejects, counts, repairs


class _Strays:
    """Pieces whose image is not planned under the id that they write."""

    def __init__(self, shards: Sequence[Sequence[PlannedImage]], rejected_images: Collection[str]) -> None:
        self._shards = shards
        self._rejected = rejected_images

    def joined(self, piece: Piece) -> Piece | Reject:
        """The piece with the id as its image's entry writes it, where just one id means its number; else its reject."""
        written = self._by_number.get(_number(piece.image_id))
        if written is not None:
            return replace(piece, image_id=written)
        reason, detail = "image_not_listed", ""
        if piece.image_id in self._rejected:
            reason = "image_rejected"
        elif piece.image_id in self._by_name:
            found = self._by_name[piece.image_id]
            detail = f"image_id {piece.image_id} is the file name of an image: write its id, {found}"
        return Reject(piece.image_id, piece.kind, reason, detail, *piece_ids(piece))

    @cached_property
    def _by_number(self) -> dict[str | None, str | None]:
        """Id by the number that it means; None where several ids mean one."""
        found: dict[str | None, str | None] = {None: None}
        for image_id in [image.entry.image_id for shard in self._shards for image in shard]:
            number = _number(image_id)
            found[number] = None if number in found else image_id
        return found

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return {image.entry.file_name: image.entry.image_id for shard in self._shards for image in shard}


def _number(image_id: str) -> str | None:
    """The digits of a whole number, whichever way it is written: ``139``, ``000000000139``, ``139.0``, `` 139``."""
    whole, _, part = image_id.strip().partition(".")
    return (whole.lstrip("0") or "0") if whole.isascii() and whole.isdigit() and not part.strip("0") else None


def read_group(folder: Folder, number: int) -> ShardGroup:
    """The group file of a shard, read back."""
    lines = iter(gzip.decompress(folder.read(group_name(number))).split(b"\n"))
    head = json.loads(next(lines))
    images = [
        PlannedImage(
            ImageEntry(image_id, name, width, height, tuple(names), embedded), tuple(map(tuple, places)), size, missing
        )
        for image_id, name, width, height, names, embedded, places, size, missing in head["images"]
    ]
    pieces: dict[str, list[Piece]] = {image.entry.image_id: [] for image in images}
    # Lines begin with the id as JSON has it, always written in one way: it is found without being read.
    places = {json.dumps(image_id): (image_id, its) for image_id, its in pieces.items()}
    for line in lines:
        if line:
            written, kind, text = line.decode().split("\t", 2)
            image_id, its = places[written]
            its.append(Piece(image_id, kind, text))  # type: ignore[arg-type]
    grids = {(height, width): (grid_h, grid_w) for height, width, grid_h, grid_w in head["grids"]}
    return ShardGroup(images, pieces, grids)


def read_plan(folder: Folder) -> SetPlan | None:
    """The plan of a set that was begun in a folder, or None."""
    try:
        return SetPlan(**json.loads(folder.read(PLAN_NAME)))
    except FileNotFoundError:
        return None


def group_name(number: int) -> str:
    """Name of a shard's group file below the set's folder."""
    return f"{WORK}/groups/{number:05d}.jsonl.gz"


def plan_hash(content: dict[str, Any]) -> str:
    """Hash of everything that decides what a set will hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _Grids:
    """Patch grids by image size. Computed here, once, because the rule's module takes seconds to import."""

    def __init__(self, policy: ResizePolicy) -> None:
        self._policy = policy
        self._known: dict[tuple[int, int], tuple[int, int] | None] = {}

    def of(self, images: Iterable[PlannedImage]) -> list[list[int]]:
        """``[height, width, grid_h, grid_w]`` of every size, upright and turned, sorted."""
        sizes = {(image.entry.height, image.entry.width) for image in images}
        both = sorted({size for h, w in sizes if h is not None and w is not None for size in ((h, w), (w, h))})
        return [[*size, *grid] for size in both if (grid := self._grid(size)) is not None]

    def _grid(self, size: tuple[int, int]) -> tuple[int, int] | None:
        if size not in self._known:
            try:
                self._known[size] = self._policy.grid(*size)
            except ImageError:
                self._known[size] = None
        return self._known[size]


class _Spills:
    """Lines by shard, in order, in bounded memory: what does not fit goes to temporary files."""

    def __init__(self, folder: Path, count: int, buffer_bytes: int, needed: int = 0) -> None:
        self._folder = folder
        self._needed = needed
        self._limit = buffer_bytes
        self._held = 0
        self._buffers: list[list[bytes]] = [[] for _ in range(count)]

    def add(self, number: int, line: bytes) -> None:
        self._buffers[number].append(line)
        self._held += len(line) + 64  # The list entry and the object's header cost memory too.
        if self._held > self._limit:
            self._spill()

    def take(self, number: int) -> bytes:
        path = self._path(number)
        spilled = path.read_bytes() if path.exists() else b""
        content = spilled + b"".join(self._buffers[number])
        self._buffers[number] = []
        path.unlink(missing_ok=True)
        return content

    def _spill(self) -> None:
        for number, lines in enumerate(self._buffers):
            if lines:
                try:
                    with self._path(number).open("ab") as file:
                        file.writelines(lines)
                except OSError as error:
                    raise UserError(
                        f"The temporary folder {self._folder.parent} cannot hold the annotations on their way "
                        f"({error}; they take about {decimal(self._needed)}): make room there, or set TMPDIR to "
                        "another folder."
                    ) from error
                lines.clear()
        self._held = 0

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}"


def _group_lines(shard: Sequence[PlannedImage], grids: _Grids) -> Iterator[bytes]:
    images = []
    for image in shard:
        entry = image.entry
        listed = [entry.image_id, entry.file_name, entry.width, entry.height, entry.more, entry.embedded]
        images.append([*listed, image.places, image.bytes, image.missing])
    yield json.dumps({"images": images, "grids": grids.of(shard)}).encode() + b"\n"


def _piece_line(piece: Piece) -> bytes:
    # Line breaks in JSON are space between tokens (inside text they are escaped), so one line holds one piece.
    text = piece.text.replace("\n", " ").replace("\r", " ")
    return f"{json.dumps(piece.image_id)}\t{piece.kind}\t{text}\n".encode("utf-8", "surrogatepass")
