"""`padt prepare`: raw annotations to shards, with the plan and the progress in the log."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs.ray_session import ray_session
from pipelines.manifest import Manifest
from pipelines.prepare import PlanSummary, PrepareOptions, Progress, prepare

logger = logging.getLogger(__name__)

# Seconds between two lines of progress.
_QUIET_S = 5.0


def run_prepare(options: PrepareOptions) -> Manifest:
    """Prepare one set on Ray; a finished one is returned as it is, a begun one completed.

    Raises:
        UserError: see ``pipelines.prepare.prepare``.
    """
    with ray_session(), _quiet_ray_data():
        return prepare(options, on_plan=log_plan, on_progress=progress_logger(options.out))


def run_prepare_toy(out: str, *, scenes: int, heldout: int, seed: int) -> dict[str, Manifest]:
    """Draw the toy set as COCO, RefCOCO and RIC files below ``raw/``, and prepare ``train/`` and ``val/`` from them.

    Args:
        out: local folder.
        scenes: images of ``train``.
        heldout: images of ``val``; splits never share a scene.
        seed: of the drawing.

    Raises:
        UserError: a value is out of range, or a folder holds something else.
    """
    from pipelines.sources.toy import prepare_toy

    drawn = _every_few_seconds(lambda split, done, count: logger.info("drew %d of %d scenes (%s)", done, count, split))
    with ray_session(), _quiet_ray_data():
        sets = prepare_toy(
            out,
            scenes=scenes,
            heldout=heldout,
            seed=seed,
            on_plan=log_plan,
            on_progress=progress_logger(out),
            on_drawn=lambda split, done, count: drawn(done == count, split, done, count),
        )
    return {"train": sets.train, "val": sets.val}


def log_plan(plan: PlanSummary) -> None:
    """Say what is about to be done."""
    pieces = ", ".join(f"{count:,} {kind}s" for kind, count in plan.pieces.items() if count)
    missing = f", {plan.missing:,} images missing" if plan.missing else ""
    done = f", {plan.done} done before" if plan.done else ""
    logger.info(
        "plan for %s: %s images (%.1f MB), %s%s; %d shards%s; about %.0f s on one core",
        plan.out,
        f"{plan.images:,}",
        plan.bytes / 1e6,
        pieces,
        missing,
        plan.shards,
        done,
        plan.seconds,
    )


def progress_logger(out: str) -> Callable[[Progress], None]:
    """A callback that logs how far a preparation is, not more often than every few seconds."""
    say = _every_few_seconds(
        lambda progress: logger.info(
            "%s: shard %d of %d, %s of %s images, %.0f s",
            out,
            progress.shards_done,
            progress.shards,
            f"{progress.rows_done:,}",
            f"{progress.rows:,}",
            progress.seconds,
        )
    )
    return lambda progress: say(progress.shards_done == progress.shards, progress)


def _every_few_seconds(say: Callable[..., None]) -> Callable[..., None]:
    """``say``, but only every few seconds, or when the first argument (last call of its kind) is true."""
    said = time.monotonic()

    def maybe(last: bool, *arguments: Any) -> None:
        nonlocal said
        if last or time.monotonic() - said >= _QUIET_S:
            said = time.monotonic()
            say(*arguments)

    return maybe


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Keep Ray Data's own lines off the terminal; it sets its level when it is imported, so that comes first."""
    import ray.data  # noqa: F401

    library = logging.getLogger("ray.data")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(level)


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
    }
