"""A model as an evaluation asks it: through the engine, a window's questions at a time.

What an answer is depends on its window alone: the engine of a window starts with nothing kept, and on a CPU the number
of threads is fixed, for sums of other sizes or orders end in other digits.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.evaluation.samples import EvalSample
from padt.data.tasks import TASKS
from padt.metrics.detect import fold
from padt.metrics.overlap import box_iou

# (pictures, questions) -> one prediction each, as ``Prediction.to_dict()`` writes it, with the number of ``tokens`` and
# each object's ``uncalibrated_score``.
Answerer = Callable[[list[Any], list[EvalSample]], list[dict[str, Any]]]
# Two boxes of one label that overlap by so much are one object that was answered twice.
_SAME_OBJECT = 0.9
# Nobody waits for a single answer: the objects of a picture's questions are decoded together, and new prompts are read
# when a part of the rows is free.
_OBJECTS = 64
_FREE = 1 / 4


@dataclass(frozen=True)
class ModelAnswerer:
    """What a worker needs to become an :data:`Answerer`; small and picklable.

    Attributes:
        path: local model folder (on every machine that takes part).
        class_names: classes that detection asks for.
        settings: ``padt.inference.requests.GenerationSettings``.
        options: further arguments of ``padt.load_model``, such as ``device``.
        batch_size: questions answered at a time.
        names_per_prompt: classes in one detection prompt; None = all. The answers to the prompts of one image are
            merged: objects of classes that their prompt did not name, and second boxes of one object (same label, IoU
            0.9 or more; the better score stays), are left out.
        threads: of a process that answers on a CPU.
        refine: how SAM 2 refines masks (``padt.inference.refine.Refinement``, its model a local folder), or None.
    """

    path: str
    class_names: tuple[str, ...]
    settings: Any
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 16
    names_per_prompt: int | None = None
    threads: int = 1
    refine: Any = None

    def load(self) -> Answerer:
        """Load the model."""
        from padt.checkpoints.loading import load_model
        from padt.inference.text_boxes import with_text_boxes

        # The engine's rows differ in length, which FlashAttention's padded batches cannot express.
        model = load_model(self.path, **{"attn_implementation": "sdpa", **self.options})
        refiner = None
        if self.refine is not None:
            from padt.inference.refine import load_refiner

            refiner = load_refiner(self.refine, device=model.device)

        def answer(images: list[Any], samples: list[EvalSample]) -> list[dict[str, Any]]:
            questions = [
                Question(place, sample.row, images[place], request)
                for place, sample in enumerate(samples)
                for request in self.requests(sample)
            ]
            settings = replace(self.settings, calibrated=False)
            with _threads(self.threads if model.device.type == "cpu" else None):
                if settings.num_beams > 1:
                    found = _predicted(model, questions, settings, self.batch_size)
                else:
                    found = _through_engine(model, questions, settings, self.batch_size)
                    if settings.text_boxes:
                        found = [with_text_boxes(prediction) for prediction in found]
                if refiner is not None:
                    found = _refined(refiner, questions, found)
            calibration = model.config.score_calibration if self.settings.calibrated else None
            parts: list[list[dict[str, Any]]] = [[] for _ in samples]
            for question, prediction in zip(questions, found, strict=True):
                asked = None if self.names_per_prompt is None else _names_of(question.request)
                parts[question.sample].append(_values(prediction, calibration, asked))
            return [merged(each) if len(each) > 1 else each[0] for each in parts]

        return answer

    def requests(self, sample: EvalSample) -> list[Any]:
        """The prompts that a sample is asked with."""
        from padt.inference.requests import ask

        if TASKS[sample.task].words != "names":
            return [ask(sample.task, sample.sentence)]
        size = self.names_per_prompt or len(self.class_names)
        starts = range(0, len(self.class_names), size)
        return [ask(sample.task, self.class_names[start : start + size]) for start in starts]


@dataclass(frozen=True)
class Question:
    """One prompt about one picture.

    Attributes:
        sample: place of the sample among those of the window.
        row: number of its row; questions of one row share the picture.
        image: the upright picture.
        request: ``padt.inference.requests.Request``.
    """

    sample: int
    row: int
    image: Any
    request: Any


def _through_engine(model: Any, questions: Sequence[Question], settings: Any, batch_size: int) -> list[Any]:
    """Answers in the order of the questions.

    One question about each picture goes first. The others follow when the model has seen it, so that no picture is
    read, or looked at, twice while it is kept.
    """
    from padt.inference.engine import Engine, EngineLimits

    limits = EngineLimits.fitting(
        model.processor,
        ((question.request, [question.image.size]) for question in questions),
        settings.max_new_tokens,
        batch_size,
        admit_together=math.ceil(batch_size * _FREE),
        objects_together=_OBJECTS,
    )
    engine = Engine(model, limits)
    by_row: dict[int, list[int]] = {}
    for place, question in enumerate(questions):
        by_row.setdefault(question.row, []).append(place)
    rows = iter(by_row.values())
    tickets: dict[int, Any] = {}
    # Groups whose first question waits, and questions about pictures that the model has seen.
    looking: list[tuple[int, list[int]]] = []
    ready: list[int] = []
    more = True
    while more or looking or ready:
        admitted = len(tickets) - engine.waiting_rows
        while looking and looking[0][0] < admitted:
            ready += looking.pop(0)[1]
        while engine.waiting_rows < batch_size and (ready or more):
            if ready:
                place = ready.pop(0)
            else:
                group = next(rows, None)
                if group is None:
                    more = False
                    break
                # Long answers first, so that the window's end does not wait for one.
                place, *others = sorted(group, key=lambda place: questions[place].request.task == "refer")
                looking.append((len(tickets), others))
            question = questions[place]
            tickets[place] = engine.submit(question.image, question.request, settings)
        engine.step()
        # What fails once would fail for the others too; the windows before this one are kept.
        for ticket in [ticket for ticket in tickets.values() if ticket.done]:
            if ticket.end().error is not None:
                ticket.result()
    engine.run_until_idle()
    return [tickets[place].result(0) for place in range(len(questions))]


def _predicted(model: Any, questions: Sequence[Question], settings: Any, batch_size: int) -> list[Any]:
    """Answers of a beam search, which the engine has not: by batches of one task and pictures of like size."""
    from padt.inference.predict import predict

    order = sorted(
        range(len(questions)),
        key=lambda place: (questions[place].request.task, questions[place].image.size, place),
    )
    found: dict[int, Any] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        images, requests = zip(*((questions[place].image, questions[place].request) for place in batch), strict=True)
        found.update(zip(batch, predict(model, list(images), list(requests), settings), strict=True))
    return [found[place] for place in range(len(questions))]


def _refined(refiner: Any, questions: Sequence[Question], found: Sequence[Any]) -> list[Any]:
    """The answers with masks that SAM 2 has made finer; each picture is seen once."""
    by_row: dict[int, list[int]] = {}
    for place, question in enumerate(questions):
        by_row.setdefault(question.row, []).append(place)
    refined: dict[int, Any] = {}
    for places in by_row.values():
        image = questions[places[0]].image
        refined.update(zip(places, refiner.refine([image], [found[place] for place in places]), strict=True))
    return [refined[place] for place in range(len(questions))]


def _names_of(request: Any) -> tuple[str, ...] | None:
    from padt.inference.requests import class_names

    return class_names(request)


def _values(prediction: Any, calibration: Any, asked: tuple[str, ...] | None) -> dict[str, Any]:
    """A prediction as plain values, with both scores of its objects."""
    from padt.inference.calibration import calibrated

    scores = [found.score for found in prediction.objects]
    prediction = replace(prediction, objects=tuple(calibrated(calibration, prediction.objects)))
    values = {**prediction.to_dict(), "tokens": len(prediction.token_ids)}
    for entry, score in zip(values["objects"], scores, strict=True):
        entry["uncalibrated_score"] = score
    if asked is not None:
        wanted = {fold(name) for name in asked}
        values["warnings"] = prediction.of_classes(asked).warnings
        values["objects"] = [entry for entry in values["objects"] if fold(entry["label"]) in wanted]
    return values


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answers to several prompts about one picture as one; see ``ModelAnswerer.names_per_prompt``."""
    objects: list[dict[str, Any]] = []
    start = 0
    for part in parts:
        for entry in part["objects"]:
            objects.append({**entry, "span": [start + place for place in entry["span"]]})
        start += part["tokens"]
    best_first = sorted(range(len(objects)), key=lambda place: -objects[place]["score"])
    kept: list[int] = []
    for place in best_first:
        same = [objects[k]["box"] for k in kept if fold(objects[k]["label"]) == fold(objects[place]["label"])]
        if not same or box_iou([objects[place]["box"]], same).max() < _SAME_OBJECT:
            kept.append(place)
    warnings = [warning for part in parts for warning in part["warnings"]]
    if len(kept) < len(objects):
        warnings.append(f"{len(objects) - len(kept)} objects were answered twice and are left out")
    return {
        **parts[0],
        "text": "\n".join(part["text"] for part in parts),
        "objects": [objects[place] for place in sorted(kept)],
        "truncated": any(part["truncated"] for part in parts),
        "warnings": warnings,
        "not_finite": sum(part.get("not_finite") or 0 for part in parts),
        "tokens": start,
    }


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Torch's threads for the length of a block; None leaves them."""
    import torch

    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)
