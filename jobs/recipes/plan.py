"""The plan of a recipe: which stages are done, what is left, and what its trainings need. Nothing is started."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jobs.planning.plan import TrainPlan, plan_training
from jobs.planning.rates import Rate
from jobs.planning.sizes import configuration_of
from jobs.recipes.load import Recipe, load_recipe
from jobs.recipes.run import DONE, STARTED, chosen_stages, read_json, refuse_other_options, stage_folders
from jobs.recipes.stages import TrainStage
from padt.errors import UserError
from padt.pretrained.config import PaDTConfig

State = Literal["done", "begun", "left", "left out"]


@dataclass(frozen=True)
class StagePlan:
    """What is ahead for one stage.

    Attributes:
        name, kind, folder: of the stage.
        state: ``begun`` goes on where it stopped; ``left out`` is not what this run is about.
        seconds: that it took, where it is done.
        refused: why it would be refused as it is asked for.
        train: plan of a training that is not done.
        problem: why there is no plan of it.
    """

    name: str
    kind: str
    folder: str
    state: State
    seconds: float | None = None
    refused: str | None = None
    train: TrainPlan | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "train": self.train.to_json() if self.train is not None else None}


@dataclass(frozen=True)
class RecipePlan:
    """What is ahead for a recipe."""

    name: str
    output: str
    stages: list[StagePlan]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"recipe": self.name, "output": self.output, "stages": [each.to_json() for each in self.stages]}


def plan_recipe(
    file: str,
    overrides: Sequence[str] = (),
    *,
    output: str | None = None,
    redo: Sequence[str] = (),
    first: str | None = None,
    only: str | None = None,
    rates: Sequence[Rate] = (),
) -> RecipePlan:
    """Plan a recipe; what it takes is what ``run_recipe`` takes, and ``rates`` that were measured.

    Raises:
        UserError: see ``load_recipe``.
    """
    recipe = load_recipe(file, overrides, output)
    folders = stage_folders(recipe)
    chosen = chosen_stages(recipe, first, only)
    again = recipe.dependents(redo)
    stages = []
    for name in recipe.stages:
        state, seconds = _state(folders[name], name in again, name in chosen)
        refused = None
        if name in chosen and name not in again:
            try:
                refuse_other_options(recipe, name, folders[name])
            except UserError as error:
                refused = str(error)
        train, problem = None, None
        if state in ("begun", "left") and isinstance(recipe.stages[name], TrainStage):
            try:
                train = _plan_stage(recipe, name, folders, rates)
            except UserError as error:
                problem = str(error)
        stages.append(StagePlan(name, recipe.stages[name].kind, folders[name], state, seconds, refused, train, problem))
    return RecipePlan(recipe.name, recipe.output, stages)


def _state(folder: str, again: bool, chosen: bool) -> tuple[State, float | None]:
    done = None if again else read_json(folder, DONE)
    if done is not None:
        return "done", done.get("seconds")
    if not chosen:
        return "left out", None
    return ("begun" if not again and read_json(folder, STARTED) is not None else "left"), None


def _plan_stage(recipe: Recipe, name: str, folders: Mapping[str, str], rates: Sequence[Rate]) -> TrainPlan:
    stage = recipe.stages[name].resolved(folders)
    assert isinstance(stage, TrainStage)
    return plan_training(stage.tree, rates, model_config=_model_of(recipe, stage.tree.model, folders))


def _model_of(recipe: Recipe, model: str, folders: Mapping[str, str]) -> PaDTConfig:
    """Configuration of a model, which may be one that an earlier stage is yet to make: it is that of its base."""
    for name, stage in recipe.stages.items():
        if not isinstance(stage, TrainStage) or model != posixpath.join(folders[name], "model"):
            continue
        if read_json(folders[name], DONE) is None:
            return _model_of(recipe, stage.resolved(folders).tree.model, folders)
    return configuration_of(model)
