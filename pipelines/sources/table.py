"""The sources that there are, and their options.

A row here is everything that a source needs to be a verb of `padt prepare`, a source of recipes and of
``PrepareOptions``. Readers are imported when they are opened, so that help needs none of their packages.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from padt.errors import UserError, look_up

if TYPE_CHECKING:
    from pipelines.sources.base import Source


def option(text: str, default: Any = MISSING, short: str = "", metavar: str = "", file: bool = False) -> Any:
    """A dataclass field that the command line and recipes offer as an option.

    Args:
        text: what it is, in a sentence.
        default: its value where it is not given; without one it must be.
        short: short form of its flag.
        metavar: what stands for the value in help.
        file: it is the place of a file that is read: its content counts, not its address.
    """
    metadata = {"help": text, "short": short, "metavar": metavar, "file": file}
    return field(default=default, kw_only=default is not MISSING, metadata=metadata)


@dataclass(frozen=True)
class SourceOptions:
    """What to read. Everything that is a place may be a local path or a URL that fsspec opens.

    Raises:
        UserError: the source is unknown (names the nearest), or has no such option, or lacks one that it needs.
    """

    annotations: str = option("Annotations of the source; path or URL.", short="-a", file=True)
    source: str = option("Kind of the files, a name of SOURCES.", "coco")
    split: str = option("Split, second part of every key.", "train")
    references: str | None = option(
        "References, refs(...).p or grefs(...).json; path or URL.", None, short="-r", file=True
    )
    reference_split: str | None = option(
        "Take this split of the references only; refcoco takes --split if not given.", None
    )
    captions: str | None = option(
        "Captions JSON of the same images, COCO's or RIC's, where they are apart; path or URL.", None, file=True
    )
    drop_fakes: bool = option("Leave out objects marked as drawn or printed (isfake).", False)

    def __post_init__(self) -> None:
        kind = self.kind
        for name in OWN_OPTIONS:
            given = getattr(self, name) != self.__dataclass_fields__[name].default
            if given and name not in kind.options:
                takes = f"it takes {', '.join(kind.options)}" if kind.options else "it takes none"
                raise UserError(f"Source {self.source!r} has no option {name} ({takes}): leave it out.")
            if not given and name in kind.required:
                raise UserError(f"Source {self.source!r} needs {name}: give --{name.replace('_', '-')}.")

    @property
    def kind(self) -> "SourceKind":
        """The row of the source."""
        return look_up("Source", self.source, SOURCES)

    def open_source(self) -> "Source":
        """The reader of the source files."""
        return self.kind.reader(self)

    def shaping(self) -> dict[str, Any]:
        """The source's own options that shape what is read, besides the content of its files."""
        return {name: getattr(self, name) for name in self.kind.options if not _is_file(name)}


@dataclass(frozen=True)
class SourceKind:
    """One row.

    Attributes:
        reader: makes the reader from the options.
        about: what the verb does, for help.
        annotations: what ``annotations`` are.
        options: which of ``OWN_OPTIONS`` it takes.
        required: those of them that must be given.
        pictures: whether ``images`` must be given.
        set_name: name of the set where none is given; the source's own if None.
        examples: command lines after `padt prepare`.
    """

    reader: Callable[[SourceOptions], "Source"]
    about: str
    annotations: str
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    pictures: bool = True
    set_name: Callable[[SourceOptions], str] | None = None
    examples: tuple[str, ...] = ()


def _coco(options: SourceOptions) -> "Source":
    from pipelines.sources.coco import CocoSource

    return CocoSource(options.annotations, options.captions, options.references, options.reference_split)


def _objects365(options: SourceOptions) -> "Source":
    from pipelines.sources.objects365 import Objects365Source

    return Objects365Source(options.annotations, options.drop_fakes)


def _refcoco(options: SourceOptions) -> "Source":
    from pipelines.sources.coco import CocoSource

    split = options.reference_split or options.split
    return CocoSource(options.annotations, options.captions, options.references, split, only_referred=True)


def _refcoco_name(options: SourceOptions) -> str:
    from pipelines.sources.refcoco import published_name

    return published_name(options.references or "")


def _ric(options: SourceOptions) -> "Source":
    from pipelines.sources.coco import CocoSource

    return CocoSource(options.annotations, captions=options.captions or options.annotations)


def _released(options: SourceOptions) -> "Source":
    from pipelines.sources.released import ReleasedSource

    return ReleasedSource(options.annotations)


def _messages(options: SourceOptions) -> "Source":
    from pipelines.sources.messages import MessagesSource

    return MessagesSource(options.annotations)


_INSTANCES = "Instances JSON of COCO layout; path or URL."

SOURCES = {
    "coco": SourceKind(
        reader=_coco,
        about="Prepare COCO, or your own export in its format: boxes, masks (polygons, run lengths), crowds, captions.",
        annotations=_INSTANCES,
        options=("captions", "references", "reference_split"),
        examples=(
            "coco -a annotations/instances_val2017.json -i val2017 -o runs/coco-val --split val",
            "coco -a export/_annotations.coco.json -i export -o runs/mine --name mine",
            "coco -a instances_train2017.json -i train2017 -o runs/coco-train --exclude refcoco-eval.json",
            "coco -a s3://bucket/instances.json -i s3://bucket/val2017.zip -o s3://bucket/coco-val",
        ),
    ),
    "objects365": SourceKind(
        reader=_objects365,
        about="Prepare Objects365: boxes without masks; names, sizes and places are repaired as its files need it.",
        annotations=_INSTANCES,
        options=("drop_fakes",),
        examples=(
            "objects365 -a zhiyuan_objv2_train.json -i train -o runs/objects365",
            "objects365 -a zhiyuan_objv2_val.json -i val --drop-fakes --split val -o runs/objects365-val",
        ),
    ),
    "refcoco": SourceKind(
        reader=_refcoco,
        about="Prepare RefCOCO, RefCOCO+ or RefCOCOg: the sentences of one split and the images that they speak of.",
        annotations=_INSTANCES,
        options=("references", "reference_split", "captions"),
        required=("references",),
        set_name=_refcoco_name,
        examples=(
            "refcoco -a refcoco/instances.json -r 'refcoco/refs(unc).p' -i train2014 --split val -o runs/rc-val",
            "refcoco -a refcocog/instances.json -r 'refcocog/refs(umd).p' -i train2017 --split test -o runs/rg",
        ),
    ),
    "ric": SourceKind(
        reader=_ric,
        about="Prepare grounded captions (RIC): COCO instances whose images bear captions with object tags.",
        annotations=_INSTANCES,
        options=("captions",),
        examples=("ric -a ric_instances_val2017.json -i val2017 -o runs/ric-val --split val",),
    ),
    "released": SourceKind(
        reader=_released,
        about="Prepare the JSON lines that PaDT's authors published: conversations, answer templates and objects.",
        annotations="JSON lines; path or URL.",
        examples=("released -a rec_train.jsonl -i train2014 -o runs/released-rec",),
    ),
    "messages": SourceKind(
        reader=_messages,
        about="Prepare conversations, as LLaVA writes them or as chat APIs do: text with any number of pictures.",
        annotations="JSON array or JSON lines of conversations; path or URL.",
        pictures=False,
        examples=(
            "messages -a llava_instruct_150k.json -i train2017 -o runs/llava --name llava",
            "messages -a chat.jsonl -o runs/chat",
        ),
    ),
}
"""All sources by name, in the order of help."""

OWN_OPTIONS = tuple(f.name for f in fields(SourceOptions) if f.name not in ("annotations", "source", "split"))
"""Options of ``SourceOptions`` that only some sources have."""


def _is_file(name: str) -> bool:
    return bool(SourceOptions.__dataclass_fields__[name].metadata["file"])
