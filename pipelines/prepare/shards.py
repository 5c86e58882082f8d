"""One shard: an idempotent task that writes one Parquet file and says so when it is complete.

A shard's bytes depend on its group file and the images alone, so a rerun, another parallelism or a killed worker gives
the same file.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from padt.errors import ImageError
from pipelines.dataset.losses import Notes
from pipelines.dataset.schema import REJECT_SCHEMA, SHARD_SCHEMA, leaf_columns
from pipelines.dedup.exclude import Exclusion
from pipelines.dedup.hashes import content_hash, source_id
from pipelines.images.contents import ImagesAhead, measure
from pipelines.io.storage import Folder
from pipelines.prepare.plan import WORK, read_group
from pipelines.prepare.rows import RowContext, build_row, embedded_pictures
from pipelines.sources.base import Piece, Reject

ROW_GROUP_ROWS = 8
"""Images of a row group: what a training reader reads at once to get one row."""

_IMAGE_BYTES = "image.bytes"
_REPEATED = ("source", "split", "objects.list.element.label")
_LARGE = (_IMAGE_BYTES, "image.path", "objects.list.element.patches", "objects.list.element.rle.counts")


@dataclass(frozen=True)
class ShardTask:
    """A shard to be written.

    Attributes:
        out: folder of the data set (URL).
        number: of the shard.
        count: of all shards.
        context: what all rows share.
        exclusion: images that are left out.
    """

    out: str
    number: int
    count: int
    context: RowContext
    exclusion: Exclusion | None = None

    @property
    def path(self) -> str:
        """Path of the shard below the set's folder."""
        return f"shards/{self._stem}.parquet"

    @property
    def rejects_path(self) -> str:
        """Path of the shard's rejects below the set's folder."""
        return f"rejected/{self._stem}.parquet"

    @property
    def excluded_path(self) -> str:
        """Path of the list of the shard's excluded images below the set's folder."""
        return f"excluded/{self._stem}.parquet"

    @property
    def marker(self) -> str:
        """Path of the file that says that the shard is complete."""
        return f"{WORK}/done/{self.number:05d}.json"

    @property
    def _stem(self) -> str:
        return f"shard-{self.number:05d}-of-{self.count:05d}"


@dataclass
class ShardResult:
    """What a finished shard holds.

    Attributes:
        number: of the shard.
        rows, bytes, sha256: of the Parquet file.
        counts: kept things: ``objects``, ``objects_with_patches``, ``references``, ``captions``.
        rejects: rejects by ``"KIND REASON"``.
        repairs: repairs by name.
        notes: what looks wrong, as ``pipelines.dataset.losses.Notes`` gathers it.
        signs: what the boxes of the set are judged by, see ``pipelines.prepare.signs``.
        examples: key of the first image with a repair or sign, by its name.
        statistics: histograms: ``classes``, ``objects_per_image``, ``patches_per_object``.
        rejects_bytes: size of the file of rejects; None where there is none.
        excluded: what was left out with excluded images, by kind.
        exclusions: excluded images by ``"NUMBER REASON"``: place of the set in ``Exclusion.sets``, and why.
        excluded_bytes: size of the list of excluded images; None where there is none.
    """

    number: int
    rows: int = 0
    bytes: int = 0
    sha256: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    signs: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    statistics: dict[str, Counter[str]] = field(default_factory=dict)
    rejects_bytes: int | None = None
    notes: dict[str, list[Any]] = field(default_factory=dict)
    excluded: Counter[str] = field(default_factory=Counter)
    exclusions: Counter[str] = field(default_factory=Counter)
    excluded_bytes: int | None = None

    def to_json(self) -> str:
        """The result as text, as the marker stores it and as Ray passes it on."""
        return json.dumps(vars(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ShardResult":
        """The result, read back."""
        content = json.loads(text)
        for name in ("counts", "rejects", "repairs", "signs", "excluded", "exclusions"):
            content[name] = Counter(content[name])
        content["statistics"] = {name: Counter(values) for name, values in content["statistics"].items()}
        return cls(**content)


def finished(task: ShardTask) -> ShardResult | None:
    """The result of a shard that is already complete, else None."""
    folder = Folder(task.out)
    try:
        result = ShardResult.from_json(folder.read(task.marker).decode())
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    files = [(task.path, result.bytes), (task.rejects_path, result.rejects_bytes)]
    files.append((task.excluded_path, result.excluded_bytes))
    whole = all(size is None or folder.size(path) == size for path, size in files)
    return result if whole else None


def write_shard(task: ShardTask) -> ShardResult:
    """Write one shard, its rejects and, last, the marker that it is complete."""
    folder = Folder(task.out)
    result = ShardResult(task.number, statistics={name: Counter() for name in _STATISTICS})
    rejects: list[Reject] = []
    excluded: list[Reject] = []
    with folder.writing(task.path) as file:
        with _writer(file) as writer:
            for rows in _batches(_rows(folder, task, result, rejects, excluded)):
                writer.write_table(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), row_group_size=ROW_GROUP_ROWS)
        result.bytes, result.sha256 = file.bytes, file.sha256
    result.rejects.update(f"{reject.kind} {reject.reason}" for reject in rejects)
    if rejects:
        result.rejects_bytes = write_rejects(folder, task.rejects_path, rejects, task.context)
    if excluded:
        result.excluded_bytes = write_rejects(folder, task.excluded_path, excluded, task.context)
    folder.write(task.marker, result.to_json().encode())
    return result


def write_rejects(folder: Folder, path: str, rejects: Iterable[Reject], context: RowContext) -> int:
    """Write rejects as a Parquet file and return its size in bytes."""
    rows = [
        {
            "key": context.key(reject.image_id),
            "kind": reject.kind,
            "ann_id": reject.ann_id,
            "item_id": reject.item_id,
            "reason": reject.reason,
            "detail": reject.detail.encode("utf-8", "replace").decode("utf-8") or None,
        }
        for reject in rejects
    ]
    with folder.writing(path) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=REJECT_SCHEMA), pa.PythonFile(file, "w"), compression="zstd")
    return file.bytes


def _rows(
    folder: Folder, task: ShardTask, result: ShardResult, rejects: list[Reject], excluded: list[Reject]
) -> Iterator[dict[str, Any]]:
    group = read_group(folder, task.number)
    unwanted, notes = task.exclusion, Notes(result.notes)
    images = ImagesAhead(place for image in group.images for place in image.places)
    for image in group.images:
        image_id, pieces = image.entry.image_id, group.pieces.pop(image.entry.image_id)
        if unwanted is not None:
            key, names = task.context.key(image_id), [image.entry.file_name, *image.entry.more]
            owners = [owner for name in names if (owner := unwanted.by_id(source_id(key, name))) is not None]
            if owners:
                excluded.append(_excluded(image_id, pieces, "same_source_id", owners[0], unwanted, result))
                continue
        content: bytes | ImageError | None = None
        url, more = "", []
        try:
            if image.missing:
                raise ImageError("image_missing", image.missing)
            if image.places:
                (url, content), *more = [images.read(place) for place in image.places]
        except ImageError as error:
            content = error
        if image.entry.embedded:
            content, *others = embedded_pictures(pieces)
            more = [("", each) for each in others]
        built = build_row(image.entry, url, content, pieces, task.context, group.grids, more)
        if unwanted is not None and built.row is not None:
            marks = [(built.row["sha256"], built.row["look"])]
            marks += [(content_hash(each), measure(each)[2]) for _, each in more]
            found = [reason for mark in marks if (reason := unwanted.by_content(*mark)) is not None]
            if found:
                excluded.append(_excluded(image_id, pieces, *found[0], unwanted, result))
                continue
        rejects.extend(built.rejects)
        for name, count in [*built.repairs.items(), *built.signs.items()]:
            if count and name not in result.examples:
                result.examples[name] = task.context.key(image_id)
        result.repairs.update({name: count for name, count in built.repairs.items() if count})
        notes.merge(built.notes.found)
        result.signs.update(built.signs)
        if built.row is not None:
            _count(built.row, result)
            yield built.row


def _excluded(
    image_id: str, pieces: Sequence[Piece], reason: str, owner: int, unwanted: Exclusion, result: ShardResult
) -> Reject:
    result.excluded.update(["image", *(piece.kind for piece in pieces)])
    result.exclusions[f"{owner} {reason}"] += 1
    return Reject(image_id, "image", reason, f"{unwanted.sets[owner].name} ({unwanted.sets[owner].url})")


_STATISTICS = ("classes", "object_sides", "image_sides", "objects_per_image", "patches_per_object")
_IMAGE_SIDE_STEP = 128


def _count(row: dict[str, Any], result: ShardResult) -> None:
    patches = [int.from_bytes(item["patches"], "little").bit_count() for item in row["objects"]]
    result.rows += 1
    result.counts["objects"] += len(patches)
    result.counts["objects_with_patches"] += sum(count > 0 for count in patches)
    result.counts["references"] += len(row["references"])
    result.counts["captions"] += len(row["captions"])
    result.counts["conversations"] += bool(row["messages"])
    result.statistics["classes"].update(item["label"] for item in row["objects"])
    if row["width"]:
        result.statistics["image_sides"][
            str(-(-max(row["width"], row["height"]) // _IMAGE_SIDE_STEP) * _IMAGE_SIDE_STEP)
        ] += 1
    result.statistics["object_sides"].update(_side(item["box"], row) for item in row["objects"])
    result.statistics["objects_per_image"].update([str(len(patches))])
    result.statistics["patches_per_object"].update(str(count) for count in patches)


def _side(box: Sequence[float], row: dict[str, Any]) -> str:
    """Square root of a box's area in pixels, rounded up to a power of two."""
    side = math.sqrt((box[2] - box[0]) * row["width"] * (box[3] - box[1]) * row["height"])
    return str(1 << max(0, math.ceil(side) - 1).bit_length())


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROW_GROUP_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _writer(file: Any) -> pq.ParquetWriter:
    columns = leaf_columns(SHARD_SCHEMA)
    return pq.ParquetWriter(
        pa.PythonFile(file, "w"),
        SHARD_SCHEMA,
        # Encoded images do not get smaller, and uncompressed they can be read without a copy.
        compression={column: "none" if column == _IMAGE_BYTES else "zstd" for column in columns},
        use_dictionary=list(_REPEATED),
        write_statistics=[column for column in columns if column not in _LARGE],
        version="2.6",
    )
