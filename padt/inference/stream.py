"""An answer bit by bit: pieces of text as they are written, objects as soon as their group is closed.

transformers' ``generate`` runs in a thread of its own and hands over its tokens through a streamer: the loop, the
settings and the logits processors are those of :func:`padt.inference.predict.predict`, so the end of a stream is what
``predict`` answers. A loop of our own over ``prefill`` and ``step`` would need no thread, but would have to repeat all
of these.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from padt.data.processor import VRT_TEXT, PaDTProcessor
from padt.errors import UserError
from padt.inference.answer_parser import AnswerGroup
from padt.inference.calibration import calibrated
from padt.inference.events import Finished, ObjectFound, StreamEvent, TextPiece
from padt.inference.generation import GenerationSettings, generate_arguments
from padt.inference.grounding import (
    GroundingModel,
    Questions,
    answer_parser,
    decode_groups,
    prediction_of,
    prepare_questions,
)
from padt.inference.requests import Images, Request, paired
from padt.inference.results import PredictedObject
from padt.model.outputs import StateRecorder, Trace

_TORN = "\ufffd"


class TextPieces:
    """Turns tokens into pieces of text: no half of a UTF-8 character, VRTs as ``<|VRT_k|>`` or not at all."""

    def __init__(self, processor: PaDTProcessor, vrts: bool = False) -> None:
        self._processor = processor
        self._vrts = vrts
        self._held: list[int] = []

    def feed(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        if token >= self._processor.vrt_offset:
            piece = self.flush()
            return piece + VRT_TEXT.format(token - self._processor.vrt_offset) if self._vrts else piece
        self._held.append(token)
        piece = self._processor.decode_ids(self._held)
        # The bytes of a character may be spread over tokens.
        if piece.endswith(_TORN):
            return ""
        self._held.clear()
        return piece

    def flush(self) -> str:
        """What is still held back, torn or not."""
        piece = self._processor.decode_ids(self._held)
        self._held.clear()
        return piece


def stream(
    model: GroundingModel,
    images: Images | None,
    request: str | Request,
    settings: GenerationSettings | None = None,
    vrts: bool = False,
) -> Iterator[StreamEvent]:
    """Answer one request bit by bit.

    The request is checked and the pictures are opened before this returns; what generates starts with the first
    event that is taken. Closing the iterator (``break`` and ``close()`` do it) ends the generation after its next
    token.

    Args:
        model: a loaded model with its processor.
        images: the request's image, a list of several, or None for a text-only turn.
        request: what is asked; plain words are a text request.
        settings: how to generate; a beam search knows its answer only at the end and cannot be streamed.
        vrts: write VRTs into the text as ``<|VRT_k|>``; all pieces together are then the prediction's text.

    Yields:
        ``TextPiece``, ``ObjectFound``, and at the end one ``Finished``.

    Raises:
        UserError: the settings ask for beams, or as ``predict``.
        ImageError: an image cannot be used.
    """
    settings = settings or GenerationSettings()
    if settings.num_beams > 1:
        raise UserError(f"A beam search of {settings.num_beams} beams cannot be streamed: use num_beams=1.")
    lists, asked = paired(images, request)
    questions = prepare_questions(model, lists, asked)
    return _events(model, questions, settings, vrts)


def _events(
    model: GroundingModel, questions: Questions, settings: GenerationSettings, vrts: bool
) -> Iterator[StreamEvent]:
    parser = answer_parser(model, questions.frames[0])
    pieces = TextPieces(model.processor, vrts)
    recorder = StateRecorder()
    objects: list[PredictedObject] = []

    def events_of(groups: Sequence[AnswerGroup], text: str) -> Iterator[StreamEvent]:
        # The group comes before the text that closes it.
        for group in groups:
            span = slice(*group.span)
            trace = Trace(torch.cat(recorder.steps[span]), torch.cat(recorder.normalizers[span]))
            (found,) = decode_groups(model, questions, [(0, group)], [trace], settings.masks)
            if found is None:
                continue
            if settings.calibrated:
                (found,) = calibrated(model.config.score_calibration, [found], earlier=objects)
            objects.append(found)
            yield ObjectFound(len(objects) - 1, found)
        if text:
            yield TextPiece(text)

    for token in _tokens(model, questions, recorder, settings):
        groups = parser.feed(token)
        if parser.ended:
            yield from events_of(groups, pieces.flush())
            continue
        yield from events_of(groups, pieces.feed(token))
    yield from events_of(parser.finish(), pieces.flush())
    yield Finished(prediction_of(model, parser, objects, questions.frames[0], torch.cat(recorder.normalizers)))


def _tokens(
    model: GroundingModel, questions: Questions, recorder: StateRecorder, settings: GenerationSettings
) -> Iterator[int]:
    """Ids of the answer as ``generate`` draws them, in a thread that ends with this iterator."""
    hand_over = _HandOver()
    arguments = {
        **questions.inputs,
        **generate_arguments(model.processor, settings),
        "recorder": recorder,
        "streamer": hand_over,
        "stopping_criteria": StoppingCriteriaList([hand_over.stop]),
    }
    thread = threading.Thread(target=hand_over.run, args=(model, arguments), name="padt-stream", daemon=True)
    thread.start()
    try:
        yield from hand_over
    finally:
        hand_over.stop.asked.set()
        thread.join()


class _Stop(StoppingCriteria):
    """Ends a generation when somebody asks for it."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs) -> Tensor:
        return torch.full((len(input_ids),), self.asked.is_set(), dtype=torch.bool, device=input_ids.device)


class _HandOver(BaseStreamer):
    """Passes tokens, and at the end the error if there was one, from the generating thread to the reader."""

    def __init__(self) -> None:
        self.stop = _Stop()
        self._tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._prompt_seen = False

    def run(self, model: GroundingModel, arguments: dict[str, Any]) -> None:
        try:
            with torch.inference_mode():
                model.generate(**arguments)
        except BaseException as error:  # noqa: BLE001 - raised again where the tokens are read
            self._tokens.put(error)
        else:
            self._tokens.put(None)

    def put(self, value: Tensor) -> None:
        """Called by ``generate``: first with the prompt, then with each token."""
        if self._prompt_seen:
            self._tokens.put(int(value.reshape(-1)[0]))
        self._prompt_seen = True

    def end(self) -> None:
        """Called by ``generate`` when all tokens are out; ``run`` says so."""

    def __iter__(self) -> Iterator[int]:
        while (item := self._tokens.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
