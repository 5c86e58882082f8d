"""How the command line shows the stages of a recipe."""

from rich.table import Table
from rich.text import Text

from jobs.common.console import err, shorter, table
from jobs.recipes.records import Observer, RecipeResult, StageRecord


def stages_table(result: RecipeResult) -> Table:
    """What each stage of a recipe made, where, and how long it took."""
    rows = [
        [
            record.name,
            record.kind,
            f"{record.seconds:,.1f}",
            "already done" if record.skipped else "done",
            shorter(record.folder),
        ]
        for record in result.stages
    ]
    return table(f"Recipe {result.name}", ["stage", "kind", "seconds>", "", "folder"], rows)


class StageLines(Observer):
    """Tells on stderr which stage begins and how it ended."""

    def __init__(self) -> None:
        super().__init__(self._begin, self._end)

    def _begin(self, name: str, position: int, count: int) -> None:
        err.rule(Text(f"{position}/{count} {name}", "bold"), align="left")

    def _end(self, record: StageRecord) -> None:
        if record.skipped:
            err.print(f"{record.name}: already done ({shorter(record.folder)})")
        else:
            err.print(f"{record.name}: done in {record.seconds:.0f} s ({shorter(record.folder)})")
