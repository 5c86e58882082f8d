"""The manifest of a prepared data set: what it holds, how it was made, and its fingerprint.

``manifest.json`` is written last. A folder without it is not a data set.
"""

import hashlib
import json
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from padt.data.image import ResizePolicy
from padt.errors import UserError
from pipelines.dataset.schema import REJECT_KINDS, SCHEMA_VERSION
from pipelines.io.storage import Folder

MANIFEST_NAME = "manifest.json"


class Category(NamedTuple):
    """A class of objects, as its source numbers and names it."""

    id: int
    name: str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardInfo(_Strict):
    """One Parquet file. ``path`` is relative to the set's folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


class SourceFile(_Strict):
    """A file that the set was made from: what it was to its source, and where, as the user gave it."""

    role: str
    path: str
    bytes: int
    sha256: str


class Counts(_Strict):
    """How many things there are. For each kind, ``input`` = kept + ``rejected`` + ``excluded``.

    Attributes:
        rows: rows kept: one for each image, or for each conversation with its images, if any.
        objects: objects kept; ``objects_with_patches`` of them have at least one foreground patch.
        references: sentences kept.
        captions: captions kept.
        conversations: conversations kept; as many of the rows.
        input: what the source files held, by kind (``pipelines.dataset.schema.REJECT_KINDS``).
        rejected: what was rejected, by kind.
        rejects: what was rejected, by reason.
        repairs: what was put right, by repair.
        excluded: what was left out because another set holds its image, by kind; ``Manifest.exclusions`` says which.
    """

    rows: int
    objects: int
    objects_with_patches: int
    references: int
    captions: int
    conversations: int = 0
    input: dict[str, int]
    rejected: dict[str, int]
    rejects: dict[str, int]
    repairs: dict[str, int]
    excluded: dict[str, int] = Field(default_factory=dict)

    def by_kind(self) -> list[tuple[str, int, int, int, int]]:
        """Kind, number in the sources, kept, rejected, excluded; without kinds that the sources know nothing of."""
        kept = {
            "image": self.rows,
            "object": self.objects,
            "reference": self.references,
            "caption": self.captions,
            "conversation": self.conversations,
        }
        return [
            (kind, self.input.get(kind, 0), kept[kind], self.rejected.get(kind, 0), self.excluded.get(kind, 0))
            for kind in REJECT_KINDS
            if kind != "conversation" or self.input.get(kind)
        ]


class ExcludedSet(_Strict):
    """A set whose images were to be left out (``--exclude``).

    Attributes:
        name: name of the set with its split.
        url: where it was.
        fingerprint: of its content.
        images: how many images it names.
        removed: images left out, by reason (``pipelines.dataset.schema.EXCLUSION_REASONS``); each counts for one set.
    """

    name: str
    url: str
    fingerprint: str
    images: int
    removed: dict[str, int] = Field(default_factory=dict)


class ComparedSet(_Strict):
    """A set that was compared with this one when it was made (``--against``), and what the two share.

    Attributes:
        name, url, fingerprint, images: as of ``ExcludedSet``.
        shared: images of this set that the other holds too, by ``pipelines.dedup.overlap.SAME``.
        examples: pairs of keys.
    """

    name: str
    url: str
    fingerprint: str
    images: int
    shared: dict[str, int]
    examples: tuple[tuple[str, str], ...] = ()


class Loss(_Strict):
    """A kind of which a large part was rejected.

    Attributes:
        kind: one of ``pipelines.dataset.schema.REJECT_KINDS``.
        lost: how many were rejected, without what the user wanted left out; ``of`` so many in the sources.
        reasons: number by reason, in order of cause (``pipelines.dataset.rejects.by_cause``).
        example: key, annotation and detail of one with the first reason.
    """

    kind: str
    lost: int
    of: int
    reasons: dict[str, int]
    example: str = ""


class Note(_Strict):
    """Something that looks wrong but was kept as it is.

    Attributes:
        code: one of ``pipelines.dataset.schema.NOTES``.
        count: how often.
        example: where, and what is there.
    """

    code: str
    count: int
    example: str


class ResizeLimits(_Strict):
    """The resize policy, as stored."""

    factor: int
    min_pixels: int
    max_pixels: int


class Manifest(_Strict):
    """A finished data set.

    Attributes:
        schema_version: version of the shards' columns.
        tool_version: version of padt that prepared the set.
        name: the set's name; first part of every key.
        splits: splits in the set; second part of every key.
        images_mode: ``copy``: shards hold the encoded images; ``link``: they hold paths.
        resize_policy: the resize rule under which grids and patches were computed.
        categories: classes, in the order of the source.
        counts: how many things there are.
        statistics: histograms for tables and reports (``classes``, ``objects_per_image``, ``patches_per_object``).
        sources: the files that the set was made from.
        shards: the Parquet files, in order.
        exclusions: sets whose images were left out, with counts.
        compared: sets that this one was compared with, and what they share.
        duplicates: groups of keys whose images are the same, a few of them.
        losses: kinds of which a large part was rejected.
        notes: what looks wrong but was kept.
        plan: hash of the sources and options; a rerun with the same ones finds the set finished.
        fingerprint: hash of the content; equal for equal sets wherever they lie.
    """

    schema_version: int
    tool_version: str
    name: str
    splits: tuple[str, ...]
    images_mode: Literal["copy", "link"]
    resize_policy: ResizeLimits
    categories: tuple[Category, ...]
    counts: Counts
    statistics: dict[str, dict[str, int]] = Field(default_factory=dict)
    sources: tuple[SourceFile, ...]
    shards: tuple[ShardInfo, ...]
    exclusions: tuple[ExcludedSet, ...] = ()
    compared: tuple[ComparedSet, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    losses: tuple[Loss, ...] = ()
    notes: tuple[Note, ...] = ()
    plan: str
    fingerprint: str

    @field_serializer("categories")
    def _categories_by_name(self, categories: tuple[Category, ...]) -> list[dict[str, Any]]:
        return [category._asdict() for category in categories]

    @property
    def policy(self) -> ResizePolicy:
        """The resize rule under which grids and patches were computed."""
        return ResizePolicy(**self.resize_policy.model_dump())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the categories, in order, each once."""
        return tuple(dict.fromkeys(category.name for category in self.categories))

    @classmethod
    def read(cls, url: str) -> "Manifest":
        """Read the manifest of the data set at ``url``.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        folder = Folder(url)
        try:
            content = json.loads(folder.read(MANIFEST_NAME))
        except FileNotFoundError as error:
            if not folder.exists():
                raise UserError(f"{url} does not exist: check the path of the data set.") from error
            raise UserError(
                f"{url} has no {MANIFEST_NAME}: the folder is not a prepared data set or its preparation did not "
                "finish; run `padt prepare ...` again."
            ) from error
        except ValueError as error:
            raise UserError(f"{url}/{MANIFEST_NAME} is not JSON ({error}): run `padt prepare ...` again.") from error
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{url} has schema version {version}, this padt reads version {SCHEMA_VERSION}: run `padt prepare ...` "
                "again with this version."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"{url}/{MANIFEST_NAME} is damaged ({error}): run `padt prepare ...` again.") from error

    def write(self, url: str) -> None:
        """Write the manifest into the folder at ``url``: the set is there from now on."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        Folder(url).write(MANIFEST_NAME, (text + "\n").encode())


def open_set(url: str) -> Manifest:
    """Manifest of the finished data set at ``url``.

    Raises:
        UserError: there is no finished data set, or it has another schema version.
    """
    return Manifest.read(url)


def fingerprint(
    policy: ResizePolicy, categories: tuple[Category, ...], shards: tuple[ShardInfo, ...], name: str
) -> str:
    """Hash of a set's content: schema, resize policy, categories and shards, wherever the set lies."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "policy": policy.to_dict(),
        "categories": [list(category) for category in categories],
        "shards": [[shard.rows, shard.sha256] for shard in shards],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
