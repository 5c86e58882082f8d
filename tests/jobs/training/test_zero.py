"""The loop on two ranks and every ZeRO stage, without Ray: one rank has no objects; checkpoints are resumed.

Gradient checkpointing and LoRA take part, since both add module calls that ranks must make alike.
"""

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from jobs.training.checkpoint_model import trained_weights
from padt.checkpoints.loading import load_model
from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.mini_set import scene_row, write_set

STEPS, BREAK = 4, 2
LORA = {"lora": {"rank": 4, "dropout": 0.1}, "gradient_checkpointing": True}
# Name, and what differs from ZeRO 0 in fp32.
RUNS: dict[str, dict[str, Any]] = {
    "zero 0": {},
    "zero 1": {"zero_stage": 1, "gradient_checkpointing": True},
    "zero 2": {"zero_stage": 2},
    "zero 3": {"zero_stage": 3, "gradient_checkpointing": True},
    "zero 2 bf16": {"zero_stage": 2, "precision": "bf16"},
    "zero 3 bf16": {"zero_stage": 3, "precision": "bf16"},
    "lora, zero 2": {"zero_stage": 2, **LORA},
    "lora, zero 3": {"zero_stage": 3, **LORA},
}
RESUMED = ("zero 0", "zero 2 bf16", "zero 3", "lora, zero 2", "lora, zero 3")
ALIKE = ("zero 0", "zero 1", "zero 2", "zero 3"), ("lora, zero 2", "lora, zero 3")


class Batches:
    """Stands in for the reader: given batches from a step on."""

    def __init__(self, batches, first):
        self.batches, self.first, self.wait_seconds, self.quarantined = batches, first, 0.0, {}

    def __iter__(self):
        return iter(list(enumerate(self.batches))[self.first :])

    def close(self):
        pass


def rank_main(rank: int, port: int, model: str, url: str, folder: str) -> None:
    import torch.distributed as dist

    from jobs.common.config_tree import build_config
    from jobs.training.config import TrainConfig
    from jobs.training.engine.build import build_engine
    from jobs.training.loop import Session, TrainJob
    from jobs.training.worker import load_for_training
    from padt.data.collate import collate
    from padt.data.tasks import TaskOptions
    from pipelines.loader.sample_source import SampleSource

    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2")  # Ray Train sets these
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def session(changes: dict[str, Any], name: str) -> Session:
        from jobs.training.train import prepare_job

        tree = {"model": model, "output": f"{folder}/{name}", "data": {"sets": [{"url": url, "tasks": {"refer": 1}}]}}
        tree |= {"steps": STEPS, "batch_size": 2, "workers": 2, "zero_stage": 0, "precision": "fp32"}
        tree |= {"optimizer": {"lr": 1e-2}, "checkpoint": {"every": BREAK}, "log_every": 1, **changes}
        config = build_config(TrainConfig, tree)
        job = TrainJob(config, prepare_job(config)[0], STEPS, warm_steps=1)
        loaded, processor = load_for_training(config, torch.device("cpu"))
        return Session(
            job, rank, build_engine(loaded, config, torch.device("cpu"), config.gradient_accumulation_steps), processor
        )

    def batches(of: Session):
        source = SampleSource(of.job.plan, of.processor, TaskOptions())
        view = of.job.plan.reader()
        refs = [r for n in range(of.job.plan.batches_per_epoch) for k in range(2) for r in view.batch(n, k)[1]]
        # Rank 0 never sees an object: its sentences describe nothing.
        mine = sorted(
            {r.identity: r for r in refs if r.key.endswith("/0") == (rank == 0)}.values(), key=lambda r: r.item
        )
        encoded = [source.sample(ref, 0) for ref in mine][: 2 * STEPS]
        assert all(bool(sample.groups) == (rank == 1) for sample in encoded)
        return [collate(encoded[2 * i : 2 * i + 2], of.processor.pad_token_id) for i in range(STEPS)]

    for name, changes in RUNS.items():
        merged = Path(folder) / f"checkpoint {name}"

        def report(part: Path, step: int, merged: Path = merged) -> None:
            if step == BREAK:
                shutil.copytree(part, merged, dirs_exist_ok=True)
                dist.barrier()

        whole = session(changes, f"whole {name}")
        data = batches(whole)
        whole.run(Batches(data, 0), report)
        whole.export()
        if name not in RESUMED:
            continue
        resumed = session(changes, f"resumed {name}")
        resumed.restore(merged)
        assert resumed.step == BREAK
        resumed.run(Batches(data, BREAK), report)
        resumed.export()
        dist.barrier()
    dist.barrier()
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_all_stages_train_alike_with_a_rank_without_objects(tmp_path):
    # A rank that skips a module breaks or, worse, silently falsifies sharded training (DeepSpeed #2343, #7044).
    model = write_tiny_model(tmp_path / "tiny")
    empty, full = scene_row(0), scene_row(1)
    # Eight sentences each: the first row's describe nothing in the picture.
    empty["references"] = [{"ref_id": i, "sent_id": i, "text": "the circle", "objects": []} for i in range(8)]
    full["references"] = [
        {"ref_id": i, "sent_id": i, "text": "the circle", "objects": [i % len(full["objects"])]} for i in range(8)
    ]
    url = write_set(tmp_path / "set", [empty, full])
    torch.multiprocessing.spawn(rank_main, args=(free_port(), model, url, str(tmp_path)), nprocs=2, join=True)

    def weights(kind: str, name: str) -> dict[str, torch.Tensor]:
        return load_model(tmp_path / f"{kind} {name}" / "model", dtype=torch.float32, device="cpu").state_dict()

    for name in RUNS:
        assert all(torch.isfinite(value).all() for value in weights("whole", name).values()), name
    for name in RESUMED:
        whole, resumed = weights("whole", name), weights("resumed", name)
        # Resuming from a checkpoint is bit-identical to never having stopped.
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    for first, *others in ALIKE:
        start = weights("whole", first)
        for name in others:
            # Every stage does the same arithmetic, up to the order of sums.
            worst = max(float((value - start[key]).abs().max()) for key, value in weights("whole", name).items())
            assert worst < 2e-3, (name, worst)
    # What `padt export CHECKPOINT` puts together from the shares of both ranks, after the same steps.
    saved = {name: trained_weights(tmp_path / f"checkpoint {name}") for name in ("zero 0", "zero 3")}
    for key, value in saved["zero 0"].items():
        assert value.shape == saved["zero 3"][key].shape and (value - saved["zero 3"][key]).abs().max() < 2e-3, key
    adapters = trained_weights(tmp_path / "checkpoint lora, zero 3")
    assert any("lora_B" in key for key in adapters) and not any("visual" in key for key in adapters)
    base, tuned = load_model(model, device="cpu").state_dict(), weights("whole", "lora, zero 3")
    assert torch.equal(base["model.visual.merger.ln_q.weight"], tuned["model.visual.merger.ln_q.weight"])
    changed = {key.split(".")[0] for key in base if not torch.equal(base[key], tuned[key])}
    assert changed == {"model", "vis_norm", "vis_proj", "vl_decoder"}
    for name in ("lora, zero 2", "lora, zero 3"):
        merged = load_model(tmp_path / f"whole {name}" / "adapter", device="cpu").state_dict()
        model_weights = weights("whole", name)
        assert all(torch.allclose(merged[key], model_weights[key], atol=1e-6) for key in merged), name
