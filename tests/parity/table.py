"""The table of comparisons: what was compared, how far apart, how far is allowed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

TOLERANCE = 1e-4
MASK_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Comparison:
    """One line of the table.

    Attributes:
        part: section of the fixture.
        name: the quantity.
        error: largest absolute difference, or the number of unequal entries of an exact comparison.
        tolerance: largest error allowed.
        note: count of values, or why there is nothing to compare.
    """

    part: str
    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Within tolerance; NaN never is."""
        return self.error <= self.tolerance


@dataclass
class Report:
    """Collects comparisons part by part."""

    rows: list[Comparison] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    part: str = ""

    @property
    def ok(self) -> bool:
        """Something was compared, and all of it is within tolerance."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def close(
        self, name: str, ours: Any, theirs: Any, tolerance: float = TOLERANCE, of_largest: float | None = None
    ) -> None:
        """Compare numbers by their largest absolute difference.

        Args:
            name: the quantity.
            ours, theirs: tensors, lists of tensors of equal shapes, or numbers.
            tolerance: absolute.
            of_largest: allow this share of the largest reference value where that is more than ``tolerance``.
        """
        pairs = list(zip(_tensors(ours), _tensors(theirs), strict=False))
        shapes = [tuple(t.shape) for t in _tensors(ours)], [tuple(t.shape) for t in _tensors(theirs)]
        if shapes[0] != shapes[1]:
            self._add(name, math.inf, tolerance, f"shapes {shapes[0]} and {shapes[1]}")
            return
        count = sum(reference.numel() for _, reference in pairs)
        if not count:
            self.skip(name, "empty")
            return
        # NaN must reach the table, so no Python max over tensors.
        differences = torch.cat([(a.double() - b.double()).abs().flatten() for a, b in pairs])
        largest = max(b.double().abs().max().item() for _, b in pairs if b.numel())
        if of_largest is not None:
            tolerance = max(tolerance, of_largest * largest)
        self._add(name, differences.max().item(), tolerance, f"{count:,} values, largest {largest:.3g}")

    def equal(self, name: str, ours: Any, theirs: Any) -> None:
        """Compare integers, words or flags exactly; tensors and sequences entry by entry."""
        left, right = _entries(ours), _entries(theirs)
        if len(left) != len(right):
            self._add(name, math.inf, 0.0, f"{len(left)} entries against {len(right)}")
            return
        wrong = [index for index, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1]]
        note = f"{len(left):,} entries"
        if wrong:
            note += f", first at {wrong[0]}: {left[wrong[0]]!r} against {right[wrong[0]]!r}"
        self._add(name, float(len(wrong)), 0.0, note)

    def fail(self, name: str, note: str) -> None:
        """A part that could not be compared because it raised."""
        self._add(name, math.inf, 0.0, note)

    def skip(self, name: str, reason: str) -> None:
        """Say what is not compared, and why."""
        self.skipped.append((f"{self.part}: {name}", reason))

    def print(self, console: Console) -> None:
        """Print every comparison, then what was left out."""
        table = Table("part", "quantity", "max abs error", "tolerance", "ok", "", box=None, pad_edge=False)
        for row in self.rows:
            verdict = "[green]ok[/green]" if row.ok else "[bold red]NO[/bold red]"
            table.add_row(row.part, row.name, f"{row.error:.3g}", f"{row.tolerance:.3g}", verdict, row.note)
        console.print(table)
        for name, reason in self.skipped:
            console.print(f"[dim]not compared: {name} ({reason})[/dim]", highlight=False)
        bad = sum(not row.ok for row in self.rows)
        console.print(f"{len(self.rows)} quantities compared, {bad} above tolerance.")

    def _add(self, name: str, error: float, tolerance: float, note: str) -> None:
        self.rows.append(Comparison(self.part, name, error, tolerance, note))


def _tensors(value: Any) -> list[Tensor]:
    items: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    return [torch.as_tensor(item) for item in items]


def _entries(value: Any) -> Sequence[Any]:
    if isinstance(value, Tensor):
        return value.flatten().tolist()
    return list(value) if isinstance(value, list | tuple) else [value]
