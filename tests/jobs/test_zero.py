"""The loop on two ranks and every ZeRO stage, without Ray: one rank has no objects; checkpoints are resumed."""

import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.mini_set import scene_row, write_set

STEPS, BREAK = 4, 2


class Batches:
    """Stands in for the reader: given batches from a step on."""

    def __init__(self, batches, first):
        self.batches, self.first, self.wait_seconds = batches, first, 0.0

    def __iter__(self):
        return iter(list(enumerate(self.batches))[self.first :])

    def close(self):
        pass


def rank_main(rank: int, port: int, model: str, url: str, folder: str, stages: list[tuple[int, str]]) -> None:
    import torch.distributed as dist

    from jobs.config import TrainConfig, build_config
    from jobs.deepspeed_config import build_engine
    from jobs.loop import Session, TrainJob, load_for_training
    from padt.batch import collate
    from padt.loading import load_model
    from padt.tasks import TaskOptions
    from pipelines.reader import SampleSource

    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2")  # Ray Train sets these
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def session(stage: int, precision: str, name: str) -> Session:
        from jobs.train import prepare_job

        tree = {"model": model, "output": f"{folder}/{name}", "data": {"sets": [{"url": url, "tasks": {"refer": 1}}]}}
        tree |= {"steps": STEPS, "batch_size": 2, "workers": 2, "zero_stage": stage, "precision": precision}
        tree |= {"optimizer": {"lr": 1e-2}, "checkpoint": {"every": BREAK}, "log_every": 1}
        config = build_config(TrainConfig, tree)
        job = TrainJob(config, prepare_job(config)[0], STEPS, warm_steps=1)
        loaded, processor = load_for_training(config, torch.device("cpu"))
        return Session(job, rank, *build_engine(loaded, config), processor)

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

    for stage, precision in stages:
        merged = Path(folder) / f"checkpoint-{stage}-{precision}"

        def report(part: Path, step: int, merged: Path = merged) -> None:
            shutil.copytree(part, merged, dirs_exist_ok=True)
            dist.barrier()

        whole = session(stage, precision, f"whole-{stage}-{precision}")
        data = batches(whole)
        whole.run(Batches(data, 0), report)
        whole.export()
        resumed = session(stage, precision, f"resumed-{stage}-{precision}")
        resumed.restore(merged)
        assert resumed.step == BREAK
        resumed.run(Batches(data, BREAK), report)
        resumed.export()
        dist.barrier()
    if rank == 0:
        weights = {}
        for stage, precision in stages:
            for kind in ("whole", "resumed"):
                saved = load_model(f"{folder}/{kind}-{stage}-{precision}/model", dtype=torch.float32)
                weights[f"{kind}-{stage}-{precision}"] = saved.state_dict()
        torch.save(weights, f"{folder}/weights.pt")
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
    stages = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (2, "bf16"), (3, "bf16")]
    torch.multiprocessing.spawn(rank_main, args=(free_port(), model, url, str(tmp_path), stages), nprocs=2, join=True)
    weights = torch.load(tmp_path / "weights.pt")
    start = torch.load(tmp_path / "weights.pt")["whole-0-fp32"]
    assert all(torch.isfinite(value).all() for state in weights.values() for value in state.values())
    for stage, precision in stages:
        whole, resumed = weights[f"whole-{stage}-{precision}"], weights[f"resumed-{stage}-{precision}"]
        # Resuming from a checkpoint is bit-identical to never having stopped.
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), (stage, precision)
        if precision == "fp32":
            # Every stage does the same arithmetic, up to the order of sums.
            worst = max(float((whole[name] - start[name]).abs().max()) for name in whole)
            assert worst < 2e-3, (stage, worst)
