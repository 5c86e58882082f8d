"""One training process: reader, model, engine, the loop, and the model's folder at the end."""

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.common.model_reference import fetched
from jobs.training import checkpoint
from jobs.training.config import TrainConfig
from jobs.training.engine.backend import engine_of, is_partitioned
from jobs.training.engine.build import build_engine
from jobs.training.loop import Session, TrainJob
from jobs.training.metrics_log import Record
from jobs.training.trainable import prepare_for_training, training_dtype
from padt.errors import UserError
from pipelines.io.storage import Folder
from pipelines.loader.reader import TrainingReader

logger = logging.getLogger(__name__)


def train_on_ray(payload: dict[str, Any]) -> None:
    """Ray Train's entry: one worker of a group (its rank comes from Ray Train's context).

    Args:
        payload: ``{"job": TrainJob}``.
    """
    import ray.train
    import ray.train.torch

    job: TrainJob = payload["job"]

    def report(folder: Path, step: int) -> None:
        ray.train.report(
            {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=checkpoint.name_of(step),
        )

    start = ray.train.get_checkpoint()
    if start is None and job.start is not None:
        start = ray.train.Checkpoint(job.start)
    opened = start.as_directory() if start is not None else nullcontext()
    train_rank(job, ray.train.get_context().get_world_rank(), ray.train.torch.get_device(), opened, report)
    # Everybody leaves together: a rank that ends early would take the group down while rank 0 still writes.
    dist.barrier()


def train_here(job: TrainJob, write_records: Callable[[], object]) -> None:
    """Train with one worker in this process, without Ray.

    Args:
        job: what the driver would send.
        write_records: writes the records of all steps so far. No step before a checkpoint is made again, so its record
            must not be lost with this process.

    Raises:
        UserError: as ``Session.run``; or there is no GPU although the configuration asks for one.
    """
    if job.config.gpu and not torch.cuda.is_available():
        raise UserError("gpu=true, but PyTorch sees no GPU on this machine: set gpu=false to train on its CPU.")
    folder = Folder(job.config.output)
    keep = job.config.checkpoint.keep

    def report(part: Path, step: int) -> None:
        write_records()
        checkpoint.publish(folder, part, step, keep)

    opened = nullcontext() if job.start is None else checkpoint.opened(job.start)
    threads = torch.get_num_threads()
    try:
        if engine_of(job.config) == "deepspeed":
            _join_group_of_one()
        train_rank(job, 0, torch.device("cuda" if job.config.gpu else "cpu"), opened, report)
    finally:
        torch.set_num_threads(threads)


def _join_group_of_one() -> None:
    """torch.distributed with this process alone, which DeepSpeed cannot do without, and remembers for its life."""
    if not dist.is_initialized():
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def train_rank(
    job: TrainJob,
    rank: int,
    device: torch.device,
    start: AbstractContextManager[Any],
    report: Callable[[Path, int], None],
) -> None:
    """Train one rank of a job from a checkpoint or the beginning to the exported model.

    Args:
        job: what the driver sent.
        rank: of this process; torch.distributed must be up where there are several, or for DeepSpeed.
        device: to train on.
        start: opens the local folder of the checkpoint to go on from, or gives None.
        report: see ``Session.run``.
    """
    begun = time.monotonic()
    # Each machine fetches a model that lies elsewhere.
    job = replace(job, config=job.config.model_copy(update={"model": fetched(job.config.model)}))
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    torch.set_num_threads(job.config.threads_per_worker)
    if not job.config.gpu and torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    with start as folder:
        state = checkpoint.read_state(Path(folder)) if folder is not None else None
        if state is not None:
            checkpoint.check_plan(state.plan, job.plan.fingerprint())
        # Reading processes start while this one loads the model: both import for seconds.
        reader = open_reader(job, rank, world_size, state.step if state is not None else 0)
        reader.start()
        try:
            model, processor = load_for_training(job.config, device)
            engine = build_engine(model, job.config, device, job.plan.turns(world_size))
            session = Session(job, rank, engine, processor)
            if folder is not None:
                session.restore(Path(folder))
                session.note(f"goes on from the checkpoint of step {session.step}")
        except BaseException:
            reader.close()
            raise
    session.note(
        f"worker ready after {time.monotonic() - begun:.1f} s (process {os.getpid()} on {socket.gethostname()})"
    )
    session.run(reader, report)
    session.export()


def open_reader(job: TrainJob, rank: int, world_size: int, step: int) -> TrainingReader:
    """Reader of one rank's micro-batches from optimiser step ``step`` on."""
    config = job.config

    def notify(text: str) -> None:
        # Any rank: the others wait for it and cannot speak.
        logger.warning("%s", text)
        if job.send is not None:
            job.send(Record(step, job.total_steps, {}, kind="note", text=text))

    return TrainingReader(
        job.plan,
        rank,
        config.model,
        config.task,
        world_size=world_size,
        start=step,
        stop=job.total_steps,
        options=replace(
            config.reader,
            ray=config.reader.ray and config.launcher != "local",
            # A step takes all of its batches at once.
            prefetch=max(config.reader.prefetch, job.plan.turns(world_size)),
        ),
        notify=notify,
    )


def load_for_training(config: TrainConfig, device: torch.device) -> tuple[Any, Any]:
    """Model (in fp32, or bf16 on request; partitioned under ZeRO 3) and processor of a configuration.

    What starts fresh comes from the configuration's seed, so it is the same on every rank and in every attempt.

    Raises:
        UserError: the model does not load, or the configuration names adapters or parts that it cannot have.
    """
    from padt.checkpoints.loading import load_model
    from padt.data.processor import load_processor

    processor = load_processor(config.model, max_pixels=config.max_pixels)
    torch.manual_seed(config.seed)
    if is_partitioned(config):
        from jobs.training.engine.zero3 import load_partitioned

        return load_partitioned(config, device), processor
    model = load_model(
        config.model,
        dtype=training_dtype(config),
        device=device,
        attn_implementation=config.attn_implementation,
        with_processor=False,
    )
    prepare_for_training(model, config)
    return model, processor
