"""The kinds of stages that a recipe can name: each is one verb with typed options.

A stage's options are checked before anything runs. Text options may hold ``${name}``: the folder of an earlier stage,
or one of ``BUILT_IN``. What a stage returns is kept in its done marker and in the recipe's summary.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from pydantic import Field, create_model, field_validator, model_validator

from jobs.common.config_tree import Section, build_config, read_yaml
from jobs.training.config import CONFIGS, TrainConfig
from padt.data.tasks import GROUNDED_TASKS
from padt.errors import look_up
from padt.metrics.sentence_kinds import compile_kinds
from padt.metrics.table import require_metric
from pipelines.prepare.options import PrepareOptions

PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
BUILT_IN: dict[str, Callable[[], Path]] = {
    # The small base model that the package ships.
    "toy_base": lambda: Path(__file__).resolve().parents[2] / "pipelines" / "toy" / "base",
}


@dataclass(frozen=True)
class StageContext:
    """What a stage is told about the recipe that it belongs to.

    Attributes:
        name: the stage's name.
        folder: where it leaves everything that it makes (any fsspec URL).
        parent_run_id: MLflow run of the recipe, or None without tracking.
        experiment: MLflow experiment of the recipe, or None without tracking.
        eval_sets: prepared sets that the recipe's evaluations measure on.
    """

    name: str
    folder: str
    parent_run_id: str | None = None
    experiment: str | None = None
    eval_sets: tuple[str, ...] = ()


class Stage(Section):
    """Base of all kinds. ``kind`` is the word that recipes use after ``do:``."""

    kind: ClassVar[str]

    def options(self) -> dict[str, Any]:
        """All options as plain values, to be stored and compared."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Hash of everything that shapes the result: when it changes, the stage's result is out of date."""
        return hashlib.sha256(json.dumps(self.options(), sort_keys=True).encode()).hexdigest()[:16]

    def resolved(self, folders: Mapping[str, str]) -> "Stage":
        """This stage with every ``${name}`` replaced by its folder."""
        return type(self).model_validate(resolve(self.model_dump(mode="json"), folders))

    def perform(self, context: StageContext) -> dict[str, Any]:
        """Do the work and leave it in ``context.folder``.

        Returns:
            Plain values for the done marker; ``metrics`` among them are shown in tables.
        """
        raise NotImplementedError


class PrepareToyStage(Stage):
    """Draw the toy data set and prepare it: ``train/`` and ``val/`` below the stage's folder.

    Attributes:
        scenes: training scenes.
        heldout: scenes kept for evaluation.
        seed: of the drawing; splits never share a scene.
    """

    kind: ClassVar[str] = "prepare-toy"
    scenes: int = Field(4000, ge=1)
    heldout: int = Field(240, ge=1)
    seed: int = Field(0, ge=0)

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.data.prepare.run_prepare_toy``."""
        from jobs.data.prepare import run_prepare_toy, set_facts

        manifests = run_prepare_toy(context.folder, scenes=self.scenes, heldout=self.heldout, seed=self.seed)
        sets = {name: set_facts(posixpath.join(context.folder, name), manifest) for name, manifest in manifests.items()}
        return {"sets": sets}


class _PrepareStage(Stage):
    """Prepare a set from annotation files: the set is ``data/`` below the stage's folder.

    Its options are those of ``PrepareOptions``, the very ones of `padt prepare`.
    """

    kind: ClassVar[str] = "prepare"

    @model_validator(mode="after")
    def _sound(self) -> "_PrepareStage":
        self.prepare_options("data")
        return self

    def prepare_options(self, out: str) -> PrepareOptions:
        """What to prepare, into which folder."""
        return PrepareOptions(out=out, **self.model_dump())

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.data.prepare.run_prepare``."""
        from jobs.data.prepare import run_prepare, set_facts

        url = posixpath.join(context.folder, "data")
        return {"sets": {"data": set_facts(url, run_prepare(self.prepare_options(url)))}}


# The recipe decides where the set goes; what is there already is the recipe's to keep or redo.
_NOT_A_RECIPES = ("out", "overwrite", "num_cpus")
_HINTS = get_type_hints(PrepareOptions)
PrepareStage = create_model(
    "PrepareStage",
    __base__=_PrepareStage,
    __doc__=_PrepareStage.__doc__,
    **{  # type: ignore[call-overload]
        option.name: (
            _HINTS[option.name],
            () if option.name == "images" else ... if option.default is MISSING else option.default,
        )
        for option in fields(PrepareOptions)
        if option.name not in _NOT_A_RECIPES
    },
)


class TrainStage(Stage):
    """Train: the model is ``model/`` below the stage's folder.

    Attributes:
        tree: options of ``jobs.training.config.TrainConfig``: those of a file (key ``config``) under the recipe's own
            keys.
    """

    kind: ClassVar[str] = "train"
    tree: TrainConfig

    def options(self) -> dict[str, Any]:
        """The training configuration."""
        return self.tree.model_dump(mode="json")

    def digest(self) -> str:
        """Only what shapes the weights: where checkpoints and logs go does not."""
        places = [self.tree.model, *(each.url for each in self.tree.data.sets)]
        text = json.dumps([self.tree.shaping_options(), places], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.training.train.run_train``."""
        from jobs.training.train import run_train

        tracking = self.tree.tracking.model_copy(
            update={
                "parent_run_id": context.parent_run_id,
                "run_name": self.tree.tracking.run_name or context.name,
                "experiment": context.experiment or self.tree.tracking.experiment,
            }
        )
        data = self.tree.data.model_copy(
            update={"eval_sets": list(dict.fromkeys([*self.tree.data.eval_sets, *context.eval_sets]))}
        )
        result = run_train(self.tree.model_copy(update={"output": context.folder, "tracking": tracking, "data": data}))
        return {
            "model": result.model_path,
            "metrics": dict(result.metrics),
            "run_id": result.run_id,
            "warnings": list(result.not_logged),
        }


class EvaluateStage(Stage):
    """Measure a model on a prepared set.

    Attributes:
        model: model folder or registry alias.
        data: prepared set.
        tasks: what to measure; none = all that the set has truth for.
        limit: only the first so many images.
        batch_size: questions answered together.
        workers: Ray actors that answer; 0 = this process.
        sentence_kinds: kinds of sentences that are also scored apart, see ``jobs.evaluation.scoring.read_kinds``.
        max_new_tokens, num_beams, forbid_repeats: how to generate, see ``padt.inference.predict.GenerationSettings``.
    """

    kind: ClassVar[str] = "evaluate"
    model: str
    data: str
    tasks: list[str] | None = None
    limit: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    workers: int = Field(0, ge=0)
    sentence_kinds: dict[str, str] = Field(default_factory=dict)
    max_new_tokens: int = Field(1024, ge=1)
    num_beams: int = Field(1, ge=1)
    forbid_repeats: bool = False

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: list[str] | None) -> list[str] | None:
        for task in tasks or ():
            look_up("tasks: task", task, dict.fromkeys(GROUNDED_TASKS))
        return tasks

    @field_validator("sentence_kinds")
    @classmethod
    def _readable(cls, kinds: dict[str, str]) -> dict[str, str]:
        compile_kinds(kinds)
        return kinds

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.evaluation.evaluate.run_evaluate``."""
        from jobs.evaluation.evaluate import run_evaluate
        from padt.inference.requests import GenerationSettings

        result = run_evaluate(
            self.model,
            self.data,
            tasks=self.tasks,
            limit=self.limit,
            batch_size=self.batch_size,
            out_dir=context.folder,
            settings=GenerationSettings(
                max_new_tokens=self.max_new_tokens, num_beams=self.num_beams, forbid_repeats=self.forbid_repeats
            ),
            workers=self.workers,
            sentence_kinds=self.sentence_kinds,
        )
        return {
            "metrics": dict(result.metrics),
            "counts": dict(result.counts),
            "by_kind": dict(result.kinds),
            "samples": result.samples,
            "warnings": list(result.warnings),
        }


class RegisterStage(Stage):
    """Enter a model in the registry and give it an alias, if it passes the gate.

    Attributes:
        model: model folder.
        evaluation: folder of an evaluation, whose scores decide and are kept with the version.
        alias: name that other commands load it by.
        thresholds: what metrics must reach, see ``jobs.registry.register.Gate``.
    """

    kind: ClassVar[str] = "register"
    model: str
    evaluation: str
    alias: str = "champion"
    thresholds: dict[str, float] = Field(default_factory=dict)

    @field_validator("thresholds")
    @classmethod
    def _of_metrics(cls, thresholds: dict[str, float]) -> dict[str, float]:
        for name in thresholds:
            require_metric(name, "thresholds")
        return thresholds

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.registry.register.run_register``."""
        from jobs.registry.register import Gate, run_register

        version = run_register(
            self.model,
            alias=self.alias,
            evaluations=[self.evaluation],
            gate=Gate(thresholds=self.thresholds),
            run_id=context.parent_run_id,
        )
        return {
            "uri": version.uri,
            "aliases": list(version.aliases),
            "promoted": version.promoted,
            "objections": list(version.objections),
        }


KINDS: dict[str, type[Stage]] = {
    stage.kind: stage for stage in (PrepareToyStage, PrepareStage, TrainStage, EvaluateStage, RegisterStage)
}


def build_stage(name: str, entry: Any, source: str, overrides: Sequence[str] = ()) -> Stage:
    """One entry of a recipe as a checked stage.

    Args:
        name: the stage's name.
        entry: its mapping: ``do`` names the kind, the other keys are that kind's options.
        source: the recipe's file, named in errors.
        overrides: ``key.path=value`` changes of this stage's options.

    Raises:
        UserError: the kind is unknown, or an option is unknown or wrong.
    """
    where = f"{source}, stage {name}"
    kind = look_up(f"{where}: kind of stage (do)", entry.get("do") if isinstance(entry, Mapping) else entry, KINDS)
    options = {key: value for key, value in entry.items() if key != "do"}
    if kind is TrainStage:
        file = options.pop("config", None)
        tree = merge(read_yaml(file, CONFIGS) if file else {}, options)
        # The recipe decides where a stage's results go.
        tree["output"] = f"${{{name}}}"
        return TrainStage(tree=build_config(TrainConfig, tree, overrides, source=where))
    return build_config(kind, options, overrides, source=where)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, section by section; lists are replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def references(value: Any) -> set[str]:
    """Names that the ``${name}`` placeholders of nested plain values mention."""
    if isinstance(value, str):
        return set(PLACEHOLDER.findall(value))
    if isinstance(value, Mapping):
        return set().union(*(references(entry) for entry in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(references(entry) for entry in value))
    return set()


def resolve(value: Any, folders: Mapping[str, str]) -> Any:
    """Nested plain values with every ``${name}`` replaced by its folder."""
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda match: folders[match[1]], value)
    if isinstance(value, Mapping):
        return {key: resolve(entry, folders) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(entry, folders) for entry in value]
    return value


def built_in_digest(name: str) -> str:
    """Hash of what a built-in folder holds, so that a changed base model is noticed."""
    folder = BUILT_IN[name]()
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
