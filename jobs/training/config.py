"""Training configuration: one typed tree, made of the options of the components that it steers.

The resolved tree is saved with everything a run makes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.common.config_tree import Section, build_config, read_yaml
from jobs.training.optimizer import OptimizerConfig
from padt.data.tasks import TaskOptions
from padt.model.losses import LossSettings
from padt.model.trainable import PARTS, LoraSettings
from pipelines.loader.augment import AugmentOptions
from pipelines.loader.batching import Batching
from pipelines.loader.mixture import SetSpec
from pipelines.loader.reader import ReaderOptions

CONFIGS = Path(__file__).parent / "configs"
# Options that do not shape the weights; everything else does, new options too.
NOT_SHAPING: Any = {
    **dict.fromkeys(
        ("model", "output", "reader", "checkpoint", "tracking", "max_failures", "max_skipped_steps", "log_every"), True
    ),
    **dict.fromkeys(("gpu", "gpu_gib", "cpus_per_worker", "threads_per_worker", "attn_implementation"), True),
    **dict.fromkeys(("gradient_checkpointing", "packing", "engine", "launcher"), True),
    **dict.fromkeys(("workers", "batch_size", "gradient_accumulation_steps", "global_batch_size"), True),
    "data": {"eval_sets"},
    "loss": {"chunk_rows"},
}


class DataConfig(Section):
    """What is trained on, and how samples become batches.

    Attributes:
        sets: the mixture.
        window: samples of this many global batches are sorted by patch grid: a batch has images of similar size.
        last: what becomes of an epoch's last incomplete batch: ``fill`` it from the epoch's start, or ``drop`` it.
        batching: a budget of tokens and patches for a batch; ``batch_size`` is then the most samples of one. Samples
            that fit into no batch are left out and counted.
        augment: random views of images. Not in the released recipe.
        eval_sets: prepared sets (``SET`` or ``SET:split``) that the model will be measured on: they are not trained on,
            and a warning says where the mixture holds their images.
    """

    sets: list[SetSpec] = Field(min_length=1)
    window: int = Field(default=32, ge=1)
    last: Literal["fill", "drop"] = "fill"
    batching: Batching | None = None
    augment: AugmentOptions | None = None
    eval_sets: list[str] = Field(default_factory=list)


class PrototypeWarmupConfig(Section):
    """First steps in which the decoder gets prototypes in place of the language model's states.

    The released recipe: the first quarter of the epochs, at most 300 steps.
    """

    share: float = Field(default=0.25, ge=0, le=1)
    max_steps: int = Field(default=300, ge=0)


class RecomputeConfig(Section):
    """Gradient checkpointing: parts whose activations are computed again in backward instead of being kept.

    ``true`` and ``false`` in place of this section mean all parts and none. Results are the same either way.
    """

    vision: bool = False
    language: bool = False
    decoder: bool = False


class CheckpointConfig(Section):
    """Checkpoints of a run; its last step has one, too.

    Attributes:
        every: optimiser steps between them (0 = none at all).
        keep: newest ones that stay.
    """

    every: int = Field(default=100, ge=0)
    keep: int = Field(default=2, ge=1)


class ArchitectureConfig(Section):
    """Switches of PaDT's own parts in place of the model folder's; null = as the folder says. For ablations.

    A model that was trained with one setting does not work with the other: its parts have to learn anew.

    Attributes:
        feature_order: of the image features in the decoder; ``reference`` mixes orders as the released code does.
        use_visual_prototype_projection: prototypes are f_vp of the patches' features; off = the features themselves.
    """

    feature_order: Literal["raster", "reference"] | None = None
    use_visual_prototype_projection: bool | None = None

    def given(self) -> dict[str, Any]:
        """The switches that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class TrackingConfig(Section):
    """MLflow.

    Attributes:
        enabled: log to MLflow (URI from ``MLFLOW_TRACKING_URI``, else ``sqlite:///mlflow.db`` in the working folder).
        experiment: experiment of the run.
        run_name: defaults to the name of the output folder.
        parent_run_id: run of the recipe that this stage belongs to.
        tags: further tags.
    """

    enabled: bool = True
    experiment: str = "padt"
    run_name: str | None = None
    parent_run_id: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)


class TrainConfig(Section):
    """One training stage.

    Attributes:
        model: model folder to start from (any layout that ``padt.load_model`` takes).
        output: folder of the run (any fsspec URL): checkpoints, metrics, and ``model/`` at the end.
        max_pixels: largest area of resized pictures, in training and for the model that comes of it; the sets must be
            prepared with the same (`padt prepare --max-pixels`). None = as the model to start from has it.
        task: draws of prompts and answers; class names come from each set's manifest.
        batch_size: samples of one worker in one forward pass (a micro-batch); the most of them with ``data.batching``.
        gradient_accumulation_steps: forward passes of each worker in one optimiser step.
        global_batch_size: samples of one optimiser step on all workers together (the most of them with
            ``data.batching``), in place of ``gradient_accumulation_steps``: a multiple of ``batch_size``. Each worker
            takes its share of the micro-batches, however many workers there are; a run goes on with any number of them.
        steps, epochs: length of the run; give one of them.
        freeze: parts of the model (``vision``, ``language``, ``prototypes``, ``decoder``) or patterns of parameter
            names (``re.search``) that are not trained. The released recipe trains all; beside ``lora`` the vision tower
            is frozen by default.
        architecture: switches of PaDT's own parts.
        lora: low-rank adapters in place of training the language model whole. The stage then leaves ``adapter/`` beside
            ``model/``, which holds the merged weights.
        zero_stage: DeepSpeed ZeRO stage; nothing is sharded with one worker.
        engine: ``torch`` (plain PyTorch, which does not shard), ``deepspeed``, or ``auto``: PyTorch with one worker or
            at ZeRO 0, else DeepSpeed. A run goes on with the engine that wrote its checkpoint.
        launcher: ``ray`` (Ray Train), ``local`` (one worker, in this process, without Ray), or ``auto``: local for one
            worker where there is no cluster.
        workers: training processes; each holds one GPU if ``gpu`` is set.
        gpu_gib: memory of one GPU in GiB: a run whose plan needs more is warned of before anything starts.
        gradient_checkpointing: parts that trade a second forward pass for memory.
        packing: texts of a batch in one sequence, so that the language model works on no padding (the same losses).
            ``auto``: where FlashAttention computes the attention; other kernels take the time of the whole square.
        threads_per_worker: CPU threads of PyTorch in a worker (more than the free cores slows it down badly).
        max_failures: how often a worker group that died is restored from its last checkpoint.
        max_skipped_steps: steps in a row whose loss or gradient may be other than finite. Each is left out on all
            workers alike, and the keys of its samples are kept in ``<output>/skipped``; one more ends the run.
        log_every: optimiser steps between metric records.
    """

    model: str
    output: str
    data: DataConfig
    max_pixels: int | None = Field(default=None, ge=1)
    task: TaskOptions = TaskOptions()
    reader: ReaderOptions = ReaderOptions()
    batch_size: int = Field(default=16, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    global_batch_size: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    seed: int = Field(default=42, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    freeze: list[str] = Field(default_factory=list)
    architecture: ArchitectureConfig = ArchitectureConfig()
    lora: LoraSettings | None = None
    loss: LossSettings = LossSettings()
    prototype_warmup: PrototypeWarmupConfig = PrototypeWarmupConfig()
    precision: Literal["fp32", "bf16"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    engine: Literal["auto", "deepspeed", "torch"] = "auto"
    launcher: Literal["auto", "ray", "local"] = "auto"
    gradient_checkpointing: RecomputeConfig = RecomputeConfig()
    attn_implementation: str = "auto"
    packing: bool | Literal["auto"] = "auto"
    workers: int = Field(default=1, ge=1)
    gpu: bool = False
    gpu_gib: float | None = Field(default=None, gt=0)
    cpus_per_worker: float = Field(default=1, gt=0)
    threads_per_worker: int = Field(default=1, ge=1)
    max_failures: int = Field(default=3, ge=-1)
    max_skipped_steps: int = Field(default=3, ge=0)
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = Field(default=10, ge=1)
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check_whole(self) -> "TrainConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("the length of the run is unclear: set either steps or epochs")
        if self.lora is not None and "language" in self.freeze:
            raise ValueError("lora trains adapters on the language model: take 'language' out of freeze, or leave lora")
        if set(PARTS) <= set(self.freeze):
            raise ValueError("freeze names all parts, so nothing is left to train: take one out")
        if self.global_batch_size is not None and self.gradient_accumulation_steps > 1:
            raise ValueError("global_batch_size settles gradient_accumulation_steps: give one of them")
        if self.global_batch_size is not None and self.global_batch_size % self.batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is no multiple of batch_size {self.batch_size}: change one"
            )
        if self.launcher == "local" and self.workers > 1:
            raise ValueError(
                f"launcher=local trains in one process: set workers=1 (now {self.workers}), or launcher=ray"
            )
        if self.task.class_names:
            raise ValueError("task.class_names come from each set's manifest: leave them out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _frozen_vision_beside_lora(cls, values: Any) -> Any:
        # Settled here, so that the saved configuration says it.
        if not isinstance(values, dict) or values.get("lora") is None or "freeze" in values:
            return values
        return {**values, "freeze": ["vision"]}

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _all_or_none(cls, value: Any) -> Any:
        return dict.fromkeys(RecomputeConfig.model_fields, value) if isinstance(value, bool) else value

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimiser step on all workers; the most of them with ``data.batching``."""
        return self.global_batch_size or self.batch_size * self.gradient_accumulation_steps * self.workers

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one optimiser step on all workers."""
        return self.samples_per_step // self.batch_size

    def shaping_options(self) -> dict[str, Any]:
        """Plain values of all options that shape the resulting weights.

        Left out are those that say where things lie, how they are logged or retried, and on what hardware it runs: an
        interrupted run goes on elsewhere, on another number of workers too: what counts is the samples of a step, and
        how they are cut where that shows. What lies at ``model`` and at the sets' places counts by its content, which
        ``jobs.training.run_identity`` adds.
        """
        tree = self.model_dump(mode="json", exclude=NOT_SHAPING)
        for each in tree["data"]["sets"]:
            del each["url"]
        tree["global_batch_size"] = self.samples_per_step
        dropout = self.lora is not None and self.lora.dropout > 0
        if self.data.batching is not None or self.loss.average == "rank" or dropout:
            tree["batch_size"] = self.batch_size
        return tree


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration: a YAML file (or the name of one in ``configs``), changed by ``key.path=value``.

    Raises:
        UserError: file missing or not YAML, unknown key (names the nearest), wrong value.
    """
    return build_config(TrainConfig, read_yaml(path, CONFIGS), overrides, source=str(path))
