"""The toy data set: scenes drawn from a seed, written in the files of real data sets, and prepared like those."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from padt.errors import UserError
from pipelines.dataset.manifest import Manifest
from pipelines.io.reading import is_local, resolve
from pipelines.prepare.execute import Execute
from pipelines.prepare.options import PlanSummary, PrepareOptions, Progress
from pipelines.prepare.run import prepare
from pipelines.toy.conversations import write_conversations
from pipelines.toy.scenes import SceneOptions
from pipelines.toy.writing import write_dataset

TOY_ROWS_PER_SHARD = 500


@dataclass(frozen=True)
class ToySets:
    """The prepared sets of the toy data: ``<out>/train``, ``<out>/val``, and ``<out>/talk`` if it was asked for."""

    train: Manifest
    val: Manifest
    talk: Manifest | None = None


def prepare_toy(
    out: str,
    *,
    scenes: int = 4000,
    heldout: int = 240,
    seed: int = 0,
    talk: int = 0,
    pictures: SceneOptions | None = None,
    rows_per_shard: int = TOY_ROWS_PER_SHARD,
    num_cpus: int | None = None,
    overwrite: bool = False,
    execute: Execute | None = None,
    on_plan: Callable[[PlanSummary], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_drawn: Callable[[str, int, int], None] | None = None,
) -> ToySets:
    """Draw the toy scenes as COCO, RefCOCO and RIC files below ``<out>/raw`` and prepare both splits.

    Args:
        out: local folder.
        scenes: scenes to train on.
        heldout: scenes to evaluate on; no scene is in both.
        seed: decides every scene.
        talk: scenes for conversations in plain words (``pipelines.toy.conversations``), in neither of the splits.
        pictures: what scenes look like.
        rows_per_shard: scenes of a shard; several shards let several cores prepare.
        num_cpus: see ``PrepareOptions``.
        overwrite: see ``PrepareOptions``; what was drawn is kept, since the seed decides it.
        execute: see ``pipelines.prepare.run.prepare``.
        on_plan: see ``pipelines.prepare.run.prepare``.
        on_progress: see ``pipelines.prepare.run.prepare``.
        on_drawn: called with split, scenes drawn and scenes in all, after each scene.

    Raises:
        UserError: a number is out of range, ``out`` is not a local folder, or it holds something else.
    """
    fs, root = resolve(out)
    if not is_local(fs):
        raise UserError(f"{out} is not a local folder: the toy scenes are drawn on this machine's disk.")
    manifests = {}
    for split, count in (("train", scenes), ("val", heldout)):
        files = write_dataset(
            f"{root}/raw/{split}",
            scenes=count,
            seed=seed,
            split=split,
            options=pictures,
            progress=None if on_drawn is None else _telling(on_drawn, split, count),
        )
        options = PrepareOptions(
            annotations=str(files.instances),
            images=str(files.images),
            references=str(files.refs),
            captions=str(files.captions),
            out=f"{root}/{split}",
            name="toy",
            split=split,
            rows_per_shard=rows_per_shard,
            num_cpus=num_cpus,
            overwrite=overwrite,
        )
        manifests[split] = prepare(options, execute=execute, on_plan=on_plan, on_progress=on_progress)
    if talk:
        file = write_conversations(Path(f"{root}/raw/talk"), scenes=talk, seed=seed, options=pictures or SceneOptions())
        options = PrepareOptions(
            annotations=str(file),
            images=(),
            out=f"{root}/talk",
            source="messages",
            name="toy",
            split="talk",
            rows_per_shard=rows_per_shard,
            num_cpus=num_cpus,
            overwrite=overwrite,
        )
        manifests["talk"] = prepare(options, execute=execute, on_plan=on_plan, on_progress=on_progress)
    return ToySets(**manifests)


def _telling(on_drawn: Callable[[str, int, int], None], split: str, count: int) -> Callable[[int], None]:
    return lambda done: on_drawn(split, done, count)
