"""The plan of a training: samples, steps, sizes, memory, disk and time, before a cluster or weights are touched.

What is not known is said to be so: lengths are counted from prepared sets, else assumed and told; times come from
measured rates alone.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

import numpy as np

from jobs.planning.memory import Memory, Workload, checkpoint_bytes, helpful_changes, model_bytes, plan_memory
from jobs.planning.rates import Rate, fitting_rate
from jobs.planning.sizes import ModelSizes, configuration_of, planned_model
from jobs.training.config import TrainConfig
from jobs.training.train import order_of_samples
from padt.data.image import PATCH, ResizePolicy
from padt.errors import UserError
from padt.pretrained.config import PaDTConfig
from pipelines.dataset.index import SetIndex, load_index
from pipelines.dataset.manifest import MANIFEST_NAME
from pipelines.io.storage import Folder
from pipelines.loader.plan import Plan

logger = logging.getLogger(__name__)

GIB = 2**30
# Where no set is prepared yet: words of question and answer, and objects, of one sample.
ASSUMED_TEXT, ASSUMED_OBJECTS = 512, 10


@dataclass(frozen=True)
class TrainPlan:
    """What one training stage is about to do and to need.

    Attributes:
        model: that it starts from.
        sizes: parameters by part.
        samples_per_epoch: None where a set is not prepared yet.
        steps: optimiser steps; None where they follow from samples that are not known.
        samples_per_step: global batch.
        workers: training processes.
        work: the largest batch of one pass, which memory is planned for.
        recomputed: parts whose activations are computed again in backward.
        assumed: what of that is assumed, a sentence each.
        memory: of one GPU (or worker).
        by_zero_stage: bytes that one GPU needs at each ZeRO stage.
        gpu_gib: memory of one GPU, where the configuration says so.
        disk: bytes of checkpoints and of the finished model.
        seconds: of all steps by the measured rate; None without one.
        rate: that rate.
        read_needed, read_measured: samples a second that training takes, and that its readers were measured to give.
        warnings: what should be changed before it is started.
    """

    model: str
    sizes: ModelSizes
    samples_per_epoch: int | None
    steps: int | None
    samples_per_step: int
    workers: int
    work: Workload
    recomputed: list[str]
    assumed: list[str]
    memory: Memory
    by_zero_stage: dict[int, int]
    gpu_gib: float | None
    disk: dict[str, int]
    seconds: float | None = None
    rate: Rate | None = None
    read_needed: float | None = None
    read_measured: float | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def trained_share(self) -> float:
        """Share of the parameters that are trained."""
        return self.sizes.total_trained / self.sizes.total

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self),
            "memory": self.memory.to_json(),
            "parameters": self.sizes.total,
            "trained_parameters": self.sizes.total_trained,
        }


def plan_training(
    config: TrainConfig,
    rates: Sequence[Rate] = (),
    *,
    model_config: PaDTConfig | None = None,
) -> TrainPlan:
    """Plan one training stage; reads small columns of prepared sets and a model's configuration, nothing else.

    Args:
        config: the resolved configuration.
        rates: measured ones.
        model_config: of the model to start from, where that is not made yet.

    Raises:
        UserError: the model's configuration is nowhere, a name in ``freeze`` fits nothing, or the sets do not serve.
    """
    from padt.model.trainable import check_names

    model_config = model_config or configuration_of(config.model)
    model = planned_model(config, model_config)
    check_names(config.optimizer.lr_scale, [name for name, _ in model.named_parameters()])
    sizes = ModelSizes.of(model)
    missing = [each.url for each in config.data.sets if not Folder(each.url).exists(MANIFEST_NAME)]
    indices = [] if missing else [load_index(each.url) for each in config.data.sets]
    plan = _data_plan(config, indices) if indices else None
    steps = _steps(config, plan)
    work, assumed = _largest_batch(config, model_config, indices)
    if missing:
        more = f" and {len(missing) - 1} more sets are" if len(missing) > 1 else " is"
        assumed.insert(0, f"nothing of the samples, which are counted when {missing[0]}{more} prepared")
    memory = plan_memory(model, config, work)
    rest = memory.total - sum(model_bytes(sizes, config).values())
    by_stage = {}
    for stage in range(4):
        changed = config.model_copy(update={"zero_stage": stage})
        by_stage[stage] = rest + sum(model_bytes(sizes, changed).values())
    rate = fitting_rate(rates, sizes.total, config.gpu)
    speed = rate.samples_per_s * config.workers if rate is not None else None
    per_step = config.samples_per_step
    read = rate.read_samples_per_s if rate is not None else None
    return TrainPlan(
        model=config.model,
        sizes=sizes,
        samples_per_epoch=plan.samples_per_epoch if plan is not None else None,
        steps=steps,
        samples_per_step=per_step,
        workers=config.workers,
        work=work,
        recomputed=[part for part, again in config.gradient_checkpointing.model_dump().items() if again],
        assumed=assumed,
        memory=memory,
        by_zero_stage=by_stage,
        gpu_gib=config.gpu_gib,
        disk=_disk(config, sizes, steps),
        seconds=steps * per_step / speed if steps is not None and speed is not None else None,
        rate=rate,
        read_needed=speed,
        read_measured=read * config.reader.processes * config.workers if read is not None else None,
        warnings=_warnings(config, model, work, memory),
    )


def warn_of_memory(config: TrainConfig) -> None:
    """Warn, before anything starts, of a run that by its own plan does not fit into GPUs of the size that is given."""
    if config.gpu and config.gpu_gib is not None:
        for warning in plan_training(config).warnings:
            logger.warning("%s", warning)


def _warnings(config: TrainConfig, model: Any, work: Workload, memory: Memory) -> list[str]:
    if config.gpu_gib is None or memory.total <= config.gpu_gib * GIB:
        return []
    changes = helpful_changes(model, config, work, memory)
    helps = " or ".join(f"{text} (about {total / GIB:.1f} GiB)" for text, total in changes) or "a smaller model"
    return [
        f"One GPU needs about {memory.total / GIB:.1f} GiB by this plan and has {config.gpu_gib:g} (gpu_gib): "
        f"what helps most is {helps}."
    ]


def _data_plan(config: TrainConfig, indices: Sequence[SetIndex]) -> Plan | None:
    """The order of samples; None where it takes a tokenizer that is not on this machine."""
    processor = None
    if config.data.batching is not None:
        processor = _processor(config.model)
        if processor is None:
            return None
    first = indices[0].policy
    policy = first if config.max_pixels is None else ResizePolicy(first.factor, first.min_pixels, config.max_pixels)
    return order_of_samples(config, policy, processor)


def _steps(config: TrainConfig, plan: Plan | None) -> int | None:
    if config.steps is not None or plan is None:
        return config.steps
    assert config.epochs is not None  # the configuration holds one of the two
    return max(1, plan.batches_until(config.epochs))


def _largest_batch(
    config: TrainConfig, model_config: PaDTConfig, indices: Sequence[SetIndex]
) -> tuple[Workload, list[str]]:
    """A batch of the largest pictures, which the order of samples really puts together, and what of it is assumed."""
    assumed = []
    if indices:
        patches = max(int((each.grid_h.astype(np.int64) * each.grid_w).max(initial=1)) for each in indices)
        counts = np.concatenate([each.objects_with_patches for each in indices])
        objects = max(1, ceil(np.percentile(counts, 90))) if len(counts) else 1
        if all(set(each.tasks) == {"refer"} for each in config.data.sets):
            objects = 1
    else:
        limit = config.max_pixels or ResizePolicy().max_pixels
        patches, objects = limit // PATCH**2, ASSUMED_OBJECTS
        assumed.append(f"all pictures of a batch are as large as max_pixels lets them be ({limit:,})")
        assumed.append(f"{ASSUMED_OBJECTS} objects a sample")
    text = _text_tokens(config, indices)
    if text is None:
        text = ASSUMED_TEXT
        assumed.append(f"{ASSUMED_TEXT} tokens of text a sample")
    samples, budget = config.batch_size, config.data.batching
    if budget is not None:
        limits = ((budget.max_tokens, patches + text), (budget.max_patches, patches))
        samples = max(1, min([samples, *(most // each for most, each in limits if most is not None)]))
    masks = bool(config.loss.weights["mask"])
    return Workload(samples, patches + text, patches, max(1, text // 2), objects, config.task.num_vrts, masks), assumed


def _text_tokens(config: TrainConfig, indices: Sequence[SetIndex]) -> int | None:
    """Tokens of the longest sample without its picture; None where the tokenizer is not on this machine."""
    from pipelines.loader.length_estimates import set_lengths

    processor = _processor(config.model) if indices else None
    if processor is None:
        return None
    longest = 1
    for spec, index in zip(config.data.sets, indices, strict=True):
        lengths = set_lengths(index, config.task, processor)
        tasks = spec.of_what_is_there(index).tasks
        found = [lengths.by_task[task] for task, visits in tasks.items() if visits and task in lengths.by_task]
        longest = max([longest, *(int(each.max(initial=1)) for each in found)])
    return longest


def _processor(reference: str) -> Any:
    """The model's processor where its folder is on this machine."""
    from padt.data.processor import load_processor

    if not Folder(reference).exists("config.json") or "://" in reference:
        return None
    try:
        return load_processor(reference)
    except UserError:
        # A configuration alone: enough for sizes, and its tokenizer is then not known.
        return None


def _disk(config: TrainConfig, sizes: ModelSizes, steps: int | None) -> dict[str, int]:
    """Bytes of one checkpoint, of those that lie there at a time, and of the finished model."""
    one = checkpoint_bytes(sizes, config)
    every = config.checkpoint.every
    # The newest is written before the oldest goes.
    count = config.checkpoint.keep + 1 if every else 0
    if every and steps is not None:
        count = min(count, steps // every)
    width = 2 if config.precision == "bf16" else 4
    model = sizes.total * width
    return {"checkpoint": one, "checkpoints": count, "model": model, "total": one * count + model}
