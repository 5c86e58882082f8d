"""Preparation: raw annotations and images to a data set of shards.

``prepare`` plans, runs one task for each shard that is not yet complete (on Ray Data, or in this process), and finishes
with the report and, last of all, the manifest. Killed at any moment, the same call does only what is left.
"""

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import padt
from padt.errors import UserError
from padt.image import ResizePolicy
from pipelines.images import ImageFolders
from pipelines.manifest import (
    MANIFEST_NAME,
    Category,
    Counts,
    Manifest,
    ResizeLimits,
    ShardInfo,
    SourceFile,
    fingerprint,
    open_set,
)
from pipelines.plan import PLAN_NAME, WORK, cut_shards, locate_images, plan_hash, write_groups
from pipelines.report import REPORT_NAME, write_report
from pipelines.rows import RowContext
from pipelines.schema import REJECT_KINDS, SCHEMA_VERSION
from pipelines.shards import ShardResult, ShardTask, finished, write_rejects, write_shard
from pipelines.sources.base import Source
from pipelines.sources.coco import CocoSource
from pipelines.storage import Folder, hash_file, is_local

log = logging.getLogger(__name__)

SourceName = Literal["coco", "refcoco", "ric"]
ImagesMode = Literal["copy", "link"]
DEFAULT_SHARD_BYTES = 256 * 2**20
# Images that one core checks and writes in a second, for the first estimate of the time.
_IMAGES_PER_SECOND = 150
_UNPLACED = "rejected/unplaced.parquet"


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, and how. Everything that is a place may be a local path or a URL that fsspec opens.

    Attributes:
        annotations: instances JSON.
        images: folder of the images, or several.
        out: folder of the data set to make.
        source: ``coco``; ``refcoco``: needs ``references``, takes the references of ``split`` and the images that they
            speak of; ``ric``: captions are in the annotation file unless ``captions`` names another.
        references: RefCOCO pickle of the same images.
        captions: captions JSON of the same images, COCO's or RIC's.
        name: name of the set, first part of every key; the source's name if not given.
        split: split of the set, second part of every key.
        reference_split: take this split of the references only (``refcoco``: ``split``).
        policy: resize rule that patches are computed for; the training and the model must have the same.
        images_mode: ``copy`` the encoded images into the shards, or ``link`` to them.
        shard_bytes: most bytes of images in a shard.
        rows_per_shard: images of a shard, in place of ``shard_bytes``.
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
    policy: ResizePolicy = field(default_factory=ResizePolicy)
    images_mode: ImagesMode = "copy"
    shard_bytes: int = DEFAULT_SHARD_BYTES
    rows_per_shard: int | None = None
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
        return self.source if self.name is None else self.name

    @property
    def image_folders(self) -> tuple[str, ...]:
        """The folders of the images."""
        return (self.images,) if isinstance(self.images, str) else tuple(self.images)

    def open_source(self) -> Source:
        """The reader of the source files."""
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
    """How far a preparation is: shards and rows done (those of earlier runs included), and seconds since the start."""

    shards_done: int
    shards: int
    rows_done: int
    rows: int
    seconds: float


Execute = Callable[[Sequence[ShardTask]], Iterable[ShardResult]]


@dataclass(frozen=True)
class _Plan:
    """The plan, as ``plan.json`` keeps it for a rerun."""

    hash: str
    shards: int
    images: int
    missing: int
    bytes: int
    input: dict[str, int]
    categories: list[tuple[int, str]]
    sources: list[dict[str, Any]]
    rejected: dict[str, int]
    rejects: dict[str, int]
    repairs: dict[str, int]


def prepare(
    options: PrepareOptions,
    *,
    execute: Execute | None = None,
    on_plan: Callable[[PlanSummary], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Prepare a data set.

    A finished set with the same sources and options is returned as it is; one that was begun is completed.

    Args:
        options: what to prepare, and how.
        execute: runs the shards' tasks and yields results in any order; Ray Data if not given.
        on_plan: called once before the work starts.
        on_progress: called after each shard.

    Raises:
        UserError: a source file is missing, damaged or not of its format; no image is where it should be; ``out`` holds
            something else; there is no room.
    """
    folder, source = Folder(options.out), options.open_source()
    sources = [
        SourceFile(role=role, path=url, bytes=size, sha256=digest)  # type: ignore[arg-type]
        for role, url in source.files()
        for size, digest in [hash_file(url, f"The file of {role}")]
    ]
    wanted = _hash(options, sources)
    done = _finished_set(options, folder, wanted)
    if done is not None:
        return done
    plan = _begun_plan(options, folder, wanted) or _make_plan(options, folder, source, sources, wanted)
    context = RowContext(
        name=options.set_name,
        split=options.split,
        categories=dict(plan.categories),
        policy=options.policy,
        copy_images=options.images_mode == "copy",
    )
    tasks = [ShardTask(options.out, number, plan.shards, context) for number in range(plan.shards)]
    results = _run(options, folder, plan, tasks, execute, on_plan, on_progress)
    return _finish(options, folder, plan, tasks, results)


def execute_here(tasks: Sequence[ShardTask]) -> Iterator[ShardResult]:
    """Run the tasks one after the other in this process, without Ray."""
    for task in tasks:
        yield write_shard(task)


def execute_on_ray(tasks: Sequence[ShardTask], num_cpus: int | None = None) -> Iterator[ShardResult]:
    """Run the tasks on Ray Data, one task a shard, and yield results as they come.

    Connects to the cluster of ``RAY_ADDRESS``, or starts Ray on this machine, where the program has not done so.

    Raises:
        UserError: an image or group file could not be read, or the result could not be written.
    """
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
    by_number = {task.number: task for task in tasks}
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"shard": number} for number in by_number], override_num_blocks=len(tasks))

    def work(row: dict[str, Any]) -> dict[str, str]:
        try:
            return {"result": write_shard(by_number[row["shard"]]).to_json(), "error": ""}
        except (UserError, OSError) as error:
            # Ray would wrap it in a page of traceback.
            return {"result": "", "error": str(error)}

    mapped = rows.map(work, concurrency=num_cpus) if num_cpus else rows.map(work)
    for row in mapped.iter_rows():
        if row["error"]:
            raise UserError(f"A shard could not be written: {row['error']}. Mend that and run the command again.")
        yield ShardResult.from_json(row["result"])


def _hash(options: PrepareOptions, sources: Sequence[SourceFile]) -> str:
    return plan_hash(
        {
            "schema_version": SCHEMA_VERSION,
            "source": options.source,
            "name": options.set_name,
            "split": options.split,
            "reference_split": options.reference_split,
            "policy": options.policy.to_dict(),
            "images": list(options.image_folders),
            "images_mode": options.images_mode,
            "shard_bytes": options.shard_bytes,
            "rows_per_shard": options.rows_per_shard,
            "files": [[source.role, source.sha256] for source in sources],
        }
    )


def _finished_set(options: PrepareOptions, folder: Folder, wanted: str) -> Manifest | None:
    """The finished set that is asked for, or None; clears the folder where that is allowed and needed."""
    names = folder.names()
    if not names:
        return None
    if options.overwrite:
        _clear(options, folder, names)
        return None
    if MANIFEST_NAME in names:
        manifest = open_set(options.out)
        if manifest.plan != wanted:
            raise UserError(
                f"{options.out} holds a finished data set made from other files or options: give another --out, or "
                "--overwrite to replace it."
            )
        log.info("%s is already prepared: %d rows", options.out, manifest.counts.rows)
        folder.remove(WORK)
        return manifest
    if WORK not in names:
        raise UserError(f"{options.out} holds something that is not a data set: give an empty or new folder as --out.")
    return None


def _clear(options: PrepareOptions, folder: Folder, names: Sequence[str]) -> None:
    known = {MANIFEST_NAME, REPORT_NAME, WORK, "shards", "rejected"}
    if not set(names) & {MANIFEST_NAME, WORK}:
        raise UserError(
            f"{options.out} holds something that is not a data set, so --overwrite does not touch it: "
            "give another --out, or empty the folder."
        )
    # The manifest first: from here on the set is not there.
    for name in sorted(known & set(names), key=lambda name: name != MANIFEST_NAME):
        folder.remove(name)


def _begun_plan(options: PrepareOptions, folder: Folder, wanted: str) -> _Plan | None:
    try:
        plan = _Plan(**json.loads(folder.read(PLAN_NAME)))
    except FileNotFoundError:
        return None
    if plan.hash != wanted:
        raise UserError(
            f"{options.out} holds a data set that was begun with other files or options: give another --out, or "
            "--overwrite to start afresh."
        )
    log.info("%s was begun before: doing what is left", options.out)
    return plan


def _make_plan(options, folder: Folder, source: Source, sources: Sequence[SourceFile], wanted: str) -> _Plan:
    header = source.header()
    images, rejects = locate_images(header, ImageFolders(options.image_folders))
    _check_found(options, images)
    images.sort(key=lambda image: f"{options.set_name}/{options.split}/{image.entry.image_id}")
    shards = cut_shards(images, options.shard_bytes, options.rows_per_shard, options.images_mode == "copy")
    total = sum(image.bytes or 0 for image in images)
    _check_room(options, folder, total)
    rejected_images = {reject.image_id for reject in rejects}
    unplaced, counts = write_groups(folder, shards, source, options.policy, rejected_images)
    rejects = [*header.rejects, *rejects, *unplaced]
    if rejects:
        context = RowContext(options.set_name, options.split, {}, options.policy)
        write_rejects(folder, _UNPLACED, rejects, context)
    counts["image"] = len(header.images) + len(header.rejects)
    plan = _Plan(
        hash=wanted,
        shards=len(shards),
        images=len(images),
        missing=sum(image.bytes is None for image in images),
        bytes=total,
        input={kind: counts[kind] for kind in REJECT_KINDS},
        categories=[(category.id, category.name) for category in header.categories],
        sources=[each.model_dump() for each in sources],
        rejected=dict(Counter(reject.kind for reject in rejects)),
        rejects=dict(Counter(reject.reason for reject in rejects)),
        repairs=dict(header.repairs),
    )
    folder.write(PLAN_NAME, json.dumps(plan.__dict__, indent=1).encode())
    return plan


def _check_found(options: PrepareOptions, images) -> None:
    if not images:
        raise UserError(f"No image of {options.annotations} has a usable file name: check its section 'images'.")
    # Without a listing (https) nothing is known before the images are fetched.
    if all(image.bytes is None for image in images) and "://" not in images[0].url:
        folders = ", ".join(options.image_folders)
        raise UserError(
            f"None of the {len(images)} images of {options.annotations} lies under {folders} "
            f"(the first is looked for as {images[0].entry.file_name}): check --images."
        )


def _check_room(options: PrepareOptions, folder: Folder, total: int) -> None:
    free = _free_bytes(folder)
    if options.images_mode == "copy" and free is not None and free < total:
        raise UserError(
            f"{options.out} has {free / 1e9:.1f} GB free and the images take {total / 1e9:.1f} GB: "
            "free space, give another --out, or link the images (--images-mode link)."
        )


def _free_bytes(folder: Folder) -> int | None:
    if not is_local(folder.fs):
        return None
    folder.fs.makedirs(folder.path(), exist_ok=True)
    return shutil.disk_usage(folder.path()).free


def _run(options, folder, plan, tasks, execute, on_plan, on_progress) -> dict[int, ShardResult]:
    start = time.monotonic()
    results = {task.number: result for task in tasks if (result := finished(task)) is not None}
    left = [task for task in tasks if task.number not in results]
    summary = PlanSummary(
        out=options.out,
        images=plan.images,
        missing=plan.missing,
        pieces={kind: plan.input[kind] for kind in REJECT_KINDS if kind != "image"},
        bytes=plan.bytes,
        shards=plan.shards,
        done=len(results),
        seconds=plan.images * len(left) / plan.shards / _IMAGES_PER_SECOND,
        free_bytes=_free_bytes(folder),
    )
    log.info("plan: %s", summary)
    if on_plan is not None:
        on_plan(summary)
    if left:
        execute = execute or (lambda todo: execute_on_ray(todo, options.num_cpus))
        for result in execute(left):
            results[result.number] = result
            if on_progress is not None:
                rows = sum(each.rows for each in results.values())
                on_progress(Progress(len(results), plan.shards, rows, plan.images, time.monotonic() - start))
    lost = [task.path for task in tasks if task.number not in results]
    if lost:
        raise UserError(f"{len(lost)} shards were not written (the first is {lost[0]}): run the command again.")
    return results


def _finish(options, folder: Folder, plan: _Plan, tasks: Sequence[ShardTask], results) -> Manifest:
    ordered = [results[task.number] for task in tasks]
    shards = tuple(
        ShardInfo(path=task.path, rows=result.rows, bytes=result.bytes, sha256=result.sha256)
        for task, result in zip(tasks, ordered, strict=True)
    )
    categories = tuple(Category(number, name) for number, name in plan.categories)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        tool_version=padt.__version__,
        name=options.set_name,
        splits=(options.split,),
        images_mode=options.images_mode,
        resize_policy=ResizeLimits(**options.policy.to_dict()),
        categories=categories,
        counts=_counts(plan, ordered),
        statistics=_statistics(ordered),
        sources=tuple(SourceFile(**each) for each in plan.sources),
        shards=shards,
        plan=plan.hash,
        fingerprint=fingerprint(options.policy, categories, shards, options.set_name),
    )
    write_report(options.out, manifest)
    folder.sweep("shards")
    folder.sweep("rejected")
    manifest.write(options.out)
    folder.remove(WORK)
    return manifest


def _counts(plan: _Plan, results: Sequence[ShardResult]) -> Counts:
    def total(name: str, start: dict[str, int] | None = None) -> dict[str, int]:
        counter = Counter(start or {})
        for result in results:
            counter.update(getattr(result, name))
        return dict(sorted(counter.items()))

    kept = Counter(total("counts"))
    rejected = total("rejected", plan.rejected)
    counts = Counts(
        rows=sum(result.rows for result in results),
        objects=kept["objects"],
        objects_with_patches=kept["objects_with_patches"],
        references=kept["references"],
        captions=kept["captions"],
        input=plan.input,
        rejected={kind: rejected.get(kind, 0) for kind in REJECT_KINDS},
        rejects=total("rejects", plan.rejects),
        repairs=total("repairs", plan.repairs),
    )
    _check_sums(counts)
    return counts


def _check_sums(counts: Counts) -> None:
    kept = {
        "image": counts.rows,
        "object": counts.objects,
        "reference": counts.references,
        "caption": counts.captions,
    }
    for kind in REJECT_KINDS:
        if counts.input[kind] != kept[kind] + counts.rejected[kind]:
            raise RuntimeError(
                f"{counts.input[kind]} {kind}s came in, {kept[kind]} were kept and {counts.rejected[kind]} rejected: "
                "the counts do not add up. This is a fault of padt; please report it with the source files."
            )


def _statistics(results: Sequence[ShardResult]) -> dict[str, dict[str, int]]:
    merged: dict[str, Counter[str]] = {}
    for result in results:
        for name, counter in result.statistics.items():
            merged.setdefault(name, Counter()).update(counter)

    def ordered(counter: Counter[str], numeric: bool) -> dict[str, int]:
        if numeric:
            return dict(sorted(counter.items(), key=lambda item: int(item[0])))
        return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))

    return {name: ordered(counter, name != "classes") for name, counter in merged.items()}
