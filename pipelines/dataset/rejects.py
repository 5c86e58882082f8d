"""What a preparation left out, read back from ``rejected/`` and ``excluded/``: examples, or all of one image."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.manifest import Manifest
from pipelines.dataset.read import reading_shard
from pipelines.dataset.schema import CONSEQUENCES, EXCLUSION_REASONS, REJECT_REASONS
from pipelines.io.storage import Folder

REASONS = REJECT_REASONS | EXCLUSION_REASONS
"""Every reason for which something is not in a set, with its meaning."""

_FOLDERS = ("rejected", "excluded")
_ROWS_AT_ONCE = 65_536


def by_cause(rejects: Mapping[str, int]) -> dict[str, int]:
    """Reasons with their numbers: causes first, most frequent first, then what only follows from others."""
    return dict(sorted(rejects.items(), key=lambda item: (item[0] in CONSEQUENCES, -item[1], item[0])))


@dataclass(frozen=True)
class LeftOut:
    """One thing that was left out, as ``pipelines.dataset.schema.REJECT_SCHEMA`` stores it."""

    key: str
    kind: str
    ann_id: int | None
    item_id: int | None
    reason: str
    detail: str | None

    @property
    def what(self) -> str:
        """The thing in words: ``object 17``."""
        number = self.ann_id if self.kind == "object" or self.item_id is None else self.item_id
        return self.kind if number is None else f"{self.kind} {number}"


def examples(url: str, manifest: Manifest, most: int = 3) -> list[LeftOut]:
    """Up to ``most`` rejects of each reason, reasons in order of cause; reading stops when all are found."""
    wanted = {reason: min(most, count) for reason, count in manifest.counts.rejects.items()}
    found: dict[str, list[LeftOut]] = {reason: [] for reason in wanted}
    for batch in _batches(url, "rejected") if wanted else ():
        for reason in [reason for reason, count in wanted.items() if len(found[reason]) < count]:
            rows = pc.indices_nonzero(pc.equal(batch["reason"], reason))[: wanted[reason] - len(found[reason])]
            found[reason] += [LeftOut(**row) for row in batch.take(rows).to_pylist()]
        if all(len(found[reason]) == count for reason, count in wanted.items()):
            break
    return [each for reason in by_cause(manifest.counts.rejects) for each in found[reason]]


def first_rejects(url: str, wanted: Iterable[tuple[str, str]]) -> dict[str, LeftOut]:
    """The first reject of each kind with its reason, by kind; reading stops when all are found.

    Args:
        url: folder of the set.
        wanted: pairs of kind and reason.
    """
    left, found = dict(wanted), {}
    for batch in _batches(url, "rejected") if left else ():
        for kind, reason in list(left.items()):
            same = pc.and_(pc.equal(batch["kind"], kind), pc.equal(batch["reason"], reason))
            rows = pc.indices_nonzero(same)[:1]
            if len(rows):
                found[kind] = LeftOut(**batch.take(rows).to_pylist()[0])
                del left[kind]
        if not left:
            break
    return found


def left_out(url: str, key: str) -> list[LeftOut]:
    """All that was left out of one image (its key or image id); with an image, what belongs to it is not repeated."""
    found: list[LeftOut] = []
    for folder in _FOLDERS:
        for batch in _batches(url, folder):
            keys = batch["key"]
            same = pc.or_(pc.equal(keys, key), pc.ends_with(keys, f"/{key}"))
            found += [LeftOut(**row) for row in batch.filter(same).to_pylist()]
    images = {each.key for each in found if each.kind == "image"}
    return [each for each in found if each.reason != "image_rejected" or each.key not in images]


def _batches(url: str, name: str) -> Iterator[pa.RecordBatch]:
    for file in Folder(url).names(name):
        if not file.endswith(".parquet"):
            continue
        with reading_shard(url, f"{name}/{file}", pre_buffer=False) as opened:
            yield from opened.iter_batches(_ROWS_AT_ONCE)
