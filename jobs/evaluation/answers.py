"""How an evaluation is answered: rows are read in windows, questions of like size are asked together.

Windows are the grain of distribution: each is a pure function of the plan, so that any number of workers answers every
sample exactly once; a worker that dies has its window answered again by another.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.samples import EvalSample
from padt.data.image import open_image
from padt.data.tasks import GROUNDED_TASKS, TASKS
from padt.errors import ImageError, UserError, install_command
from pipelines.dataset.index import SetIndex, load_index
from pipelines.loader.sample_source import BadSampleError, RowReader

logger = logging.getLogger(__name__)

# Rows of a window: enough for batches of like size, and enough windows for the workers of a small set.
WINDOW_ROWS = (16, 64)
WINDOWS = 16

# (images, questions) -> one prediction each, as ``Prediction.to_dict()`` writes it, with the number of ``tokens``.
Answerer = Callable[[list[Any], list[EvalSample]], list[dict[str, Any]]]


@dataclass(frozen=True)
class ModelAnswerer:
    """What a worker needs to become an :data:`Answerer`; small and picklable.

    Attributes:
        path: local model folder (on every machine that takes part).
        class_names: classes that detection asks for, all in one prompt.
        settings: ``padt.inference.predict.GenerationSettings``.
        options: further arguments of ``padt.load_model``, such as ``device``.
    """

    path: str
    class_names: tuple[str, ...]
    settings: Any
    options: dict[str, Any]

    def load(self) -> Answerer:
        """Load the model."""
        from padt.checkpoints.loading import load_model
        from padt.inference.predict import predict
        from padt.inference.requests import ask

        model = load_model(self.path, **self.options)

        def answer(images: list[Any], samples: list[EvalSample]) -> list[dict[str, Any]]:
            words = [self.class_names if TASKS[one.task].words == "names" else one.sentence for one in samples]
            requests = [ask(one.task, each) for one, each in zip(samples, words, strict=True)]
            found = predict(model, images, requests, self.settings)
            return [{**prediction.to_dict(), "tokens": len(prediction.token_ids)} for prediction in found]

        return answer


def windows(samples: Sequence[EvalSample]) -> list[list[EvalSample]]:
    """Cut the samples into runs of whole rows: by the set alone, so that answers do not depend on the workers."""
    by_row: dict[int, list[EvalSample]] = {}
    for sample in samples:
        by_row.setdefault(sample.row, []).append(sample)
    least, most = WINDOW_ROWS
    size = min(most, max(least, math.ceil(len(by_row) / WINDOWS)))
    rows = list(by_row.values())
    return [sum(rows[start : start + size], []) for start in range(0, len(rows), size)]


def batches(samples: Sequence[EvalSample], batch_size: int) -> Iterator[list[EvalSample]]:
    """Group a window into batches of one task and images of like size, so that little is padded."""
    for task in GROUNDED_TASKS:
        group = sorted((s for s in samples if s.task == task), key=lambda s: (s.patches, s.id))
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def answer_window(
    samples: Sequence[EvalSample], reader: RowReader, answerer: Answerer, batch_size: int
) -> list[dict[str, Any]]:
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
    for batch in batches([sample for sample in samples if sample.row in images], batch_size):
        predictions = answerer([images[sample.row] for sample in batch], batch)
        if len(predictions) != len(batch):
            raise RuntimeError(f"{len(batch)} questions were answered {len(predictions)} times")
        records += [_record(one, found, None) for one, found in zip(batch, predictions, strict=True)]
    return records


def answer_here(
    samples: Sequence[EvalSample], index: SetIndex, model: Any, batch_size: int
) -> Iterator[list[dict[str, Any]]]:
    """Answer in this process; yields the records of one window after the other."""
    reader, answerer = RowReader(index), model.load()
    for window in windows(samples):
        yield answer_window(window, reader, answerer, batch_size)


def answer_on_ray(
    samples: Sequence[EvalSample], url: str, model: Any, batch_size: int, workers: int
) -> Iterator[list[dict[str, Any]]]:
    """Answer with ``workers`` Ray actors, each with its own copy of the model; windows come in any order.

    Args:
        samples: every question.
        url: the prepared set, readable from every worker.
        model: a :class:`ModelAnswerer` (anything picklable with ``load``).
        batch_size: questions asked together.
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
        cut = windows(samples)
        actors = [remote.remote(url, model, batch_size) for _ in range(min(workers, len(cut)))]
        try:
            pool = ActorPool(actors)
            yield from pool.map_unordered(lambda actor, window: actor.answer.remote(window), cut)
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

    def __init__(self, url: str, model: Any, batch_size: int) -> None:
        self._reader = RowReader(load_index(url))
        self._answerer = model.load()
        self._batch_size = batch_size

    def answer(self, window: list[EvalSample]) -> list[dict[str, Any]]:
        """See :func:`answer_window`."""
        return answer_window(window, self._reader, self._answerer, self._batch_size)


def collect(samples: Sequence[EvalSample], answered: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Pass records on and, at the end, make sure that each sample was answered exactly once.

    Raises:
        RuntimeError: a sample is missing or was answered twice.
    """
    missing = {sample.id for sample in samples}
    for records in answered:
        for record in records:
            if record["id"] not in missing:
                raise RuntimeError(f"Sample {record['id']} was answered twice or never asked.")
            missing.discard(record["id"])
        yield records
    if missing:
        raise RuntimeError(f"{len(missing)} samples were not answered, for example {min(missing)}.")


def _record(sample: EvalSample, prediction: dict[str, Any] | None, error: str | None) -> dict[str, Any]:
    record: dict[str, Any] = {"id": sample.id, "key": sample.key, "task": sample.task}
    if sample.sentence is not None:
        record |= {"item": sample.item, "sentence": sample.sentence}
    record["prediction"] = prediction
    if error is not None:
        record["error"] = error
    return record
