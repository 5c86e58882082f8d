"""Preparation: raw annotations and images to a data set of shards.

``prepare`` plans, runs one task for each shard that is not yet complete (on a Ray cluster, or in processes of this
machine), and finishes with the report and, last of all, the manifest. Killed at any moment, the same call does only
what is left.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.filesize import decimal

from padt.errors import UserError
from pipelines.dataset.manifest import Manifest, SourceFile
from pipelines.dataset.schema import REJECT_KINDS, SCHEMA_VERSION
from pipelines.dedup.exclude import Exclusion, load_compared, load_exclusion
from pipelines.images.folders import ImageFolders
from pipelines.images.locate import PlannedImage, described, locate_images
from pipelines.io.reading import hash_file, is_local
from pipelines.io.storage import Folder
from pipelines.io.transport import without_keys
from pipelines.prepare.claim import claimed
from pipelines.prepare.execute import Execute, execute_tasks
from pipelines.prepare.finalize import finish
from pipelines.prepare.options import PlanSummary, PrepareOptions, Progress
from pipelines.prepare.plan import PLAN_NAME, SetPlan, cut_shards, plan_hash, read_plan, write_groups
from pipelines.prepare.rows import RowContext
from pipelines.prepare.shards import ShardResult, ShardTask, finished, write_rejects
from pipelines.prepare.target import NEXT, end_replacement, finished_set, is_taken, next_folder, replace_by_next
from pipelines.sources.base import Reject, Source

__all__ = ["PlanSummary", "PrepareOptions", "Progress", "prepare"]

log = logging.getLogger(__name__)

# Images that one core checks and writes in a second, for the first estimate of the time.
_IMAGES_PER_SECOND = 150
_UNPLACED = "rejected/unplaced.parquet"


def prepare(
    options: PrepareOptions,
    *,
    execute: Execute | None = None,
    on_read: Callable[[int], None] | None = None,
    on_plan: Callable[[PlanSummary], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Prepare a data set.

    A finished set with the same sources and options is returned as it is; one that was begun is completed.

    Args:
        options: what to prepare, and how.
        execute: runs the shards' tasks and yields results in any order; ``execute_tasks`` if not given.
        on_read: called with the number of annotations read so far, while the plan is made.
        on_plan: called once before the work starts.
        on_progress: called after each shard.

    Raises:
        UserError: a source file is missing, damaged or not of its format; no image is where it should be; ``out`` holds
            something else; there is no room.
    """
    folder, source = Folder(options.out), options.open_source()
    folder.check_target()
    exclusion = load_exclusion(options.exclude, options.out)
    against = [load_compared(spec, options.out) for spec in options.against]
    sources = [
        # Signed addresses are keys: they are not kept in plan, manifest and report.
        SourceFile(role=role, path=without_keys(url), bytes=size, sha256=digest)
        for role, url in source.files()
        for size, digest in [hash_file(url, f"The file of {role}")]
    ]
    wanted = _hash(options, sources, exclusion)
    done = finished_set(folder, wanted, options.overwrite)
    if done is not None and not folder.exists(NEXT):
        return done

    def prepared(place: Folder) -> Manifest:
        there = replace(options, out=place.url)
        plan = _begun_plan(there, place, wanted) or _make_plan(there, place, source, sources, wanted, on_read)
        context = RowContext(
            name=options.set_name,
            split=options.split,
            categories=dict(plan.categories),
            policy=options.policy,
            copy_images=options.images_mode == "copy",
        )
        tasks = [ShardTask(place.url, number, plan.shards, context, exclusion) for number in range(plan.shards)]
        results = _run(options, place, plan, tasks, execute, on_plan, on_progress)
        return finish(there, plan, tasks, [results[task.number] for task in tasks], exclusion, against)

    with claimed(folder):
        end_replacement(folder)
        # Another may have finished it while this one waited.
        done = finished_set(folder, wanted, options.overwrite)
        if done is not None:
            # What a killed replacement has begun: this set is asked for as it is.
            folder.remove(NEXT)
            return done
        if not is_taken(folder) or not options.overwrite:
            return prepared(folder)
        place = next_folder(folder, wanted)
        try:
            manifest = prepared(place)
        except UserError:
            # What was begun stays for the next try; where nothing was, nothing does.
            if read_plan(place) is None:
                folder.remove(NEXT)
            raise
        replace_by_next(folder)
        return manifest


def _hash(options: PrepareOptions, sources: Sequence[SourceFile], exclusion: Exclusion | None) -> str:
    # Named only where there are some: sets that were made before lists existed stay what they are.
    excluded = {} if exclusion is None else {"exclude": exclusion.digest}
    return plan_hash(
        excluded
        | {
            "schema_version": SCHEMA_VERSION,
            "source": options.source,
            "name": options.set_name,
            "split": options.split,
            "options": options.shaping(),
            "policy": options.policy.to_dict(),
            "images": list(options.image_folders),
            "images_mode": options.images_mode,
            "shard_bytes": options.shard_bytes,
            "rows_per_shard": options.rows_per_shard,
            "files": [[source.role, source.sha256] for source in sources],
        }
    )


def _begun_plan(options: PrepareOptions, folder: Folder, wanted: str) -> SetPlan | None:
    plan = read_plan(folder)
    if plan is None:
        return None
    if plan.hash != wanted:
        raise UserError(
            f"{options.out} holds a data set that was begun with other files or options: give another --out, or "
            "--overwrite to start afresh."
        )
    log.info("%s was begun before: doing what is left", options.out)
    return plan


def _make_plan(options, folder: Folder, source: Source, sources: Sequence[SourceFile], wanted: str, on_read) -> SetPlan:
    header = source.header()
    folders = ImageFolders(options.image_folders)
    images, rejects, notes = locate_images(header, folders)
    header.notes.merge(notes.found)
    _check_found(options, folders, images, rejects)
    images.sort(key=lambda image: f"{options.set_name}/{options.split}/{image.entry.image_id}")
    shards = cut_shards(images, options.shard_bytes, options.rows_per_shard, options.images_mode == "copy")
    total = sum(image.bytes or 0 for image in images)
    _check_room(options, folder, total)
    rejected_images = {reject.image_id for reject in (*header.rejects, *rejects)}
    needed = sum(each.bytes for each in sources)
    unplaced, counts, repairs = write_groups(
        folder, shards, source, options.policy, rejected_images, header.ambiguous, on_piece=on_read, needed=needed
    )
    rejects = [*header.rejects, *rejects, *unplaced]
    if rejects:
        context = RowContext(options.set_name, options.split, {}, options.policy)
        write_rejects(folder, _UNPLACED, rejects, context)
    counts["image"] = len(header.images) + len(header.rejects)
    plan = SetPlan(
        hash=wanted,
        shards=len(shards),
        images=len(images),
        missing=sum(image.bytes is None for image in images),
        bytes=total,
        input={kind: counts[kind] for kind in REJECT_KINDS},
        categories=[(category.id, category.name) for category in header.categories],
        sources=[each.model_dump() for each in sources],
        rejects=dict(Counter(f"{reject.kind} {reject.reason}" for reject in rejects)),
        repairs=dict(+(header.repairs + repairs)),
        notes=header.notes.found,
    )
    folder.write(PLAN_NAME, json.dumps(plan.__dict__, indent=1).encode())
    return plan


def _check_found(
    options: PrepareOptions, folders: ImageFolders, images: Sequence[PlannedImage], rejects: Sequence[Reject]
) -> None:
    # Without a listing (https) nothing is known before the images are fetched.
    if any(not image.missing for image in images) or not (images or rejects):
        return
    name = images[0].entry.file_name if images else ""
    lies = folders.hint(name) if name else ""
    raise UserError(
        f"None of the {len(images) + len(rejects)} images of {options.annotations} lies under "
        f"{', '.join(options.image_folders)}: {described(images) or rejects[0].detail}. "
        f"{f'{name} lies in {lies}: give that as --images.' if lies else 'Check --images.'}"
    )


def _check_room(options: PrepareOptions, folder: Folder, total: int) -> None:
    free = _free_bytes(folder)
    if options.images_mode == "copy" and free is not None and free < total:
        raise UserError(
            f"{options.out} has {decimal(free)} free and the images take {decimal(total)}: free space (a set that is "
            "to be replaced stays until the new one is whole), give another --out, or link the images (--images-mode "
            "link)."
        )


def _free_bytes(folder: Folder) -> int | None:
    if not is_local(folder.fs):
        return None
    folder.fs.makedirs(folder.path(), exist_ok=True)
    return shutil.disk_usage(folder.path()).free


def _run(options, folder, plan, tasks, execute, on_plan, on_progress) -> dict[int, ShardResult]:
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
    log.debug("plan: %s", summary)
    if on_plan is not None:
        on_plan(summary)
    if left:
        for result in execute(left) if execute is not None else execute_tasks(left, options.num_cpus):
            results[result.number] = result
            if on_progress is not None:
                on_progress(Progress(len(results), plan.shards))
    lost = [task.path for task in tasks if task.number not in results]
    if lost:
        raise UserError(f"{len(lost)} shards were not written (the first is {lost[0]}): run the command again.")
    return results
