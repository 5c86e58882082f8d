"""What a preparation is asked to do, and what it says about itself on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from padt.errors import UserError, look_up
from pipelines.sources.table import SourceOptions, option

if TYPE_CHECKING:
    from padt.data.image import ResizePolicy

ImagesMode = Literal["copy", "link"]


@dataclass(frozen=True)
class PrepareOptions(SourceOptions):
    """What to prepare, and how: the options of `padt prepare` and of a recipe's stage ``prepare``.

    What each is stands with it. Everything that is a place may be a local path or a URL that fsspec opens.

    Raises:
        UserError: an option is out of range, unknown to the source, or missing.
    """

    images: str | Sequence[str] = option(
        "Folder of the pictures, or a zip or tar of them; path or URL; repeatable.", short="-i"
    )
    out: str = option("Folder of the prepared set; any URL that fsspec opens.", short="-o")
    name: str | None = option(
        "Name of the set, first part of every key; the source's if not given, refcoco: of its references' folder.", None
    )
    min_pixels: int | None = option("Pictures with fewer pixels are enlarged for the model; 3,136 if not given.", None)
    max_pixels: int | None = option("Pictures with more are shrunk for the model; 12,845,056 if not given.", None)
    images_mode: ImagesMode = option("Copy the pictures' bytes into the shards, or link to their places.", "copy")
    rows_per_shard: int | None = option("Images of a shard, in place of --shard-mb.", None)
    shard_mb: int = option("Most megabytes of pictures in a shard.", 256)
    exclude: Sequence[str] = option(
        "Leave out images that this prepared set, or list of `padt exclude-list`, holds; repeatable.",
        (),
        metavar="SET[:SPLIT]",
    )
    against: Sequence[str] = option(
        "Say in the report what the set shares with this prepared one; repeatable.", (), metavar="SET[:SPLIT]"
    )
    num_cpus: int | None = option("Most shards at work at once; one a core if not given.", None)
    overwrite: bool = option("Replace what is in OUT.", False)
    allow_empty: bool = option("Make the set even where no row is left.", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        look_up("images_mode", self.images_mode, dict.fromkeys(get_args(ImagesMode)))
        if self.kind.pictures and not self.image_folders:
            raise UserError(f"Source {self.source!r} needs the folder of its pictures: give --images.")
        for part, value in (("name", self.set_name), ("split", self.split)):
            if not value or "/" in value or value != value.strip():
                raise UserError(f"{part} {value!r} cannot be part of a key: give a name without '/' and outer spaces.")
        for part in ("min_pixels", "max_pixels", "shard_mb", "rows_per_shard", "num_cpus"):
            number = getattr(self, part)
            if number is not None and number < 1:
                raise UserError(f"{part} is {number}: give at least 1.")

    @property
    def set_name(self) -> str:
        """Name of the set."""
        if self.name is not None:
            return self.name
        return self.source if self.kind.set_name is None else self.kind.set_name(self)

    @property
    def image_folders(self) -> tuple[str, ...]:
        """The folders of the images."""
        return (self.images,) if isinstance(self.images, str) else tuple(self.images)

    @property
    def policy(self) -> "ResizePolicy":
        """Resize rule that patches are computed for; the training and the model must have the same."""
        from padt.data.image import ResizePolicy

        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return ResizePolicy(**{name: limit for name, limit in limits.items() if limit is not None})

    @property
    def shard_bytes(self) -> int:
        """Most bytes of images in a shard."""
        return self.shard_mb * 2**20


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
