"""The answers of two evaluations to the questions that both were asked."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.samples import EvalSample, EvalSet, open_eval_set
from jobs.evaluation.store import METRICS_FILE, AnswerStore
from padt.errors import UserError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """One of two evaluations.

    Attributes:
        url: its folder.
        about: what its plan tells.
        records: answers by sample id.
    """

    url: str
    about: Mapping[str, Any]
    records: Mapping[str, Record]

    @classmethod
    def read(cls, url: str) -> "Side":
        """Read a folder of ``padt evaluate``, any fsspec URL.

        Raises:
            UserError: it holds no answers, or one sample twice.
        """
        folder = url.rstrip("/")
        if posixpath.basename(folder) == METRICS_FILE:
            folder = posixpath.dirname(folder) or "."
        store = AnswerStore(folder)
        plan = store.plan()
        if plan is None:
            raise UserError(
                f"{folder} holds no answers of `padt evaluate`, only scores or nothing: differences with intervals "
                "need the answers."
            )
        records = store.records()
        by_id = {record["id"]: record for record in records}
        if len(by_id) < len(records):
            raise UserError(f"{folder} answers a sample twice: score it with `padt score` to see how many.")
        return cls(folder, plan["about"], by_id)

    @property
    def masks(self) -> bool:
        """Whether masks were asked for."""
        return bool(self.about["settings"]["masks"])


@dataclass(frozen=True)
class Pair:
    """Two evaluations of one set.

    Attributes:
        data: the set.
        sides: the first and the second.
        samples: questions that both have answered, in the set's order.
        counts: questions that are compared, and those that only one of the two was asked.
    """

    data: EvalSet
    sides: tuple[Side, Side]
    samples: tuple[EvalSample, ...]
    counts: dict[str, int]

    @property
    def masks(self) -> bool:
        """Whether masks can be compared."""
        return self.data.has_masks and all(side.masks for side in self.sides)

    def of_task(self, task: str) -> list[EvalSample]:
        """The compared questions of one task."""
        return [sample for sample in self.samples if sample.task == task]


def open_pair(sources: Sequence[str], data_url: str | None = None) -> Pair:
    """Read two evaluations and the set that they are about.

    Args:
        sources: two folders of ``padt evaluate``, any fsspec URLs.
        data_url: the set, where it does not lie any more where it was evaluated.

    Raises:
        UserError: a folder has no answers, the two are about different data or have no question in common, or the set
            is gone or has changed.
    """
    first, second = (Side.read(source) for source in sources)
    prints = [_fingerprint(side) for side in (first, second)]
    if prints[0] != prints[1]:
        raise UserError(
            f"{first.url} and {second.url} are about different data ({prints[0][:8]} and {prints[1][:8]}): evaluate "
            "both on one set."
        )
    url = data_url or str(first.about["data"])
    shared = {record["task"] for record in first.records.values()} & {
        record["task"] for record in second.records.values()
    }
    if not shared:
        raise UserError(f"{first.url} and {second.url} were asked different tasks: evaluate both with the same --task.")
    data = open_eval_set(url, sorted(shared))
    if data.manifest.fingerprint != prints[0]:
        raise UserError(
            f"{url} has changed since it was evaluated, or is another set (data {data.manifest.fingerprint[:8]}, the "
            f"answers are about {prints[0][:8]}): give the set that was asked about as --data."
        )
    known = {sample.id for sample in data.samples}
    both = first.records.keys() & second.records.keys() & known
    if not both:
        raise UserError(
            f"{first.url} and {second.url} have no question in common: evaluate both with the same --limit."
        )
    counts = {
        "compared": len(both),
        "only_first_asked": len(first.records.keys() - second.records.keys()),
        "only_second_asked": len(second.records.keys() - first.records.keys()),
        "unknown": len((first.records.keys() | second.records.keys()) - known),
    }
    return Pair(data, (first, second), tuple(sample for sample in data.samples if sample.id in both), counts)


def _fingerprint(side: Side) -> str:
    """Of the whole set, also where a part was asked about."""
    return str(side.about["data_fingerprint"]).partition("[:")[0]
