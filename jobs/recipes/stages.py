"""The kinds of stages that a recipe can name: each is one verb with typed options.

A stage's options are checked before anything runs. Text options may hold ``${name}``: the folder of an earlier stage,
or one of ``BUILT_IN``. What a stage returns is kept in its done marker and in the recipe's summary.
"""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from jobs.common.config_tree import build_config, read_yaml
from jobs.evaluation.store import METRICS_FILE
from jobs.recipes.model_stages import ExportStage, ToyModelStage
from jobs.recipes.prepare_stage import PrepareStage, PrepareToyStage, written_out
from jobs.recipes.stage import Stage, StageContext, digest_of, merge
from jobs.training.config import CONFIGS, TrainConfig
from padt.data.tasks import GROUNDED_TASKS
from padt.errors import look_up
from padt.metrics.sentence_kinds import compile_kinds
from padt.metrics.table import require_metric
from pipelines.io.storage import Folder


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

    def places(self) -> dict[str, Any]:
        """Model and sets: a training knows them by their content."""
        return {"model": self.tree.model, "data": [each.url for each in self.tree.data.sets]}

    def uses_ray(self) -> bool:
        """Where Ray Train trains."""
        from jobs.training.launch import launcher_of

        return launcher_of(self.tree) == "ray"

    def digest(self) -> str:
        """Only what shapes the weights: where checkpoints and logs go does not."""
        return digest_of(self.tree.shaping_options())

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.training.train.run_train``."""
        from jobs.planning.plan import warn_of_memory
        from jobs.training.train import run_train

        warn_of_memory(self.tree)

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
    """Measure a model on prepared sets.

    Attributes:
        model: model folder or registry alias.
        data: prepared set, or several: each then has a folder of its name below the stage's.
        tasks: what to measure; none = all that the set has truth for.
        limit: only the first so many images.
        batch_size: questions answered together.
        workers: Ray actors that answer; 0 = this process.
        sentence_kinds: kinds of sentences that are also scored apart, see ``jobs.evaluation.scoring.read_kinds``.
        released: also score by the released scorers' protocols (metrics ``released_*``), as the paper does.
        max_new_tokens, num_beams, forbid_repeats, masks, text_boxes: how to generate and read answers, see
            ``padt.inference.requests.GenerationSettings``.
    """

    kind: ClassVar[str] = "evaluate"
    not_shaping: ClassVar[frozenset[str]] = frozenset({"batch_size", "workers"})
    model: str
    data: str | list[str]
    tasks: list[str] | None = None
    limit: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    workers: int = Field(0, ge=0)
    sentence_kinds: dict[str, str] = Field(default_factory=dict)
    released: bool = False
    max_new_tokens: int = Field(1024, ge=1)
    num_beams: int = Field(1, ge=1)
    forbid_repeats: bool = False
    masks: bool = True
    text_boxes: bool = False

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

    @field_validator("data")
    @classmethod
    def _apart(cls, data: str | list[str]) -> str | list[str]:
        names = [data] if isinstance(data, str) else [posixpath.basename(url.rstrip("/")) for url in data]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"data names {', '.join(names) or 'no set'}: give one set or more, each of another name")
        return data

    def uses_ray(self) -> bool:
        """Where several actors answer."""
        return self.workers > 1

    def sets(self, folder: str) -> dict[str, str]:
        """Prepared sets, by the folder that each one's scores go to, where the stage's is ``folder``."""
        if isinstance(self.data, str):
            return {folder: self.data}
        return {posixpath.join(folder, posixpath.basename(url.rstrip("/"))): url for url in self.data}

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.evaluation.evaluate.run_evaluate``."""
        from jobs.evaluation.evaluate import run_evaluate
        from padt.inference.requests import GenerationSettings
        from padt.metrics.refer import mean_of_splits

        settings = GenerationSettings(
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            forbid_repeats=self.forbid_repeats,
            masks=self.masks,
            text_boxes=self.text_boxes,
        )
        results = {
            posixpath.basename(folder): run_evaluate(
                self.model,
                url,
                tasks=self.tasks,
                limit=self.limit,
                batch_size=self.batch_size,
                out_dir=folder,
                settings=settings,
                workers=self.workers,
                sentence_kinds=self.sentence_kinds,
                released=self.released,
                # Sets of one name, splits of RefCOCO, are told apart by their folders.
                set_name=None if isinstance(self.data, str) else posixpath.basename(folder),
            )
            for folder, url in self.sets(context.folder).items()
        }
        found: dict[str, Any] = {"metrics": {}, "counts": {}, "by_kind": {}, "samples": 0, "warnings": []}
        splits: dict[str, dict[str, float]] = {}
        for name, result in results.items():
            found["metrics"] |= result.metrics
            found["counts"] |= result.counts if len(results) == 1 else {name: result.counts}
            found["by_kind"] |= result.kinds if len(results) == 1 else {name: result.kinds}
            found["samples"] += result.samples
            found["warnings"] += result.warnings
            splits |= result.splits
        found["metrics"] |= {f"eval/refcoco_mean/{name}": value for name, value in mean_of_splits(splits).items()}
        return found


class RegisterStage(Stage):
    """Enter a model in the registry and give it an alias, if it passes the gate.

    Attributes:
        model: model folder.
        evaluation: folder of an evaluation stage, or several, whose scores decide and are kept with the version.
        alias: name that other commands load it by.
        thresholds: what metrics must reach, see ``jobs.registry.register.Gate``.
    """

    kind: ClassVar[str] = "register"
    model: str
    evaluation: str | list[str]
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
        from jobs.training.run_identity import training_run_id

        folders = [self.evaluation] if isinstance(self.evaluation, str) else self.evaluation
        version = run_register(
            self.model,
            alias=self.alias,
            evaluations=[each for folder in folders for each in evaluations_in(folder)],
            gate=Gate(thresholds=self.thresholds),
            # Of the training that made the model, not of the recipe around it.
            run_id=training_run_id(self.model) or context.parent_run_id,
        )
        return {
            "uri": version.uri,
            "aliases": list(version.aliases),
            "promoted": version.promoted,
            "objections": list(version.objections),
        }


def evaluations_in(folder: str) -> list[str]:
    """Folders with scores: a stage's own, or those below it where it measured on several sets."""
    place = Folder(folder)
    if place.exists(METRICS_FILE):
        return [folder]
    found = [posixpath.join(folder, name) for name in sorted(place.names()) if place.exists(f"{name}/{METRICS_FILE}")]
    # Where there is none, the registry says so.
    return found or [folder]


KINDS: dict[str, type[Stage]] = {
    stage.kind: stage
    for stage in (
        PrepareToyStage,
        ToyModelStage,
        PrepareStage,
        TrainStage,
        ExportStage,
        EvaluateStage,
        RegisterStage,
    )
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
    if kind is PrepareStage:
        options = written_out(options, where)
    if kind is TrainStage:
        file = options.pop("config", None)
        tree = merge(read_yaml(file, CONFIGS) if file else {}, options)
        # The recipe decides where a stage's results go.
        tree["output"] = f"${{{name}}}"
        return TrainStage(tree=build_config(TrainConfig, tree, overrides, source=where))
    return build_config(kind, options, overrides, source=where)
