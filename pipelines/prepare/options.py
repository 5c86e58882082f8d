"""What a preparation is asked to do, and what it says about itself on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from padt.data.image import ResizePolicy
from padt.errors import UserError
from pipelines.sources.base import Source
from pipelines.sources.coco import CocoSource
from pipelines.sources.messages import MessagesSource
from pipelines.sources.objects365 import Objects365Source
from pipelines.sources.refcoco import published_name
from pipelines.sources.released import ReleasedSource

SourceName = Literal["coco", "objects365", "refcoco", "ric", "released", "messages"]
ImagesMode = Literal["copy", "link"]
DEFAULT_SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, and how. Everything that is a place may be a local path or a URL that fsspec opens.

    Attributes:
        annotations: instances JSON; of ``released`` the JSON lines; of ``messages`` the conversations.
        images: folder of the images (or a zip or tar file of them), or several.
        out: folder of the data set to make.
        source: ``coco``; ``objects365``: boxes only; ``refcoco``: needs ``references``, takes the references of
            ``split`` and the images that they speak of; ``ric``: captions are in the annotation file unless
            ``captions`` names another; ``released``: the JSON lines of PaDT's authors; ``messages``: conversations
            with any number of pictures (then ``images`` may be empty).
        references: RefCOCO pickle of the same images.
        captions: captions JSON of the same images, COCO's or RIC's.
        name: name of the set, first part of every key; if not given the source's name (of ``refcoco`` the name of the
            folder that its references come in: ``refcoco``, ``refcoco+`` or ``refcocog``).
        split: split of the set, second part of every key.
        reference_split: take this split of the references only (``refcoco``: ``split``).
        drop_fakes: of ``objects365``: leave out what is marked as drawn or printed.
        policy: resize rule that patches are computed for; the training and the model must have the same.
        images_mode: ``copy`` the encoded images into the shards, or ``link`` to them.
        shard_bytes: most bytes of images in a shard.
        rows_per_shard: images of a shard, in place of ``shard_bytes``.
        exclude: prepared sets (``SET`` or ``SET:split``) or lists of ``padt exclude-list`` whose images are left out.
        against: prepared sets (``SET`` or ``SET:split``) that the report compares the set with.
        num_cpus: most shards at work at once; None takes what Ray has.
        overwrite: remove what is in ``out`` first.
    """

    annotations: str
    images: str | Sequence[str]
    out: str
    source: SourceName = "coco"
    references: str | None = None
    captions: str | None = None
    name: str | None = None
    split: str = "train"
    reference_split: str | None = None
    drop_fakes: bool = False
    policy: ResizePolicy = field(default_factory=ResizePolicy)
    images_mode: ImagesMode = "copy"
    shard_bytes: int = DEFAULT_SHARD_BYTES
    rows_per_shard: int | None = None
    exclude: Sequence[str] = ()
    against: Sequence[str] = ()
    num_cpus: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.source not in get_args(SourceName):
            raise UserError(f"Source {self.source!r} is unknown: use one of {', '.join(get_args(SourceName))}.")
        if self.images_mode not in get_args(ImagesMode):
            raise UserError(f"images_mode {self.images_mode!r} is unknown: use copy or link.")
        if self.source == "refcoco" and self.references is None:
            raise UserError("Source 'refcoco' needs the file of references, refs(...).p: give --references.")
        for part, value in (("name", self.set_name), ("split", self.split)):
            if not value or "/" in value or value != value.strip():
                raise UserError(f"{part} {value!r} cannot be part of a key: give a name without '/' and outer spaces.")
        for part, number in (
            ("shard_bytes", self.shard_bytes),
            ("rows_per_shard", self.rows_per_shard),
            ("num_cpus", self.num_cpus),
        ):
            if number is not None and number < 1:
                raise UserError(f"{part} is {number}: give at least 1.")

    @property
    def set_name(self) -> str:
        """Name of the set."""
        if self.name is not None:
            return self.name
        return published_name(self.references) if self.source == "refcoco" and self.references else self.source

    @property
    def image_folders(self) -> tuple[str, ...]:
        """The folders of the images."""
        return (self.images,) if isinstance(self.images, str) else tuple(self.images)

    def open_source(self) -> Source:
        """The reader of the source files."""
        if self.source == "objects365":
            return Objects365Source(self.annotations, self.drop_fakes)
        if self.source == "released":
            return ReleasedSource(self.annotations)
        if self.source == "messages":
            return MessagesSource(self.annotations)
        refers = self.source == "refcoco"
        return CocoSource(
            annotations=self.annotations,
            captions=self.annotations if self.source == "ric" and self.captions is None else self.captions,
            references=self.references,
            reference_split=self.split if refers and self.reference_split is None else self.reference_split,
            only_referred=refers,
        )


@dataclass(frozen=True)
class PlanSummary:
    """What is about to be done, for people.

    Attributes:
        out: folder of the set.
        images: images to prepare, and how many of them were not found.
        missing: images whose files were not found.
        pieces: objects, references and captions by kind.
        bytes: bytes of the images.
        shards: number of shards; ``done`` of them are complete from an earlier run.
        seconds: rough estimate of the time on one core.
        free_bytes: free space at the target, where it can be known.
    """

    out: str
    images: int
    missing: int
    pieces: dict[str, int]
    bytes: int
    shards: int
    done: int
    seconds: float
    free_bytes: int | None


@dataclass(frozen=True)
class Progress:
    """How far a preparation is: shards done, those of earlier runs included, and all shards."""

    shards_done: int
    shards: int
