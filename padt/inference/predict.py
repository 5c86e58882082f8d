"""Prediction: pictures and requests in, texts and objects in pixels of the original pictures out."""

from collections.abc import Sequence

import torch

from padt.inference.answer_parser import AnswerParser
from padt.inference.calibration import calibrated
from padt.inference.generation import ForbidRepeatedVRTs, GenerationSettings, generate_arguments
from padt.inference.grounding import (
    GroundingModel,
    Questions,
    answer_parser,
    decode_groups,
    prediction_of,
    prepare_questions,
)
from padt.inference.requests import (
    Images,
    Request,
    caption_request,
    detect_request,
    paired,
    refer_request,
    text_request,
)
from padt.inference.results import Frame, PredictedObject, Prediction
from padt.inference.text_boxes import with_text_boxes
from padt.model.outputs import StateRecorder, Trace


@torch.inference_mode()
def predict(
    model: GroundingModel,
    images: Images | Sequence[Images] | None,
    requests: str | Request | Sequence[str | Request],
    settings: GenerationSettings | None = None,
) -> list[Prediction]:
    """Answer one request, or a batch of them.

    Args:
        model: a loaded model with its processor (``padt.load_model``).
        images: for one request its image, a list of several images, or None (a text-only turn); for a batch a list
            with one of these for each request, or one image that all requests are about.
        requests: what is asked; plain words are a text request.
        settings: how to generate; greedy by default.

    Returns:
        One prediction for each request.

    Raises:
        UserError: images and requests differ in number, the model has no processor, a grounding request has no image,
            or a prompt is blank.
        ImageError: an image cannot be used.
    """
    settings = settings or GenerationSettings()
    lists, asked = paired(images, requests)
    if not asked:
        return []
    questions = prepare_questions(model, lists, asked)
    parsers, trace = answer(model, questions, settings)
    items = [(row, group) for row, parser in enumerate(parsers) for group in parser.result().groups]
    traces = [trace.part(row, group.span) for row, group in items]
    found = decode_groups(model, questions, items, traces, settings.masks)
    objects: list[list[PredictedObject]] = [[] for _ in parsers]
    for (row, _), thing in zip(items, found, strict=True):
        if thing is not None:
            objects[row].append(thing)
    if settings.calibrated:
        objects = [calibrated(model.config.score_calibration, things) for things in objects]
    parts = zip(parsers, objects, questions.frames, trace.normalizers, strict=True)
    predictions = [prediction_of(model, *each) for each in parts]
    return [with_text_boxes(each) for each in predictions] if settings.text_boxes else predictions


@torch.inference_mode()
def answer(
    model: GroundingModel, questions: Questions, settings: GenerationSettings
) -> tuple[list[AnswerParser], Trace]:
    """Write the answers to a batch of questions.

    Returns:
        For each question a parser that has read its answer; and the trace of the answers' tokens,
        ``(questions, tokens, ...)``.
    """
    recorder = StateRecorder()
    output = model.generate(**questions.inputs, recorder=recorder, **generate_arguments(model.processor, settings))
    parsers = [answer_parser(model, frames) for frames in questions.frames]
    for parser, row in zip(parsers, output.sequences[:, questions.prompt_length :].tolist(), strict=True):
        for token in row:
            parser.feed(token)
        parser.finish()
    return parsers, recorder.trace(getattr(output, "beam_indices", None))


__all__ = [
    "ForbidRepeatedVRTs",
    "Frame",
    "GenerationSettings",
    "PredictedObject",
    "Prediction",
    "Request",
    "caption_request",
    "detect_request",
    "predict",
    "refer_request",
    "text_request",
]
