"""The training loop of one worker: batches in, optimiser steps, metrics, checkpoints, and the model at the end."""

import json
import logging
import math
import posixpath
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.training import checkpoint
from jobs.training.config import TrainConfig
from jobs.training.engine.backend import Engine, StepOutcome
from jobs.training.meter import Meter, added_over_ranks, batch_counts, mean_losses, shares, step_counts
from jobs.training.metrics_log import QUARANTINED, Record
from jobs.training.optimizer import learning_rate
from jobs.training.workload import WorkCounter, device_memory, utilisation
from padt.data.collate import Batch
from padt.errors import UserError
from padt.model.losses import LossCounts
from pipelines.io.storage import Folder, no_room
from pipelines.loader.plan import Plan
from pipelines.loader.reader import TrainingReader
from pipelines.loader.sample_source import check_quarantine
from pipelines.loader.shuffle import stream

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
        send: takes rank 0's records without waiting, or None.
        start: URL of the checkpoint to go on from where Ray Train knows of none.
    """

    config: TrainConfig
    plan: Plan
    total_steps: int
    warm_steps: int
    run_id: str | None = None
    send: Callable[[Record], object] | None = None
    start: str | None = None


def seed_of(*parts: int) -> int:
    """A seed for PyTorch that depends on the given numbers alone."""
    return int(stream("torch", *parts).integers(2**63))


class Session:
    """One rank's training run. Every rank makes the same sequence of collective calls, whatever its data."""

    def __init__(self, job: TrainJob, rank: int, engine: Engine, processor: Any) -> None:
        self.job = job
        self.rank = rank
        self.engine = engine
        self.processor = processor
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.settings = job.config.loss
        self.workload = WorkCounter(engine.module, [index.name for index in job.plan.mixture.indices])
        self.step = 0
        self.samples = 0
        self.quarantined: dict[str, str] = {}
        self.skipped = self.skipped_in_a_row = 0
        self._grad_norm: float | None = None

    def note(self, text: str) -> None:
        """Send the driver a line of text (rank 0 only)."""
        self._send(Record(self.step, self.job.total_steps, {}, kind="note", text=text))

    def _send(self, record: Record) -> None:
        if self.rank == 0 and self.job.send is not None:
            self.job.send(record)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: the checkpoint is damaged.
        """
        state = checkpoint.load(self.engine, folder)
        self.step, self.samples, self.quarantined = state.step, state.samples, state.quarantined

    def run(self, reader: TrainingReader, report: Callable[[Path, int], None]) -> None:
        """Train to the last step.

        Args:
            reader: batches from the current step on.
            report: called by all ranks together with a folder that holds this rank's part of a checkpoint.

        Raises:
            UserError: a shard or too many samples cannot be read, or too many steps were not finite.
        """
        config, total = self.job.config, self.job.total_steps
        meter = Meter()
        wait = 0.0
        # A whole step's batches first: its losses are divided by the counts of all of them.
        read = iter(reader)
        while batches := list(islice(read, self.job.plan.turns(self.world))):
            counts = self._counts([batch for _, batch in batches], reader.quarantined)
            self._train_step(batches, counts, meter)
            self.samples += counts.samples
            self.step += 1
            if self.step % config.log_every == 0 or self.step == total:
                self._log(meter, reader.wait_seconds - wait)
                meter, wait = Meter(), reader.wait_seconds
            every = config.checkpoint.every
            # The last step has one, too: an export that fails does not train again.
            if every and (self.step % every == 0 or self.step == total):
                self._checkpoint(report)
        reader.close()

    def _counts(self, batches: list[Batch], bad: dict[str, str]) -> LossCounts:
        """Counts of a step over all ranks, which agree on the samples that are left out.

        Raises:
            UserError: these are more than may be.
        """
        world = self.world
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

    def _train_step(self, batches: list[tuple[int, Batch]], counts: LossCounts, meter: Meter) -> None:
        loss = torch.zeros((), device=self.engine.device)
        for number, batch in batches:
            # Dropout of adapters is drawn from the micro-batch's place in the run, on whatever rank it is.
            torch.manual_seed(seed_of(self.job.config.seed, *self.job.plan.place(number, self.rank, self.world)))
            output = self.engine.forward(
                batch=batch.to(self.engine.device),
                loss=self.settings,
                counts=counts,
                prototypes_to_decoder=self.step < self.job.warm_steps,
            )
            # The engine averages over ranks and batches of the step; the total is scaled for that.
            self.engine.backward(output.total)
            total = output.total.detach().float()
            loss += total
            own = batch_counts(batch)
            divisors = own if self.settings.average == "rank" else counts
            meter.add(
                total,
                output.parts,
                own=own,
                divisors=divisors,
                tokens=int(batch.attention_mask.sum()),
                flops=self.workload.flops(batch),
                shares=self.workload.shares(batch),
            )
        rate = learning_rate(self.step, self.job.total_steps, self.job.config.optimizer)
        outcome = self.engine.step(rate, loss)
        self._grad_norm = outcome.norm
        if not (math.isfinite(outcome.loss) and math.isfinite(outcome.norm) and outcome.applied):
            self._check(outcome, [key for _, batch in batches for key in batch.keys if key])
        else:
            self.skipped_in_a_row = 0

    def _check(self, outcome: StepOutcome, keys: list[str]) -> None:
        """Tell of a step that was left out and keep its samples' keys; end after too many in a row.

        Raises:
            UserError: so many steps were left out one after another, or bad weights would be saved.
        """
        bad = None
        if not math.isfinite(outcome.loss):
            bad = f"{outcome.loss} on rank {self.rank} (keys {', '.join(keys)})"
        told = [(bad, keys)]
        if self.world > 1 and not math.isfinite(outcome.norm):
            # The norm is the same on all ranks, so all of them are here.
            told *= self.world
            dist.all_gather_object(told, (bad, keys))
        losses = "; ".join(loss for loss, _ in told if loss)
        self.skipped += 1
        self.skipped_in_a_row += 1
        file = f"skipped/{checkpoint.name_of(self.step + 1)}.json"
        if self.rank == 0:
            found = {"loss": losses or "finite", "gradient_norm": str(outcome.norm), "keys": [each for _, each in told]}
            Folder(self.job.config.output).write(file, json.dumps(found, indent=1) + "\n")
        # Without ZeRO, and in fp32 with it, DeepSpeed cannot leave a step out and go on.
        spoilt = outcome.applied or (self.engine.name == "deepspeed" and self.job.config.precision == "fp32")
        if spoilt or self.skipped_in_a_row > self.job.config.max_skipped_steps:
            what = f"loss of step {self.step + 1} is {losses}"
            if not losses:
                what = f"gradient of step {self.step + 1} is not finite (norm {outcome.norm}), although the loss is"
            raise UserError(
                f"The {what}; {self.skipped_in_a_row} such step(s) in a row: lower optimizer.lr, set "
                f"optimizer.max_grad_norm, or look at the rows of {file} with `padt inspect`, and run the command "
                "again; it goes on from the last checkpoint."
            )
        self.note(
            f"step {self.step + 1} was left out: its {'loss' if losses else 'gradient'} is not finite "
            f"({self.skipped} such step(s) so far, keys in {file}). Where this goes on, lower optimizer.lr"
        )

    def _log(self, meter: Meter, waited: float) -> None:
        """Average over all ranks (one collective) and send a record."""
        seconds = time.perf_counter() - meter.begun
        world = self.world
        sums = added_over_ranks(meter.sums(waited / seconds), world)
        metrics = {
            **mean_losses(sums),
            **shares(sums),
            **utilisation(sums["flops"], seconds, self.engine.device, world),
            **device_memory(self.engine.device, world),
            "train/lr": learning_rate(self.step - 1, self.job.total_steps, self.job.config.optimizer),
            "train/epoch": self._epochs_done(),
            "perf/samples_per_s": sums["samples"] / seconds,
            "perf/tokens_per_s": sums["tokens"] / seconds,
            "perf/data_wait_frac": sums["wait_share"] / world,
            "perf/step_seconds": seconds * self.job.plan.turns(self.world) / meter.batches,
        }
        if self._grad_norm is not None and math.isfinite(self._grad_norm):
            metrics["train/grad_norm"] = self._grad_norm
        if self.skipped:
            metrics["train/skipped_steps"] = float(self.skipped)
        if self.quarantined:
            metrics[QUARANTINED] = float(len(self.quarantined))
        self._send(Record(self.step, self.job.total_steps, metrics))

    def _epochs_done(self) -> float:
        plan = self.job.plan
        epoch, place = plan.locate(self.step)
        return epoch + place / plan.batches_in(epoch)

    def _checkpoint(self, report: Callable[[Path, int], None]) -> None:
        state = checkpoint.LoopState(
            step=self.step,
            epoch=self.job.plan.locate(self.step)[0],
            plan=self.job.plan.fingerprint(),
            run_id=self.job.run_id,
            samples=self.samples,
            engine=self.engine.name,
            workers=self.world,
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
        from padt.checkpoints.loading import save_model
        from padt.checkpoints.lora import merge, save_adapter

        config = self.job.config
        model = self.engine.module
        if self.engine.partitioned:
            from jobs.training.engine.zero3 import gather_weights, whole_model

            weights = gather_weights(model, self.rank)
            model = whole_model(config, weights) if self.rank == 0 else model
        if self.rank != 0:
            return
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
