"""``padt compare`` of two evaluations: read, compare, print, and write."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.common import console
from jobs.evaluation.comparison.compare import PairedComparison, compare_pair
from jobs.evaluation.comparison.page import COUNTS, comparison_page, difference_cells, tally_head, tally_rows
from jobs.evaluation.comparison.pair import open_pair
from padt.errors import UserError
from padt.metrics.paired.resampling import LEVEL, RESAMPLES
from padt.metrics.table import in_order, label, written
from pipelines.io.storage import Folder

PAGE_FILE = "compare.html"
JSON_FILE = "compare.json"


@dataclass(frozen=True)
class ComparedEvaluations:
    """What is printed of two evaluations.

    Attributes:
        found: how they differ.
    """

    found: PairedComparison

    def tables(self, names: tuple[str, str], contains: str = "") -> Iterator[Any]:
        """Differences, wins and counts, for the terminal.

        Args:
            names: of the two.
            contains: only metrics whose name contains this.
        """
        rows = [
            [label(name), written(name, one.first), written(name, one.second), *difference_cells(name, one)]
            for name in in_order(self.found.differences)
            if contains in name and (one := self.found.differences[name])
        ]
        head = ["metric", *(f"{name}>" for name in names), "difference>", f"{LEVEL:.0%} interval>", "clear"]
        yield console.table(f"{names[1]} minus {names[0]}, {self.found.draws:,} draws of images", head, rows)
        columns = [column if number == 0 else f"{column}>" for number, column in enumerate(tally_head(names))]
        yield console.table("Who did better (p: McNemar)", columns, tally_rows(self.found))
        counts = [[COUNTS[name], count] for name, count in self.found.counts.items() if count]
        yield console.table("Counts", ["what", "number>"], counts)


def compare_evaluations(
    sources: Sequence[str],
    names: tuple[str, str],
    out: str | None = None,
    data: str | None = None,
    *,
    draws: int = RESAMPLES,
    seed: int = 0,
    synonyms: str | None = None,
    pictures: int = 6,
) -> ComparedEvaluations:
    """Compare two folders of ``padt evaluate``.

    Args:
        sources: the folders, any fsspec URLs.
        names: what they are called.
        out: folder for ``compare.html`` and ``compare.json``, any fsspec URL; None = nothing is written.
        data: the set, where it does not lie any more where it was evaluated.
        draws: of the bootstrap.
        seed: of the draws.
        synonyms: YAML file of other names of categories that answers use.
        pictures: of each task and each way of disagreeing.

    Raises:
        UserError: the two cannot be compared; the message says why.
    """
    if out is not None:
        Folder(out).check_target()
    pair = open_pair(sources, data)
    found = compare_pair(pair, draws, seed, synonyms)
    if not found.differences:
        raise UserError("The two evaluations have no metric in common: evaluate both with the same --task.")
    if out is not None:
        folder = Folder(out)
        folder.write(PAGE_FILE, comparison_page(pair, found, names, pictures))
        folder.write(JSON_FILE, json.dumps(found.to_dict(names), indent=1, allow_nan=False) + "\n")
    return ComparedEvaluations(found)
