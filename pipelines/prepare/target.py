"""The folder that a set is written to: what may stand there, and how a new set takes the place of an old one.

A set that is to be replaced stays as it is until the new one is whole, in ``.next`` inside its folder. Then the old
files go, the manifest first, and the new ones take their places, the manifest last; killed in between, the next
preparation there ends what was begun.
"""

import logging

from padt.errors import UserError
from pipelines.dataset.manifest import MANIFEST_NAME, Manifest, open_set
from pipelines.inspection.report import REPORT_NAME
from pipelines.io.reading import is_local
from pipelines.io.storage import Folder
from pipelines.prepare.claim import CLAIM_NAME
from pipelines.prepare.plan import WORK, read_plan

log = logging.getLogger(__name__)

NEXT = ".next"
_CLEARED = "cleared"
MADE = (MANIFEST_NAME, REPORT_NAME, WORK, "shards", "rejected", "excluded")
"""Everything that a preparation makes in its folder; the manifest first: without it the set is not there."""


def finished_set(folder: Folder, wanted: str, overwrite: bool) -> Manifest | None:
    """The finished set that is asked for; None where the folder is free, holds a begun set, or is to be replaced.

    Args:
        folder: that was named as output.
        wanted: hash of the plan that is asked for.
        overwrite: a set that is there is to be replaced.

    Raises:
        UserError: the folder holds something else, or a set of another plan that is not to be replaced.
    """
    names = set(folder.names()) - {CLAIM_NAME, NEXT}
    if not names or _half_replaced(folder):
        return None
    if not names & {MANIFEST_NAME, WORK}:
        raise UserError(
            f"{folder.url} holds something that is not a data set{', so --overwrite does not touch it' * overwrite}: "
            "give an empty or new folder as --out."
        )
    if overwrite or MANIFEST_NAME not in names:
        return None
    manifest = open_set(folder.url)
    if manifest.plan != wanted:
        raise UserError(
            f"{folder.url} holds a finished data set made from other files or options: give another --out, or "
            "--overwrite to replace it."
        )
    log.info("%s is already prepared: %d rows", folder.url, manifest.counts.rows)
    if WORK in names:
        folder.remove(WORK)
    return manifest


def is_taken(folder: Folder) -> bool:
    """Whether a set, finished or begun, is there."""
    return bool({MANIFEST_NAME, WORK} & set(folder.names()))


def next_folder(folder: Folder, wanted: str) -> Folder:
    """The folder to prepare in what is to replace a set; it goes on with what was begun there for the same plan.

    Args:
        folder: that was named as output.
        wanted: hash of the plan that is asked for.
    """
    place = Folder(f"{folder.url.rstrip('/')}/{NEXT}")
    begun = read_plan(place)
    if begun is None or begun.hash != wanted:
        folder.remove(NEXT)
    return place


def end_replacement(folder: Folder) -> None:
    """Do the rest of a replacement that was killed half-way; nothing happens where there is none."""
    if _half_replaced(folder):
        replace_by_next(folder)


def _half_replaced(folder: Folder) -> bool:
    return not folder.exists(MANIFEST_NAME) and folder.exists(f"{NEXT}/{MANIFEST_NAME}")


def replace_by_next(folder: Folder) -> None:
    """Put the finished set in ``.next`` in the place of what is in the folder."""
    place = Folder(f"{folder.url.rstrip('/')}/{NEXT}")
    if not place.exists(_CLEARED):
        for name in MADE:
            folder.remove(name)
        # From here on what is in the folder is of the new set.
        place.write(_CLEARED, b"")
    root = place.path()
    files = {str(file)[len(root) + 1 :] for file in folder.fs.find(root)} - {_CLEARED}
    for name in sorted(files, key=lambda name: (name == MANIFEST_NAME, name)):
        target = folder.path(name)
        if is_local(folder.fs):
            folder.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        folder.fs.mv(f"{root}/{name}", target)
    folder.remove(NEXT)
