"""How an evaluation is answered: rows are read in windows, which are answered one by one, here or on Ray.

Windows are the grain of distribution and of what a kill can cost: each is a pure function of the set, so that any
number of workers answers every sample exactly once, and a worker that dies has its window answered again by another.
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.evaluation.answerer import Answerer
from jobs.evaluation.samples import EvalSample
from padt.data.image import open_image
from padt.errors import ImageError, UserError, install_command
from pipelines.dataset.index import SetIndex, load_index
from pipelines.loader.sample_source import BadSampleError, RowReader

logger = logging.getLogger(__name__)

# Rows of a window: enough questions to fill the engine, and enough windows for the workers of a small set.
WINDOW_ROWS = (32, 128)
WINDOWS = 16

Windows = Mapping[int, Sequence[EvalSample]]
"""Samples by number of their window."""


def windows(samples: Sequence[EvalSample]) -> list[list[EvalSample]]:
    """Cut the samples into runs of whole rows: by the set alone, so that answers do not depend on the workers."""
    by_row: dict[int, list[EvalSample]] = {}
    for sample in samples:
        by_row.setdefault(sample.row, []).append(sample)
    least, most = WINDOW_ROWS
    size = min(most, max(least, math.ceil(len(by_row) / WINDOWS)))
    rows = list(by_row.values())
    return [sum(rows[start : start + size], []) for start in range(0, len(rows), size)]


def answer_window(samples: Sequence[EvalSample], reader: RowReader, answerer: Answerer) -> list[dict[str, Any]]:
    """Answer one window: a record for each sample, in any order.

    A picture that cannot be decoded gives a record with ``error`` and without a prediction; it counts as an answer
    without objects and stops nothing.
    """
    images: dict[int, Any] = {}
    records = []
    for row, key in dict.fromkeys((sample.row, sample.key) for sample in samples):
        try:
            images[row] = open_image(reader.row(row)["image"]["bytes"])
        except (ImageError, BadSampleError) as error:
            logger.warning("%s: %s", key, error)
            records += [_record(sample, None, str(error)) for sample in samples if sample.row == row]
    asked = [sample for sample in samples if sample.row in images]
    predictions = answerer([images[sample.row] for sample in asked], asked) if asked else []
    if len(predictions) != len(asked):
        raise RuntimeError(f"{len(asked)} questions were answered {len(predictions)} times")
    return records + [_record(one, found, None) for one, found in zip(asked, predictions, strict=True)]


def answer_here(todo: Windows, index: SetIndex, model: Any) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Answer in this process; yields number and records of one window after the other."""
    reader, answerer = RowReader(index), model.load()
    for number, window in todo.items():
        yield number, answer_window(window, reader, answerer)


def answer_on_ray(todo: Windows, url: str, model: Any, workers: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Answer with ``workers`` Ray actors, each with its own copy of the model; windows come in any order.

    Args:
        todo: the windows.
        url: the prepared set, readable from every worker.
        model: a ``ModelAnswerer`` (anything picklable with ``load``).
        workers: actors; the cluster's GPUs are shared out among them.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise UserError(f"Several workers need Ray: install it with `{install_command('data')}`.") from error
    from jobs.common.ray_session import ray_session

    with ray_session():
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0) / workers)
        # A worker that dies is started again and its window is answered anew; the plan makes that harmless.
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=2, max_task_retries=2)(EvaluationWorker)
        actors = [remote.remote(url, model) for _ in range(min(workers, len(todo)))]
        try:
            pool = ActorPool(actors)
            yield from pool.map_unordered(lambda actor, entry: actor.answer.remote(*entry), list(todo.items()))
        except ray.exceptions.RayTaskError as error:
            # A user's mistake keeps its words; anything else keeps its traceback.
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise
        finally:
            for actor in actors:
                ray.kill(actor)


class EvaluationWorker:
    """One process that holds a model and answers windows."""

    def __init__(self, url: str, model: Any) -> None:
        self._reader = RowReader(load_index(url))
        self._answerer = model.load()

    def answer(self, number: int, window: list[EvalSample]) -> tuple[int, list[dict[str, Any]]]:
        """The window's number and its records, see :func:`answer_window`."""
        return number, answer_window(window, self._reader, self._answerer)


def computed_in(model: Path, options: Mapping[str, Any], workers: int) -> tuple[str, str]:
    """Kind of device and type of numbers that answers will be computed in, for both move their last digits.

    Args:
        model: its folder.
        options: of ``padt.load_model``.
        workers: Ray actors; of a cluster that has GPUs each gets its share of one.
    """
    import torch

    from padt.checkpoints.loading import default_device, loaded_dtype

    given = options.get("device")
    device = torch.device(given) if given is not None else default_device()
    if given is None and workers > 1 and os.environ.get("RAY_ADDRESS"):
        import ray

        from jobs.common.ray_session import ray_session

        with ray_session():
            device = torch.device("cuda" if ray.cluster_resources().get("GPU") else "cpu")
    return device.type, str(loaded_dtype(model, options.get("dtype"), device)).removeprefix("torch.")


def checked(
    todo: Windows, answered: Iterable[tuple[int, list[dict[str, Any]]]]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Pass windows on, after making sure that each of their samples was answered exactly once, and each window came.

    Raises:
        RuntimeError: a sample is missing, was answered twice or was never asked.
    """
    missing = set(todo)
    for number, records in answered:
        found = sorted(record["id"] for record in records)
        expected = sorted(sample.id for sample in todo.get(number, ()))
        if number not in missing or found != expected:
            lost = sorted(set(expected) - set(found))
            raise RuntimeError(
                f"{len(found)} answers to the {len(expected)} samples of window {number}: some were answered twice, "
                f"not at all ({', '.join(lost[:3])}) or never asked."
            )
        missing.discard(number)
        yield number, records
    if missing:
        raise RuntimeError(f"{len(missing)} windows were not answered, for example {min(missing)}.")


def _record(sample: EvalSample, prediction: dict[str, Any] | None, error: str | None) -> dict[str, Any]:
    record: dict[str, Any] = {"id": sample.id, "key": sample.key, "task": sample.task}
    if sample.sentence is not None:
        record |= {"item": sample.item, "sentence": sample.sentence}
    record["prediction"] = prediction
    if error is not None:
        record["error"] = error
    return record
