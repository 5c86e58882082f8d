"""What running a recipe tells: records of its stages, and the calls that report them. Standard library only."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageRecord:
    """What became of a stage. ``seconds`` is what it took when it was done, also where this run skipped it."""

    name: str
    kind: str
    folder: str
    seconds: float
    skipped: bool
    result: dict[str, Any]


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe has made."""

    name: str
    output: str
    stages: list[StageRecord]
    run_id: str | None = None
    tracking_uri: str | None = None
    summary_path: str = ""

    def __getitem__(self, stage: str) -> StageRecord:
        return next(record for record in self.stages if record.name == stage)

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Metrics of every evaluation, by stage."""
        return {record.name: record.result["metrics"] for record in self.stages if record.kind == "evaluate"}

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last evaluation."""
        return list(self.scores.values())[-1] if self.scores else {}


@dataclass
class Observer:
    """Calls that tell how a recipe gets on; the command line draws them."""

    started: Callable[[str, int, int], None] = field(default=lambda name, number, count: None)
    finished: Callable[[StageRecord], None] = field(default=lambda record: None)
