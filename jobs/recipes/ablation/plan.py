"""What an ablation is: shared stages, the stages of a cell, rows of changes, and seeds.

An ablation is a recipe with one more section::

    name: mine
    output: runs/mine
    stages:                                   # once, for all cells
      prepare: {do: prepare-toy, scenes: 2000}
    ablation:
      baseline: full
      seeds: [1, 2, 3]
      seeded: [finetune.seed]                 # options that take the cell's seed
      metrics:
        - {metric: precision_at_0.5, title: REC Acc@0.5, scale: 100}
      stages:                                 # once for each cell
        finetune: {do: train, config: toy_finetune, data: {sets: [{url: "${prepare}/train"}]}}
        evaluate: {do: evaluate, model: "${finetune}/model", data: "${prepare}/val"}
      rows:
        - {name: full}
        - {name: plain_ce, title: plain cross-entropy, changes: [finetune.loss.robust=false]}

A cell is a row under one seed. All rows come under the first seed before any comes under the second, so that an
ablation that is cut short says something about every row.
"""

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from jobs.common.config_tree import Section, build_config, read_yaml
from jobs.recipes.load import find_recipe
from jobs.recipes.stage import resolve
from padt.errors import UserError, look_up
from padt.metrics.table import require_metric

SECTION = "ablation"
KEYS = ("name", "about", "output", "experiment", "stages", SECTION)


class Column(Section):
    """A figure of the table.

    Attributes:
        metric: of the cell's last evaluation, without its set (``precision_at_0.5``).
        title: head of the column.
        scale: values are multiplied by it, for per cents.
    """

    metric: str
    title: str = ""
    scale: float = Field(1.0, gt=0)

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        require_metric(metric, "ablation.metrics")
        return metric

    @property
    def head(self) -> str:
        """What tables call it."""
        return self.title or self.metric


class Row(Section):
    """One row of the table.

    Attributes:
        name: letters, digits, ``-`` and ``_``: part of its cells' folders.
        title: what is different, in words; the name if empty.
        changes: ``stage.key=value`` of the cell's stages, as on the command line.
        published: figures of another's table by metric, in the columns' scale, to stand beside what is measured.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str = ""
    changes: list[str] = Field(default_factory=list)
    published: dict[str, float] = Field(default_factory=dict)


class AblationConfig(Section):
    """The section ``ablation`` of a recipe.

    Attributes:
        baseline: row that the others are compared with.
        seeds: one cell a row and seed.
        seeded: options of the cell's stages that take the seed.
        metrics: columns of the table.
        stages: of one cell, as a recipe has them; ``${name}`` may also be a shared stage.
        rows: in the table's order; their names differ.
        curve: metric of the training records that the figure shows over the steps; None = no curves.
        published: where the published figures come from.
    """

    baseline: str
    seeds: list[int] = Field(min_length=1)
    seeded: list[str] = Field(min_length=1)
    metrics: list[Column] = Field(min_length=1)
    stages: dict[str, Any] = Field(min_length=1)
    rows: list[Row] = Field(min_length=1)
    curve: str | None = None
    published: str = ""

    @model_validator(mode="after")
    def _whole(self) -> "AblationConfig":
        if len(self.by_name) < len(self.rows):
            raise ValueError("ablation.rows has a name twice: give each row its own")
        look_up("ablation.baseline: row", self.baseline, self.by_name)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"ablation.seeds {self.seeds} has a seed twice: its cells would be the same")
        shown = {column.metric: None for column in self.metrics}
        for row in self.rows:
            for metric in row.published:
                look_up(f"ablation.rows, {row.name}, published: metric", metric, shown)
        return self

    @property
    def by_name(self) -> dict[str, Row]:
        """The rows by their names."""
        return {row.name: row for row in self.rows}


@dataclass(frozen=True)
class Cell:
    """A row under one seed."""

    row: str
    seed: int

    @property
    def path(self) -> str:
        """Its folder below the ablation's."""
        return f"cells/{self.row}/seed-{self.seed}"


@dataclass(frozen=True)
class Ablation:
    """A checked ablation.

    Attributes:
        name, output, experiment: as of a recipe; ``output`` is absolute, or a URL.
        shared: the recipe of the shared stages, as YAML holds it; without stages where there are none.
        config: the section ``ablation``.
        overrides: changes of all cells.
        shared_overrides: changes of shared stages.
    """

    name: str
    output: str
    experiment: str
    shared: dict[str, Any]
    config: AblationConfig
    overrides: tuple[str, ...]
    shared_overrides: tuple[str, ...]

    def cells(self) -> Iterator[Cell]:
        """All cells, in the order in which they are run."""
        for seed in self.config.seeds:
            for row in self.config.rows:
                yield Cell(row.name, seed)

    def folder(self, cell: Cell) -> str:
        """Where a cell's results lie."""
        return posixpath.join(self.output, cell.path)

    def changes(self, cell: Cell) -> list[str]:
        """Overrides of a cell's recipe: those of all cells, the row's, and the seed."""
        seeds = [f"{key}={cell.seed}" for key in self.config.seeded]
        return resolve([*self.overrides, *self.config.by_name[cell.row].changes, *seeds], self._shared_folders)

    @property
    def _shared_folders(self) -> dict[str, str]:
        return {name: posixpath.join(self.output, "shared", name) for name in self.shared["stages"]}

    def cell_recipe(self, cell: Cell) -> dict[str, Any]:
        """The recipe of a cell, as YAML holds it, its shared stages replaced by their folders."""
        return {
            "name": f"{self.name}/{cell.row}/seed-{cell.seed}",
            "output": self.folder(cell),
            "experiment": self.experiment,
            "stages": resolve(self.config.stages, self._shared_folders),
        }


def is_ablation(file: str) -> bool:
    """Whether a recipe (a YAML file, or a packaged name) has a section ``ablation``."""
    return SECTION in read_yaml(find_recipe(file).path)


def load_ablation(file: str, overrides: Sequence[str] = (), output: str | None = None) -> Ablation:
    """Read and check an ablation.

    Args:
        file: YAML file, or the name of a packaged recipe.
        overrides: ``stage.key=value`` of a shared stage, or of a stage of all cells; ``ablation.key=value``, as
            ``ablation.seeds=[1]``.
        output: run folder in place of the recipe's own.

    Raises:
        UserError: a key, row, metric or override that is missing, unknown or wrong.
    """
    tree = read_yaml(find_recipe(file).path)
    unknown = [key for key in tree if key not in KEYS]
    if unknown:
        raise UserError(f"{file}: an ablation has no key {unknown[0]}: it has {', '.join(KEYS)}.")
    own = [each.partition(".")[2] for each in overrides if each.startswith(f"{SECTION}.")]
    config = build_config(AblationConfig, tree[SECTION], own, source=f"{file}, {SECTION}")
    shared_stages = tree.get("stages") or {}
    twice = sorted(set(shared_stages) & set(config.stages))
    if twice:
        raise UserError(f"{file}: stage {twice[0]} is both shared and a cell's: give one of them another name.")
    by_owner: dict[bool, list[str]] = {True: [], False: []}
    for override in overrides:
        stage = override.partition(".")[0]
        if stage == SECTION:
            continue
        look_up("Override: stage", stage, dict.fromkeys([*shared_stages, *config.stages, SECTION]))
        by_owner[stage in shared_stages].append(override)
    name = str(tree.get("name", Path(file).stem))
    folder = output or tree.get("output") or f"runs/{name}"
    folder = folder.rstrip("/") if "://" in folder else str(Path(folder).expanduser().resolve())
    shared = {key: value for key, value in tree.items() if key != SECTION}
    shared |= {"name": f"{name}/shared", "output": posixpath.join(folder, "shared"), "stages": dict(shared_stages)}
    experiment = str(tree.get("experiment", "padt"))
    return Ablation(name, folder, experiment, shared, config, tuple(by_owner[False]), tuple(by_owner[True]))
