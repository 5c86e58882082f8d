"""The end of a preparation: counts that must add up, the report, and the manifest that makes the folder a data set."""

from collections import Counter
from collections.abc import Mapping, Sequence

import padt
from padt.errors import UserError
from pipelines.dataset.losses import Notes, find_losses, loss_sentences
from pipelines.dataset.manifest import (
    Category,
    ComparedSet,
    Counts,
    ExcludedSet,
    Loss,
    Manifest,
    Note,
    ResizeLimits,
    ShardInfo,
    SourceFile,
    fingerprint,
)
from pipelines.dataset.schema import EXCLUSION_REASONS, REJECT_KINDS, SCHEMA_VERSION
from pipelines.dedup.exclude import Exclusion
from pipelines.dedup.overlap import SetImages, compare, duplicates, images_of
from pipelines.inspection.report import write_report
from pipelines.io.storage import Folder
from pipelines.prepare.options import PrepareOptions
from pipelines.prepare.plan import WORK, SetPlan
from pipelines.prepare.shards import ShardResult, ShardTask
from pipelines.prepare.signs import judge
from pipelines.prepare.target import MADE, NEXT


def finish(
    options: PrepareOptions,
    plan: SetPlan,
    tasks: Sequence[ShardTask],
    results: Sequence[ShardResult],
    exclusion: Exclusion | None = None,
    against: Sequence[SetImages] = (),
) -> Manifest:
    """Write report and manifest of a set whose shards are complete, and remove what was only needed on the way.

    Args:
        options: what was asked for.
        plan: what was planned.
        tasks: of all shards, in order.
        results: of all shards, in order.
        exclusion: images that were left out.
        against: sets to compare the finished one with.

    Raises:
        UserError: no row is left, and an empty set was not asked for; nothing of it stays.
    """
    folder = Folder(options.out)
    shards = tuple(
        ShardInfo(path=task.path, rows=result.rows, bytes=result.bytes, sha256=result.sha256)
        for task, result in zip(tasks, results, strict=True)
    )
    categories = tuple(Category(number, name) for number, name in plan.categories)
    reasons = _reasons_by_kind(plan, results)
    counts = _counts(plan, results, reasons)
    losses = find_losses(options.out, counts, reasons)
    if not counts.rows and not options.allow_empty:
        for name in MADE:
            # Or else the same command would find the same shards again, even after its pictures are in their place.
            folder.remove(name)
        raise UserError(_empty(options.out.removesuffix(f"/{NEXT}"), counts, losses))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        tool_version=padt.__version__,
        name=options.set_name,
        splits=(options.split,),
        images_mode=options.images_mode,
        resize_policy=ResizeLimits(**options.policy.to_dict()),
        categories=categories,
        counts=counts,
        statistics=_statistics(results),
        sources=tuple(SourceFile(**each) for each in plan.sources),
        shards=shards,
        exclusions=_exclusions(exclusion, results),
        losses=losses,
        notes=_notes(plan, results, counts),
        plan=plan.hash,
        fingerprint=fingerprint(options.policy, categories, shards, options.set_name),
    )
    manifest = _compared(options.out, manifest, against)
    write_report(options.out, manifest)
    folder.sweep("shards")
    folder.sweep("rejected")
    folder.sweep("excluded")
    manifest.write(options.out)
    folder.remove(WORK)
    return manifest


def _empty(out: str, counts: Counts, losses: Sequence[Loss]) -> str:
    excluded = counts.excluded.get("image", 0)
    said = [f"{excluded:,} images were left out by --exclude."] if excluded else []
    said += [sentence for loss in losses for sentence in loss_sentences(loss)]
    return " ".join([f"No row is left for {out}, so no set was made.", *said, "Mend that, or give --allow-empty."])


def _reasons_by_kind(plan: SetPlan, results: Sequence[ShardResult]) -> dict[str, dict[str, int]]:
    """Rejects of the whole set by kind and reason."""
    reasons: dict[str, dict[str, int]] = {}
    for name, count in sum((Counter(result.rejects) for result in results), Counter(plan.rejects)).items():
        kind, _, reason = name.partition(" ")
        reasons.setdefault(kind, {})[reason] = count
    return reasons


def _notes(plan: SetPlan, results: Sequence[ShardResult], counts: Counts) -> tuple[Note, ...]:
    notes = Notes()
    notes.merge(plan.notes)
    examples: dict[str, str] = {}
    for result in results:
        notes.merge(result.notes)
        examples = result.examples | examples
    signs = sum((result.signs for result in results), Counter())
    notes.merge(judge(Counter({"objects": counts.objects, **counts.repairs}) + signs, examples))
    return notes.notes()


def _counts(plan: SetPlan, results: Sequence[ShardResult], reasons: Mapping[str, Mapping[str, int]]) -> Counts:
    def total(name: str, start: dict[str, int] | None = None) -> dict[str, int]:
        counter = Counter(start or {})
        for result in results:
            counter.update(getattr(result, name))
        return dict(sorted(counter.items()))

    kept = Counter(total("counts"))
    counts = Counts(
        rows=sum(result.rows for result in results),
        objects=kept["objects"],
        objects_with_patches=kept["objects_with_patches"],
        references=kept["references"],
        captions=kept["captions"],
        conversations=kept["conversations"],
        input=plan.input,
        rejected={kind: sum(reasons.get(kind, {}).values()) for kind in REJECT_KINDS},
        rejects=dict(sorted(sum(map(Counter, reasons.values()), Counter()).items())),
        repairs=total("repairs", plan.repairs),
        excluded=total("excluded"),
    )
    _check_sums(counts)
    return counts


def _exclusions(exclusion: Exclusion | None, results: Sequence[ShardResult]) -> tuple[ExcludedSet, ...]:
    if exclusion is None:
        return ()
    removed: Counter[str] = sum((result.exclusions for result in results), Counter())
    return tuple(
        each.model_copy(update={"removed": {reason: removed[f"{number} {reason}"] for reason in EXCLUSION_REASONS}})
        for number, each in enumerate(exclusion.sets)
    )


def _compared(url: str, manifest: Manifest, against: Sequence[SetImages]) -> Manifest:
    """The manifest with what the set holds twice, and what it shares with others."""
    images = images_of(url, manifest)
    twice = duplicates(images)
    found = {"same_bytes": twice.same_bytes, "same_look": twice.same_look}
    compared = []
    for other in against:
        overlap = compare(images, other)
        compared.append(
            ComparedSet(
                name=other.name,
                url=other.url,
                fingerprint=other.fingerprint,
                images=len(other),
                shared=overlap.shared,
                examples=overlap.examples,
            )
        )
    changes = {
        "statistics": manifest.statistics | {"duplicates": found},
        "duplicates": twice.examples,
        "compared": tuple(compared),
    }
    return manifest.model_copy(update=changes)


def _check_sums(counts: Counts) -> None:
    for kind, came_in, kept, rejected, excluded in counts.by_kind():
        if came_in != kept + rejected + excluded:
            raise RuntimeError(
                f"{came_in} {kind}s came in, {kept} were kept, {rejected} rejected and {excluded} excluded: the counts "
                "do not add up. This is a fault of padt; please report it with the source files."
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

    # In one order, whether results come from memory or from the marker of an earlier run.
    return {name: ordered(counter, name != "classes") for name, counter in sorted(merged.items())}
