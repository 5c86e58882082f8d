"""Checkpoints: every rank writes its engine's files; together they are one folder.

Each rank also lists its files with their sizes, so that a folder that was cut short is told from a whole one.
"""

import json
import logging
import pickle
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.training.engine.backend import Engine, EngineName
from padt.errors import UserError
from pipelines.io.reading import is_local
from pipelines.io.storage import Folder

logger = logging.getLogger(__name__)

# Ray Train's folder of a run's checkpoints, and its list of them there.
FOLDER, SNAPSHOT = "checkpoints", "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class LoopState:
    """Where a run stands between two optimiser steps.

    Attributes:
        step: optimiser steps done.
        epoch: epoch of the next global batch, which is that of the next step.
        plan: fingerprint of data, mixture, seed and samples of a step (``Plan.fingerprint``).
        run_id: MLflow run, or None.
        samples: samples seen by all ranks.
        engine: back end that wrote weights and optimiser.
        workers: ranks that it was written by.
        quarantined: why samples were left out, by their identity.
    """

    step: int
    epoch: int
    plan: dict[str, Any]
    run_id: str | None
    samples: int
    engine: EngineName
    workers: int
    quarantined: dict[str, str] = field(default_factory=dict)


def save(engine: Engine, state: LoopState, folder: Path, rank: int) -> None:
    """Write one rank's part of a checkpoint. All ranks must call this together."""
    engine.save(folder)
    if rank == 0:
        (folder / "state.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    listing = {"world_size": state.workers, "files": files}
    (folder / _listing_of(rank)).write_text(json.dumps(listing), encoding="utf-8")


def _listing_of(rank: int) -> str:
    return f"files-{rank:05d}.json"


def damage(folder: Folder, name: str) -> str | None:
    """What is wrong with a checkpoint ``name`` in a folder of checkpoints; None where all of it is there."""
    folder.fs.invalidate_cache()
    try:
        found = folder.fs.find(folder.path(name), detail=True)
    except FileNotFoundError:
        found = {}
    if not found:
        return "it is not there"
    root = folder.path(name) + "/"
    sizes = {path.removeprefix(root): entry["size"] for path, entry in found.items()}
    rank = 0
    ranks = 1
    while rank < ranks:
        text = folder.read_text(f"{name}/{_listing_of(rank)}")
        try:
            listing = json.loads(text or "")
            ranks, files = listing["world_size"], listing["files"]
        except (ValueError, KeyError, TypeError):
            return f"{_listing_of(rank)} is missing or damaged"
        for file, size in files.items():
            if sizes.get(file) != size:
                return f"{file} has {sizes[file]} of {size} bytes" if file in sizes else f"{file} is missing"
        rank += 1
    return None


def starting_point(output: str, *, with_ray: bool = True) -> str | None:
    """URL of the newest whole checkpoint, where Ray Train would not find it by itself; None where it would.

    Ray Train goes on from the newest checkpoint of its list, whole or not, and refuses a list that is damaged or names
    what is not there. Then the list is removed here, with a warning that names what is passed over. It is removed, too,
    where training goes on without Ray Train (``with_ray``): the list would not name what comes now.

    Raises:
        UserError: there were checkpoints, but none is whole.
    """
    folder = Folder(posixpath.join(output, FOLDER))
    text = folder.read_text(SNAPSHOT)
    steps = newest_first(folder)
    faults: dict[str, str] = {}
    if text is not None:
        try:
            listed = [each["checkpoint_dir_name"] for each in json.loads(text)["checkpoint_results"]]
        except (ValueError, KeyError, TypeError):
            listed = []
            faults[SNAPSHOT] = "it is damaged"
        for name in sorted(listed, reverse=True):
            if fault := damage(folder, name):
                faults[name] = fault
        if not faults and with_ray:
            return None
    # Without a list a folder that is not whole is what a kill left of the very first checkpoint.
    whole = None
    for name in steps:
        fault = faults.get(name) or damage(folder, name)
        if fault is None:
            whole = name
            break
        if text is None and not with_ray:
            logger.warning("%s/%s is passed over: %s", folder.url, name, fault)
    told = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
    if whole is None:
        if not faults:
            return None
        raise UserError(
            f"{folder.url} holds no whole checkpoint ({told}): put the files back, or remove that folder to train from "
            "the first step."
        )
    if faults:
        logger.warning("%s is damaged (%s): going on from %s, the newest whole checkpoint", folder.url, told, whole)
    folder.remove(SNAPSHOT)
    return posixpath.join(folder.url, whole)


def written_with(output: str) -> EngineName | None:
    """Back end that wrote a run's newest checkpoint, or None where there is none: the run goes on with the same."""
    folder = Folder(posixpath.join(output, FOLDER))
    for name in newest_first(folder):
        if text := folder.read_text(f"{name}/state.json"):
            try:
                return json.loads(text)["engine"]
            except (ValueError, KeyError, TypeError):
                continue  # ``starting_point`` tells of what is damaged
    return None


def read_state(folder: Path) -> LoopState:
    """The state that a checkpoint was written at.

    Raises:
        UserError: the folder is not one of our checkpoints.
    """
    try:
        return LoopState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"The checkpoint {folder} cannot be read ({error}): remove the run's folder to start anew."
        ) from error


def check_plan(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuse to go on where the checkpoint's steps would not have seen these samples.

    Raises:
        UserError: names the difference and what to do.
    """
    fixes = {
        "data": "the data sets or their mixture changed",
        "samples_per_step": "the samples of a step changed (batch_size x workers x gradient_accumulation_steps)",
        "batch_size": "batch_size changed",
        "seed": "the seed changed",
        "window": "data.window changed",
        "last": "data.last changed",
        "batching": "data.batching changed",
        "lengths": "the tokenizer or the task's options changed",
        "augment": "data.augment changed",
    }
    for key in sorted(set(saved) | set(current)):
        if saved.get(key) != current.get(key):
            raise UserError(
                f"The checkpoint cannot be continued: {fixes.get(key, key)} ({saved.get(key)} -> {current.get(key)}). "
                "Set it back, or give another output folder to start anew."
            )


def load(engine: Engine, folder: Path) -> LoopState:
    """Restore weights and optimiser of one rank. All ranks must call this together."""
    state = read_state(folder)
    try:
        engine.load(folder, state.workers)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, AssertionError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"The checkpoint {folder} cannot be loaded ({type(error).__name__}: {reason}): remove it to go on from the "
            "one before."
        ) from error
    return state


def newest_first(folder: Folder) -> list[str]:
    """Names of the checkpoints in a run's folder of them, whole or not."""
    return sorted((name for name in folder.names() if name.startswith("step-")), reverse=True)


def name_of(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def publish(output: Folder, part: Path, step: int, keep: int) -> None:
    """Put the checkpoint of a single rank into a run's folder, as Ray Train does for many, and remove older ones.

    Args:
        output: folder of the run.
        part: local folder that holds it; it is emptied.
        step: optimiser steps done.
        keep: newest ones that stay.
    """
    target = Folder(posixpath.join(output.url, FOLDER, name_of(step)))
    target.publish(lambda new: shutil.move(part, new), _listing_of(0))
    folder = Folder(posixpath.join(output.url, FOLDER))
    for name in newest_first(folder)[keep:]:
        folder.remove(name)


@contextmanager
def opened(url: str) -> Iterator[Path]:
    """A checkpoint's folder on this machine, for the length of a block."""
    folder = Folder(url)
    if is_local(folder.fs):
        yield Path(folder.path())
        return
    with scratch_folder() as copy:
        folder.download(copy)
        yield copy


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A local folder for one rank's part while it is handed over."""
    with tempfile.TemporaryDirectory(prefix="padt-checkpoint-") as folder:
        yield Path(folder)
