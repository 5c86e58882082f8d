"""Training configuration: one typed tree, read from YAML files and dotted overrides.

Unknown keys are errors that name the nearest known key. The resolved tree is saved with everything a run makes.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from padt.data.tasks import TASKS
from padt.data.vrt import VRTRule
from padt.errors import UserError


class Section(BaseModel):
    """Base of every part of the tree: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SetConfig(Section):
    """One prepared data set of the mixture.

    Attributes:
        url: folder of the set (any fsspec URL); it holds ``manifest.json``.
        tasks: visits of each sample of a task in one epoch: 1 = once, 2 = twice with different draws, 0.5 = one half
            this epoch and the other half in the next. Tasks that are left out are not trained on this set. None
            named = each task that the set has samples of, once.
        repeat: how often the whole set is listed (the released Pro mix lists COCO twice).
        items_per_image: at most this many sentences or captions of one image in an epoch (others come in later epochs).
        sentences_per_sample: up to this many sentences of an image are asked one after another in one conversation, for
            which the image is encoded once; 1 = each alone, as released.
        negatives: share of the questions of ``detect`` and ``refer`` that ask for what is not in the image; the set
            must be annotated for all of its classes. Not in the released recipe.
        augment: whether ``data.augment`` applies to this set.
    """

    url: str
    tasks: dict[str, float] = Field(default_factory=dict)
    repeat: int = Field(default=1, ge=1)
    items_per_image: int | None = Field(default=None, ge=1)
    sentences_per_sample: int = Field(default=1, ge=1)
    negatives: dict[Literal["detect", "refer"], Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    augment: bool = True

    @model_validator(mode="after")
    def _check_tasks(self) -> "SetConfig":
        for task, weight in self.tasks.items():
            if task not in TASKS:
                raise ValueError(f"task {task!r} is unknown{_hint(task, TASKS)}; use {', '.join(TASKS)}")
            if weight < 0:
                raise ValueError(f"the weight of task {task!r} is {weight}: give a number >= 0")
        return self


class BatchingConfig(Section):
    """Batches under a budget in place of a fixed number of samples: see ``pipelines.loader.batching.Batching``.

    Attributes:
        max_tokens: positions of one worker's padded batch, image placeholders included; null = no limit.
        max_patches: patches (28x28 pixels) of all images of one worker's batch; null = no limit.
    """

    max_tokens: int | None = Field(default=None, ge=1)
    max_patches: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _some_budget(self) -> "BatchingConfig":
        if self.max_tokens is None and self.max_patches is None:
            raise ValueError("no budget is given: set max_tokens or max_patches, or leave the section out")
        return self


class AugmentConfig(Section):
    """Random views of images: see ``pipelines.loader.augment.AugmentOptions``. Not in the released recipe.

    Attributes:
        flip: probability of mirroring left to right; words of direction are swapped, in English only.
        scale: smallest and largest factor of the image's sides, within the model's resize policy.
        crop: probability of showing a window only, with all that the sample's sentence or caption speaks of.
        crop_area: smallest and largest share of the image that a window shows.
        min_visible: share of an object's area from which on it counts as shown.
    """

    flip: float = Field(default=0.0, ge=0, le=1)
    scale: tuple[float, float] = (1.0, 1.0)
    crop: float = Field(default=0.0, ge=0, le=1)
    crop_area: tuple[float, float] = (0.5, 1.0)
    min_visible: float = Field(default=0.5, ge=0, le=1)


class DataConfig(Section):
    """What is trained on, and how samples become batches.

    Attributes:
        sets: the mixture.
        window: samples of this many global batches are sorted by patch grid: a batch has images of similar size.
        last: what becomes of an epoch's last incomplete batch: ``fill`` it from the epoch's start, or ``drop`` it.
        batching: a budget of tokens and patches for a batch; ``batch_size`` is then the most samples of one. Samples
            that fit into no batch are left out and counted.
        augment: random views of images.
        measured_on: prepared sets (``SET`` or ``SET:split``) that the model will be measured on: they are not trained
            on, and a warning says where the mixture holds their images.
    """

    sets: list[SetConfig] = Field(min_length=1)
    window: int = Field(default=32, ge=1)
    last: Literal["fill", "drop"] = "fill"
    batching: BatchingConfig | None = None
    augment: AugmentConfig | None = None
    measured_on: list[str] = Field(default_factory=list)


class TaskConfig(Section):
    """Draws of prompts and answers: see ``padt.data.tasks.TaskOptions``. Class names come from each set's manifest."""

    vrt_rule: VRTRule = "random"
    num_vrts: int = Field(default=5, ge=1)
    max_names: int = Field(default=100, ge=1)
    drop_names: float = Field(default=0.5, ge=0, le=1)
    max_per_class: int = Field(default=50, ge=1)
    skip_crowd: bool = False


class ReaderConfig(Section):
    """How samples reach a worker.

    Attributes:
        ray: read, decode, render and tokenise in Ray Data processes; False does it in a thread of the worker.
        processes: reading processes of one worker.
        batches_per_task: batches that one Ray task makes: more = less overhead, later first batch.
        prefetch: collated batches that wait in the worker.
    """

    ray: bool = True
    processes: int = Field(default=1, ge=1)
    batches_per_task: int = Field(default=4, ge=1)
    prefetch: int = Field(default=4, ge=1)


class OptimizerConfig(Section):
    """AdamW and its learning rate.

    Attributes:
        lr: peak learning rate.
        clip: largest norm of the whole gradient; 0 = no clipping.
        warmup_steps, warmup_fraction: steps (or share of all steps) of linear rise from 0; give at most one.
        schedule: fall after the warm-up.
        floor: last learning rate as a share of the peak.
        lr_scale: factor by part (``vision``, ``language``, ``prototypes``, ``decoder``) or by a pattern of parameter
            names (``re.search``, such as ``lora_``); the first that fits counts.
        freeze: parts or patterns of parameters that are not trained.
        no_decay_1d: leave biases and norms without weight decay.
    """

    lr: float = Field(default=2e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    no_decay_1d: bool = True
    clip: float = Field(default=1.0, ge=0)
    warmup_steps: int | None = Field(default=None, ge=0)
    warmup_fraction: float | None = Field(default=None, ge=0, le=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    floor: float = Field(default=0.0, ge=0, le=1)
    lr_scale: dict[str, float] = Field(default_factory=dict)
    freeze: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_warmup(self) -> "OptimizerConfig":
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            raise ValueError("warmup_steps and warmup_fraction are both set: give one of them")
        return self


class PrototypeWarmupConfig(Section):
    """First steps in which the decoder gets prototypes in place of the language model's states.

    The released recipe: the first quarter of the epochs, at most 300 steps.
    """

    share: float = Field(default=0.25, ge=0, le=1)
    max_steps: int = Field(default=300, ge=0)


class TrainedParts(Section):
    """Which parts of the model are trained; the released recipe trains all of them.

    Attributes:
        vision: the vision tower with its merger; false by default beside ``lora``.
        language: the language model with embeddings and head; with ``lora`` its adapters are trained in its place.
        prototypes: ``f_vp``, which makes prototypes of patches.
        decoder: the object decoder.
    """

    vision: bool = True
    language: bool = True
    prototypes: bool = True
    decoder: bool = True


class LoraConfig(Section):
    """LoRA on the language model: see ``padt.checkpoints.lora.LoraSettings``. Its other weights are frozen then.

    Attributes:
        rank: inner width of the updates.
        alpha: their scale is ``alpha / rank``.
        dropout: share of an adapter's inputs that are dropped in training.
        targets: names of linear maps inside each layer of the language model; null = all of them.
    """

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] | None = Field(default=None, min_length=1)


class RecomputeConfig(Section):
    """Gradient checkpointing: parts whose activations are computed again in backward instead of being kept.

    ``true`` and ``false`` in place of this section mean all parts and none. Results are the same either way.
    """

    vision: bool = False
    language: bool = False
    decoder: bool = False


class CheckpointConfig(Section):
    """Attributes: every: optimiser steps between checkpoints (0 = none); keep: newest ones that stay."""

    every: int = Field(default=100, ge=0)
    keep: int = Field(default=2, ge=1)


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
        batch_size: samples of one worker in one forward pass; the most of them with ``data.batching``.
        accumulation: forward passes of one optimiser step.
        steps, epochs: length of the run; give one of them.
        train: which parts are trained.
        lora: low-rank adapters in place of training the language model whole. The stage then leaves ``adapter/`` beside
            ``model/``, which holds the merged weights.
        loss: fields of ``padt.model.losses.LossSettings``.
        zero_stage: DeepSpeed ZeRO stage.
        workers: training processes; each holds one GPU if ``gpu`` is set.
        gradient_checkpointing: parts that trade a second forward pass for memory.
        threads_per_worker: CPU threads of PyTorch in a worker (more than the free cores slows it down badly).
        max_failures: how often a worker group that died is restored from its last checkpoint.
        log_every: optimiser steps between metric records.
    """

    model: str
    output: str
    data: DataConfig
    task: TaskConfig = TaskConfig()
    reader: ReaderConfig = ReaderConfig()
    batch_size: int = Field(default=16, ge=1)
    accumulation: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    seed: int = Field(default=42, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainedParts = TrainedParts()
    lora: LoraConfig | None = None
    loss: dict[str, Any] = Field(default_factory=dict)
    prototype_warmup: PrototypeWarmupConfig = PrototypeWarmupConfig()
    precision: Literal["fp32", "bf16"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    gradient_checkpointing: RecomputeConfig = RecomputeConfig()
    attn_implementation: str = "auto"
    workers: int = Field(default=1, ge=1)
    gpu: bool = False
    cpus_per_worker: float = Field(default=1, gt=0)
    threads_per_worker: int = Field(default=1, ge=1)
    max_failures: int = Field(default=3, ge=-1)
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = Field(default=10, ge=1)
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("the length of the run is unclear: set either steps or epochs")
        return self

    @model_validator(mode="before")
    @classmethod
    def _frozen_vision_beside_lora(cls, values: Any) -> Any:
        # Settled here, so that the saved configuration says it.
        parts = values.get("train") or {} if isinstance(values, dict) else None
        if not isinstance(parts, dict) or values.get("lora") is None or "vision" in parts:
            return values
        return {**values, "train": {**parts, "vision": False}}

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _all_or_none(cls, value: Any) -> Any:
        return dict.fromkeys(RecomputeConfig.model_fields, value) if isinstance(value, bool) else value

    def trained_parts(self) -> dict[str, bool]:
        """Part of the model -> whether its own weights are trained (``padt.checkpoints.lora.set_trainable``)."""
        return {**self.train.model_dump(), "language": self.train.language and self.lora is None}

    def result_hash(self) -> str:
        """Hash of everything that shapes the resulting weights (not: where they go, how they are logged or retried)."""
        left_out = {"output", "tracking", "checkpoint", "reader", "max_failures", "log_every", "gradient_checkpointing"}
        tree = self.model_dump(mode="json", exclude=dict.fromkeys(left_out, True) | {"data": {"measured_on"}})
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved tree as YAML that ``load_config`` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


Config = TypeVar("Config", bound=Section)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration: a YAML file (or the name of one in ``configs``), changed by ``key.path=value``.

    Raises:
        UserError: file missing or not YAML, unknown key (names the nearest), wrong value.
    """
    return build_config(TrainConfig, read_yaml(path), overrides, source=str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping from a file, or from the packaged ``jobs/training/configs/<name>.yaml``.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    file = Path(path)
    folder = Path(__file__).parent / "configs"
    if not file.exists() and (folder / f"{file.name.removesuffix('.yaml')}.yaml").exists() and file.parent == Path("."):
        file = folder / f"{file.name.removesuffix('.yaml')}.yaml"
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UserError(f"Configuration file {path} does not exist: give a YAML file or one of {known}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"Configuration file {path} cannot be read as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"Configuration file {path} holds no keys: it must be a YAML mapping such as 'model: ...'.")
    return tree


def build_config(cls: type[Config], tree: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "") -> Config:
    """Check a tree of plain values against a typed section after applying overrides.

    Args:
        cls: the section's class.
        tree: nested mapping as YAML gives it.
        overrides: ``key.path=value``; values are YAML, list entries go by number (``data.sets.0.url=...``).
        source: named in errors.
    """
    merged = json.loads(json.dumps(tree, default=str))
    for override in overrides:
        _apply(merged, override)
    _check_keys(cls, merged, "", source)
    try:
        return cls.model_validate(merged)
    except ValidationError as error:
        where = f" in {source}" if source else ""
        lines = [f"  {'.'.join(str(p) for p in e['loc']) or '(all)'}: {_reason(e)}" for e in error.errors()]
        raise UserError(f"The configuration{where} does not hold:\n" + "\n".join(lines)) from error


def _reason(entry: Any) -> str:
    given = "" if entry["type"] in ("missing", "value_error") else f" (given: {entry['input']!r})"
    return entry["msg"].removeprefix("Value error, ") + given


def _apply(tree: Any, override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or not path.strip():
        raise UserError(f"Override {override!r} is not key.path=value: write for example optimizer.lr=1e-4.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"The value of override {override!r} is not YAML: quote it.") from error
    *parents, last = path.strip().split(".")
    node = tree
    for name in parents:
        node = _child(node, name, override)
        if not isinstance(node, (dict, list)):
            raise UserError(f"Override {override!r}: {name!r} is a value, not a section, so nothing lies below it.")
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, name: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, name, override)]
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _position(node: list, name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise UserError(f"Override {override!r}: {name!r} is not an entry of a list of {len(node)}: count from 0.")
    return int(name)


def _check_keys(cls: type[BaseModel], tree: Any, prefix: str, source: str) -> None:
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        if key not in cls.model_fields:
            where = f" in {source}" if source else ""
            raise UserError(f"Unknown key {prefix}{key}{where}{_hint(str(key), cls.model_fields)}.")
        nested = _section_of(cls.model_fields[key].annotation)
        if nested is not None:
            entries = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
            for number, entry in entries:
                _check_keys(nested, entry, f"{prefix}{key}." + ("" if number is None else f"{number}."), source)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _section_of(argument)
        if found is not None:
            return found
    return None


def _hint(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else f": known are {', '.join(known)}"
