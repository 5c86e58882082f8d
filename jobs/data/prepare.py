"""`padt prepare`: raw annotations to shards, with the plan and the progress in the log."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from jobs.common.progress_bar import Advance, counting, every_few_seconds
from jobs.common.ray_session import ray_session
from pipelines.dataset.losses import alarms
from pipelines.dataset.manifest import Manifest
from pipelines.prepare.execute import Execute, execute_tasks, on_cluster
from pipelines.prepare.options import PlanSummary, PrepareOptions, Progress
from pipelines.prepare.run import prepare
from pipelines.prepare.shards import ShardResult, ShardTask

if TYPE_CHECKING:
    from pipelines.toy.scenes import SceneOptions

logger = logging.getLogger(__name__)


def run_prepare(options: PrepareOptions) -> Manifest:
    """Prepare one set; a finished one is returned as it is, a begun one completed.

    Raises:
        UserError: see ``pipelines.prepare.run.prepare``.
    """
    logger.info("preparing %s from %s", options.out, options.annotations)
    with _executing(options.num_cpus) as execute, Telling() as telling:
        manifest = prepare(
            options, execute=execute, on_read=telling.read, on_plan=telling.plan, on_progress=telling.progress
        )
    tell_alarms(options.out, manifest)
    _tell_shared(options.out, manifest)
    return manifest


def tell_alarms(out: str, manifest: Manifest) -> None:
    """Say what must not go unnoticed: kinds that were largely lost, and what looks wrong."""
    said = alarms(manifest)
    for each in said:
        logger.warning("%s: %s", out, each)
    if said:
        logger.warning("%s/report.html and the tables in rejected/ have the details", out.rstrip("/"))


def _tell_shared(out: str, manifest: Manifest) -> None:
    """Say what was left out for the sake of other sets, and what is still shared with some."""
    for each in manifest.exclusions:
        how = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in each.removed.items() if count)
        logger.info("%s: %s images of %s left out (%s)", out, f"{sum(each.removed.values()):,}", each.name, how or "-")
    for other in manifest.compared:
        if any(other.shared.values()):
            logger.warning(
                "%s shares %s images with %s (%s): leave them out with --exclude if you will measure on that set",
                out,
                f"{sum(other.shared.values()):,}",
                other.name,
                ", ".join(f"{count:,} {how.replace('_', ' ')}" for how, count in other.shared.items() if count),
            )
    if manifest.exclusions and not manifest.counts.rows:
        logger.warning("%s is empty: every image was left out by --exclude or rejected", out)


def run_prepare_toy(
    out: str,
    *,
    scenes: int,
    heldout: int,
    seed: int,
    talk: int = 0,
    pictures: "SceneOptions | None" = None,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Draw and prepare the toy set, and return its splits ``train`` and ``val`` (and ``talk``, if it is asked for).

    Args and errors are those of ``pipelines.prepare.toy.prepare_toy``.
    """
    from pipelines.prepare.toy import prepare_toy

    logger.info("drawing %d and %d scenes for %s", scenes, heldout, out)
    drawn = every_few_seconds(lambda split, done, count: logger.info("drew %d of %d scenes (%s)", done, count, split))
    with _executing() as execute, Telling() as telling:
        sets = prepare_toy(
            out,
            execute=execute,
            scenes=scenes,
            heldout=heldout,
            seed=seed,
            talk=talk,
            pictures=pictures,
            overwrite=overwrite,
            on_plan=telling.plan,
            on_progress=telling.progress,
            on_drawn=lambda split, done, count: drawn(done == count, split, done, count),
        )
    return {name: manifest for name, manifest in vars(sets).items() if manifest is not None}


class Telling:
    """Tells on stderr what a preparation is about to do and how far it is: its callbacks, and the bar they share."""

    def __init__(self) -> None:
        self._bars = ExitStack()
        self._advance: Advance | None = None
        self._images = self._done = 0
        self._say_read = every_few_seconds(lambda pieces: logger.info("read %s annotations", f"{pieces:,}"))

    def __enter__(self) -> "Telling":
        return self

    def __exit__(self, *details: object) -> None:
        self._bars.close()

    def read(self, pieces: int) -> None:
        """Annotations read so far, while the plan is made."""
        self._say_read(False, pieces)

    def plan(self, plan: PlanSummary) -> None:
        """Say what is about to be done, and begin to count."""
        log_plan(plan)
        self._bars.close()
        self._images = plan.images
        self._done = self._images_of(plan.done, plan.shards)
        self._advance = self._bars.enter_context(counting(plan.out, plan.images - self._done, "images"))

    def progress(self, progress: Progress) -> None:
        """Shards done so far, told as images: rejected ones are done as well, and the bar ends where it should."""
        assert self._advance is not None
        done = self._images_of(progress.shards_done, progress.shards)
        self._advance(done - self._done)
        self._done = done

    def _images_of(self, done: int, shards: int) -> int:
        return self._images * done // shards if shards else 0


def log_plan(plan: PlanSummary) -> None:
    """Say what is about to be done: rows, bytes, shards, time, and the room that there is."""
    pieces = ", ".join(f"{count:,} {kind}s" for kind, count in plan.pieces.items() if count)
    missing = f", {plan.missing:,} images missing" if plan.missing else ""
    done = f", {plan.done} done before" if plan.done else ""
    free = f"; {decimal(plan.free_bytes)} free there" if plan.free_bytes is not None else ""
    logger.info(
        "plan for %s: %s images (%s), %s%s; %d shards%s; about %.0f s on one core%s",
        plan.out,
        f"{plan.images:,}",
        decimal(plan.bytes),
        pieces,
        missing,
        plan.shards,
        done,
        plan.seconds,
        free,
    )


@contextmanager
def _executing(num_cpus: int | None = None) -> Iterator[Execute]:
    """What writes shards; a cluster is joined with the first of them, so that a wrong file is told before."""
    with ExitStack() as opened:

        def execute(tasks: Sequence[ShardTask]) -> Iterator[ShardResult]:
            if on_cluster():
                opened.enter_context(ray_session())
            return execute_tasks(tasks, num_cpus)

        yield execute


def set_facts(url: str, manifest: Manifest) -> dict[str, Any]:
    """A set in a few plain values, for markers and tables."""
    counts = manifest.counts
    return {
        "url": url,
        "fingerprint": manifest.fingerprint,
        "images": counts.rows,
        "objects": counts.objects,
        "references": counts.references,
        "captions": counts.captions,
        "rejected": sum(counts.rejected.values()),
        "excluded": sum(counts.excluded.values()),
    }
