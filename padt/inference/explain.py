"""Looking inside an answer: where the probability of the next VRT lies over the picture, step by step.

The head gives each patch of the picture a probability at every position of an answer, beside the words of the
vocabulary. At the positions of a group these are activation maps: what the model looked at when it pointed. They are
read from the states that wrote the answer, before any processor of the search (repetition penalty, guard, temperature).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from padt.inference.answer_parser import AnswerGroup
from padt.inference.calibration import calibrated
from padt.inference.generation import GenerationSettings
from padt.inference.grounding import GroundingModel, Questions, decode_groups, prediction_of, prepare_questions
from padt.inference.predict import answer
from padt.inference.requests import Images, Request, paired
from padt.inference.results import Prediction

# Rows whose logits over the whole vocabulary are held at a time.
_CHUNK = 32


@dataclass(frozen=True)
class VRTStep:
    """What the model thought of each patch before it wrote one token.

    Attributes:
        token: position of the token in the answer.
        image, patch: the VRT: the one that was written, or the likeliest where a word was written.
        probability: of that VRT.
        vrt_mass: probability of all VRTs together; the rest is that of words.
        entropy: of the distribution over the patches alone, in bits; 0 = one patch has it all.
        heat: for each image of the request ``(grid_h, grid_w)`` float32: probability of each patch's VRT.
    """

    token: int
    image: int
    patch: int
    probability: float
    vrt_mass: float
    entropy: float
    heat: tuple[np.ndarray, ...]

    def top(self, count: int = 10) -> list[dict[str, Any]]:
        """The likeliest patches, most likely first."""
        ranked = sorted(
            (-float(value), image, int(patch))
            for image, heat in enumerate(self.heat)
            for patch, value in zip(
                *_largest(heat.reshape(-1), count),
                strict=True,
            )
        )
        return [
            {
                "image": image,
                "patch": patch,
                "row": patch // self.heat[image].shape[1],
                "column": patch % self.heat[image].shape[1],
                "probability": -value,
            }
            for value, image, patch in ranked[:count]
        ]

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """Plain values for JSON; of the maps only the ``top`` patches."""
        return {
            "token": self.token,
            "image": self.image,
            "patch": self.patch,
            "probability": self.probability,
            "vrt_mass": self.vrt_mass,
            "entropy_bits": self.entropy,
            "top": self.top(top),
        }


@dataclass(frozen=True)
class Explanation:
    """An answer and how it came about.

    Attributes:
        prediction: the answer.
        pictures: the upright images of the request.
        steps: for each object of the prediction the steps that wrote its VRTs.
        nearest: where the answer has no VRT: the step at which the VRTs together were likeliest; None for an empty
            answer, one without a picture, or one whose probabilities are not finite.
    """

    prediction: Prediction
    pictures: tuple[Image.Image, ...]
    steps: tuple[tuple[VRTStep, ...], ...]
    nearest: VRTStep | None = None

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """Plain values for JSON: the prediction, with ``steps`` in each object."""
        values = self.prediction.to_dict()
        for found, steps in zip(values["objects"], self.steps, strict=True):
            found["steps"] = [step.to_dict(top) for step in steps]
        values["nearest"] = self.nearest.to_dict(top) if self.nearest else None
        return values


@torch.inference_mode()
def explain(
    model: GroundingModel,
    images: Images | None,
    request: str | Request,
    settings: GenerationSettings | None = None,
) -> Explanation:
    """Answer one request, and keep what the model thought of each patch when it pointed.

    Args:
        model: a loaded model with its processor.
        images: the request's image, or a list of several.
        request: what is asked; plain words are a text request.
        settings: how to generate; greedy by default.

    Raises:
        UserError: as ``padt.inference.predict.predict``.
        ImageError: an image cannot be used.
    """
    settings = settings or GenerationSettings()
    questions = prepare_questions(model, *paired(images, request))
    (parser,), trace = answer(model, questions, settings)
    groups = parser.result().groups
    traces = [trace.part(0, group.span) for group in groups]
    decoded = decode_groups(model, questions, [(0, group) for group in groups], traces, settings.masks)
    kept = [each for each in zip(decoded, groups, traces, strict=True) if each[0] is not None]
    objects = [found for found, _, _ in kept if found is not None]
    if settings.calibrated:
        objects = calibrated(model.config.score_calibration, objects)
    steps = tuple(_steps_of_group(model, questions, group, part.states) for _, group, part in kept)
    nearest = None
    if not groups and questions.table is not None and parser.ids:
        nearest = _likeliest_step(model, questions, trace.states[0, : len(parser.ids)])
    prediction = prediction_of(model, parser, objects, questions.frames[0], trace.normalizers[0])
    return Explanation(prediction, tuple(questions.pictures[0]), steps, nearest)


def _steps_of_group(model, questions: Questions, group: AnswerGroup, states: Tensor) -> tuple[VRTStep, ...]:
    chances = _vrt_chances(model, questions, states)
    return tuple(
        _step(questions, row, group.span[0] + place, vrt)
        for place, (row, vrt) in enumerate(zip(chances, group.vrts, strict=True))
    )


def _likeliest_step(model, questions: Questions, states: Tensor) -> VRTStep | None:
    chances = _vrt_chances(model, questions, states)
    if not np.isfinite(chances).all():
        return None
    token = int(chances.sum(axis=1).argmax())
    return _step(questions, chances[token], token, int(chances[token].argmax()))


def _vrt_chances(model, questions: Questions, states: Tensor) -> np.ndarray:
    """Probability of each VRT at each state: ``(states, d)`` -> ``(states, patches)``."""
    table = questions.table
    assert table is not None  # callers have pictures
    known = torch.ones((1, len(table)), dtype=torch.bool, device=table.device)
    parts = [
        model.lm_head(rows[None], table[None], known)[0].float().softmax(-1)[:, -len(table) :]
        for rows in states.split(_CHUNK)
    ]
    return torch.cat(parts).cpu().numpy()


def _step(questions: Questions, chances: np.ndarray, token: int, vrt: int) -> VRTStep:
    frames = questions.frames[0]
    edges = np.cumsum([frame.patches for frame in frames])
    image = int(np.searchsorted(edges, vrt, side="right"))
    heat = tuple(part.reshape(frame.grid) for part, frame in zip(np.split(chances, edges[:-1]), frames, strict=True))
    mass = float(chances.sum())
    share = chances[chances > 0] / mass if mass > 0 else np.ones(1)
    return VRTStep(
        token=token,
        image=image,
        patch=vrt - int(edges[image] - frames[image].patches),
        probability=float(chances[vrt]),
        vrt_mass=mass,
        entropy=max(0.0, float(-(share * np.log2(share)).sum())),
        heat=heat,
    )


def _largest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of the largest values, largest first."""
    places = np.argsort(-values, kind="stable")[:count]
    return places, values[places]
