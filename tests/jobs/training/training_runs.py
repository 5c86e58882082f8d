"""A small training with everything that a restart has to bring back, and processes to run and kill it in."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.common.config_tree import build_config
from jobs.training.config import TrainConfig


def config(world: dict[str, Any], output: Path, *overrides: str) -> TrainConfig:
    """Shares, absent things, shared conversations, views, batches by length; ``world`` names model and set."""
    tree = {
        "model": str(world["model"]),
        "output": str(output),
        "data": {
            "sets": [
                {
                    "url": str(world["set"]),
                    "tasks": {"detect": 1.5, "refer": 1, "caption": 1},
                    "negatives": {"refer": 0.2, "detect": 0.2},
                    "sentences_per_sample": 2,
                }
            ],
            "batching": {"max_tokens": 600},
            "augment": {"flip": 0.5, "scale": [0.8, 1.2], "crop": 0.3},
        },
        "batch_size": 3,
        "steps": 8,
        "workers": 1,
        "precision": "fp32",
        "optimizer": {"lr": 1e-3},
        "reader": {"ray": False},
        "checkpoint": {"every": 3},
        "log_every": 1,
        "tracking": {"enabled": False},
    }
    return build_config(TrainConfig, tree, overrides)


def run_apart(function: Callable[..., object], *arguments: Any) -> int | None:
    """Run a function of this module in a process where Ray and DeepSpeed are not installed; return its exit status."""
    context = multiprocessing.get_context("forkserver")
    # Imported once: processes are forked from one that has done it.
    context.set_forkserver_preload(
        ["tests.jobs.training.bare_machine", "jobs.training.worker", "padt.checkpoints.loading", "jobs.training.train"]
    )
    process = context.Process(target=_run, args=(dict(os.environ), function, *arguments))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def _run(environment: dict[str, str], function: Callable[..., object], *arguments: Any) -> None:
    # The process that this one was forked from may be older than what a test has set.
    os.environ.update(environment)
    function(*arguments)


def train(config: TrainConfig) -> None:
    """Train to the end."""
    import sys

    from jobs.training.train import run_train

    run_train(config)
    assert not {"ray", "deepspeed"} & set(sys.modules)


def train_until(config: TrainConfig, place: str, count: int) -> None:
    """As ``train``, and die at the ``count``-th call of a function, ``module:name`` or ``module:Class.name``."""
    import importlib

    module, _, name = place.partition(":")
    *owners, name = name.split(".")
    owner = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    original, left = getattr(owner, name), [count]

    def counted(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, counted)
    train(config)
