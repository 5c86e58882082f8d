"""The training loop of one worker: batches in, optimiser steps, metrics, checkpoints, and the model at the end."""

import logging
import math
import os
import posixpath
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.common.model_reference import fetched
from jobs.training import checkpoint
from jobs.training.config import TrainConfig
from jobs.training.deepspeed_engine import build_engine
from jobs.training.meter import Meter, added_over_ranks, batch_counts, mean_losses, step_counts
from jobs.training.metrics_log import QUARANTINED, Record
from jobs.training.optimizer import learning_rate, set_learning_rate
from jobs.training.trainable import prepare_for_training, training_dtype
from padt.data.collate import Batch
from padt.errors import UserError
from padt.model.losses import LOSS_TERMS, LossCounts
from pipelines.io.storage import Folder, no_room
from pipelines.loader.plan import Plan
from pipelines.loader.reader import TrainingReader
from pipelines.loader.sample_source import check_quarantine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainJob:
    """Everything a worker needs, sent once by the driver.

    Attributes:
        config: the resolved configuration.
        plan: order of samples.
        total_steps: optimiser steps of the run.
        warm_steps: steps in which the decoder gets prototypes.
        run_id: MLflow run.
        mailbox: actor that takes records, or None.
        start: URL of the checkpoint to go on from where Ray Train knows of none.
    """

    config: TrainConfig
    plan: Plan
    total_steps: int
    warm_steps: int
    run_id: str | None = None
    mailbox: Any = None
    start: str | None = None


def train_worker(payload: dict[str, Any]) -> None:
    """Ray Train's entry: the loop of one worker (rank from Ray Train's context).

    Args:
        payload: ``{"job": TrainJob}``.
    """
    import ray.train
    import ray.train.torch

    job: TrainJob = payload["job"]
    # Each machine fetches a model that lies elsewhere.
    job = replace(job, config=job.config.model_copy(update={"model": fetched(job.config.model)}))
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(job.config.threads_per_worker)
    if not job.config.gpu and torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    begun = time.monotonic()
    start = ray.train.get_checkpoint()
    if start is None and job.start is not None:
        start = ray.train.Checkpoint(job.start)
    with start.as_directory() if start is not None else nullcontext() as folder:
        state = checkpoint.read_state(Path(folder)) if folder is not None else None
        if state is not None:
            checkpoint.check_plan(state.plan, job.plan.fingerprint())
        # Reading processes start while this one loads the model: both import for seconds.
        reader = open_reader(job, rank, state.step if state is not None else 0)
        reader.start()
        model, processor = load_for_training(job.config, ray.train.torch.get_device())
        engine, scales = build_engine(model, job.config)
        session = Session(job, rank, engine, scales, processor)
        if folder is not None:
            session.restore(Path(folder))
            session.note(f"goes on from the checkpoint of step {session.step}")
    session.note(
        f"worker ready after {time.monotonic() - begun:.1f} s (process {os.getpid()} on {socket.gethostname()})"
    )
    session.run(reader, _report)
    session.export()
    # Everybody leaves together: a rank that ends early would take the group down while rank 0 still writes.
    dist.barrier()


def _report(folder: Path, step: int) -> None:
    import ray.train

    ray.train.report(
        {"step": step},
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
        checkpoint_dir_name=f"step-{step:08d}",
    )


def open_reader(job: TrainJob, rank: int, step: int) -> TrainingReader:
    """Reader of one rank's batches from optimiser step ``step`` on."""
    config = job.config

    def notify(text: str) -> None:
        # Any rank: the others wait for it and cannot speak.
        logger.warning("%s", text)
        if job.mailbox is not None:
            job.mailbox.put.remote(Record(step, job.total_steps, {}, kind="note", text=text))

    return TrainingReader(
        job.plan,
        rank,
        config.model,
        config.task,
        start=step * config.gradient_accumulation_steps,
        stop=job.total_steps * config.gradient_accumulation_steps,
        # A step takes all of its batches at once.
        options=replace(config.reader, prefetch=max(config.reader.prefetch, config.gradient_accumulation_steps)),
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

    processor = load_processor(config.model)
    torch.manual_seed(config.seed)
    if config.zero_stage == 3:
        from jobs.training.zero3 import load_partitioned

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


class Session:
    """One rank's training run. Every rank makes the same sequence of collective calls, whatever its data."""

    def __init__(self, job: TrainJob, rank: int, engine: Any, scales: list[float], processor: Any) -> None:
        self.job = job
        self.rank = rank
        self.engine = engine
        self.scales = scales
        self.processor = processor
        self.settings = job.config.loss
        self.step = 0
        self.samples = 0
        self.quarantined: dict[str, str] = {}
        self.skipped = 0
        self._grad_norm: float | None = None
        # Dropout of adapters: each rank draws its own; a checkpoint brings the state back.
        torch.manual_seed(job.config.seed + 1 + rank)

    def note(self, text: str) -> None:
        """Send the driver a line of text (rank 0 only)."""
        self._send(Record(self.step, self.job.total_steps, {}, kind="note", text=text))

    def _send(self, record: Record) -> None:
        if self.rank == 0 and self.job.mailbox is not None:
            self.job.mailbox.put.remote(record)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: the checkpoint is damaged.
        """
        state = checkpoint.load(self.engine, folder, self.rank)
        self.step, self.samples, self.quarantined = state.step, state.samples, state.quarantined

    def run(self, reader: TrainingReader, report: Callable[[Path, int], None]) -> None:
        """Train to the last step.

        Args:
            reader: batches from the current step on.
            report: called by all ranks together with a folder that holds this rank's part of a checkpoint.

        Raises:
            UserError: a shard or too many samples cannot be read, or the loss is not finite.
        """
        config, total = self.job.config, self.job.total_steps
        meter = Meter()
        wait = 0.0
        # A whole step's batches first: its losses are divided by the counts of all of them.
        read = iter(reader)
        while batches := list(islice(read, config.gradient_accumulation_steps)):
            counts = self._counts([batch for _, batch in batches], reader.quarantined)
            for number, batch in batches:
                self._train_batch(number, batch, counts, meter)
            self.samples += counts.samples
            self.step += 1
            if self.step % config.log_every == 0 or self.step == total:
                self._log(meter, reader.wait_seconds - wait)
                meter, wait = Meter(), reader.wait_seconds
            if config.checkpoint.every and self.step % config.checkpoint.every == 0 and self.step < total:
                self._checkpoint(report)
        reader.close()

    def _counts(self, batches: list[Batch], bad: dict[str, str]) -> LossCounts:
        """Counts of a step over all ranks, which agree on the samples that are left out.

        Raises:
            UserError: these are more than may be.
        """
        world = self.job.plan.world_size
        new = {name: reason for name, reason in bad.items() if name not in self.quarantined}
        counts, lost = step_counts(batches, len(new), self.engine.device, world)
        if lost:
            of_ranks: list[Any] = [new] * world
            if world > 1:
                dist.all_gather_object(of_ranks, new)
            for each in of_ranks:
                for name in sorted(each):
                    self.note(f"left out: {each[name]}")
                self.quarantined |= each
            check_quarantine(self.quarantined, self.job.config.reader.quarantine)
        return counts

    def _train_batch(self, number: int, batch: Batch, counts: LossCounts, meter: Meter) -> None:
        tokens = int(batch.attention_mask.sum())
        output = self.engine(
            batch=batch.to(self.engine.device),
            loss=self.settings,
            counts=counts,
            prototypes_to_decoder=self.step < self.job.warm_steps,
        )
        total = output.total.detach().float()
        if not math.isfinite(total.item()):
            parts = ", ".join(f"{name} {float(output.parts[name]):.4g}" for name in LOSS_TERMS)
            raise UserError(
                f"The loss of step {self.step + 1} is {total.item()} on rank {self.rank} ({parts}; batch {number}, "
                f"keys {', '.join(batch.keys)}): lower optimizer.lr, or look at these rows with `padt inspect`."
            )
        # DeepSpeed averages over ranks and batches of the step; the total is scaled for that.
        self.engine.backward(output.total)
        # The engine counts on in its step.
        boundary = self.engine.is_gradient_accumulation_boundary()
        if boundary:
            rate = learning_rate(self.step, self.job.total_steps, self.job.config.optimizer)
            set_learning_rate(self.engine.optimizer, rate, self.scales)
            self._norm_before_step()
        self.engine.step()
        if boundary:
            self._check_step()
        own = batch_counts(batch)
        divisors = own if self.settings.average == "rank" else counts
        meter.add(total, output.parts, own=own, divisors=divisors, tokens=tokens)

    def _norm_before_step(self) -> None:
        """Without ZeRO DeepSpeed clips but does not tell the norm; with it the engine knows after the step."""
        config = self.job.config
        self._grad_norm = None
        if config.zero_stage == 0 and config.precision == "fp32":
            gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self._grad_norm = float(torch.nn.utils.get_total_norm(gradients))
            self._check_norm(self._grad_norm)

    def _check_step(self) -> None:
        """Tell of a step that DeepSpeed left out, and end before weights are saved that a bad gradient has spoilt.

        Raises:
            UserError: the gradient is not finite, and was applied.
        """
        if not self.engine.was_step_applied():
            self.skipped += 1
            self.note(
                f"step {self.step + 1} was left out: its gradient is not finite ({self.skipped} such step(s) so far). "
                "Where this goes on, lower optimizer.lr"
            )
            return
        norm = self.engine.get_global_grad_norm()
        if norm is not None:
            self._check_norm(float(norm))

    def _check_norm(self, norm: float) -> None:
        if not math.isfinite(norm):
            raise UserError(
                f"The gradient of step {self.step + 1} is not finite (norm {norm}), although the loss is: lower "
                "optimizer.lr, or set optimizer.max_grad_norm, and run the command again; it goes on from the last "
                "checkpoint."
            )

    def _log(self, meter: Meter, waited: float) -> None:
        """Average over all ranks (one collective) and send a record."""
        seconds = time.perf_counter() - meter.begun
        world = self.job.plan.world_size
        sums = added_over_ranks(meter.sums(waited / seconds), world)
        norm = self._grad_norm if self._grad_norm is not None else self.engine.get_global_grad_norm()
        metrics = {
            **mean_losses(sums),
            "train/lr": learning_rate(self.step - 1, self.job.total_steps, self.job.config.optimizer),
            "train/epoch": self._epochs_done(),
            "perf/samples_per_s": sums["samples"] / seconds,
            "perf/tokens_per_s": sums["tokens"] / seconds,
            "perf/data_wait_frac": sums["wait_share"] / world,
            "perf/step_seconds": seconds * self.job.config.gradient_accumulation_steps / meter.batches,
        }
        if norm is not None and math.isfinite(norm):
            metrics["train/grad_norm"] = float(norm)
        if self.skipped:
            metrics["train/skipped_steps"] = float(self.skipped)
        if self.quarantined:
            metrics[QUARANTINED] = float(len(self.quarantined))
        self._send(Record(self.step, self.job.total_steps, metrics))

    def _epochs_done(self) -> float:
        plan = self.job.plan
        epoch, place = plan.locate(self.step * self.job.config.gradient_accumulation_steps)
        return epoch + place / plan.batches_in(epoch)

    def _checkpoint(self, report: Callable[[Path, int], None]) -> None:
        batch = self.step * self.job.config.gradient_accumulation_steps
        state = checkpoint.LoopState(
            step=self.step,
            batch=batch,
            epoch=self.job.plan.locate(batch)[0],
            plan=self.job.plan.fingerprint(),
            run_id=self.job.run_id,
            samples=self.samples,
            quarantined=self.quarantined,
        )
        try:
            with checkpoint.scratch_folder() as folder:
                checkpoint.save(self.engine, state, folder, self.rank)
                report(folder, self.step)
        except Exception as error:
            if not no_room(error):
                raise
            raise UserError(
                f"The checkpoint of step {self.step} cannot be written: no space is left in {self.job.config.output}, "
                f"or in the temporary folder {tempfile.gettempdir()} of {socket.gethostname()}. Make room, or name "
                "another temporary folder by TMPDIR, and run the command again: it goes on from the checkpoint before."
            ) from error

    def export(self) -> None:
        """Write the trained model to ``<output>/model``; all ranks take part (ZeRO 3 gathers the weights).

        With LoRA, ``model/`` holds the merged weights, and ``adapter/`` beside it the adapter alone.
        """
        from jobs.training.model_card_facts import training_facts
        from jobs.training.zero3 import gather_weights, whole_model
        from padt.checkpoints.loading import save_model
        from padt.checkpoints.lora import merge, save_adapter

        config = self.job.config
        weights = gather_weights(self.engine.module, self.rank) if config.zero_stage == 3 else None
        if self.rank != 0:
            return
        model = self.engine.module if weights is None else whole_model(config, weights)
        model.eval()
        if config.lora is not None:
            adapter = Folder(posixpath.join(config.output, "adapter"))
            adapter.publish(
                lambda folder: save_adapter(model, self.processor, folder, config.model), "adapter_config.json"
            )
            merge(model)
        target = Folder(posixpath.join(config.output, "model"))
        facts = training_facts(config, self.job.plan, self.job.total_steps)
        target.publish(lambda folder: save_model(model, self.processor, folder, facts=facts), "config.json")
