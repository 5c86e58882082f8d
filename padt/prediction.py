"""Prediction: pictures and requests in, texts and objects in pixels of the original pictures out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling

from padt.answer import AnswerGroup, ParsedAnswer, parse_answer
from padt.errors import UserError
from padt.image import ImageSource
from padt.losses import cxcywh_to_xyxy
from padt.model.head import SupervisedRows
from padt.model.modeling import StateRecorder
from padt.model.vision import pad_images
from padt.rle import encode
from padt.tasks import CAPTION_PROMPT, detect_prompt, refer_prompt

if TYPE_CHECKING:
    from padt.model.modeling import PaDTForConditionalGeneration


@dataclass(frozen=True)
class Request:
    """What is asked about a picture: a task (``detect``, ``refer``, ``caption`` or ``text``) and the user's words."""

    task: str
    prompt: str


def detect_request(names: Sequence[str]) -> Request:
    """Find every object of the named classes."""
    return Request("detect", detect_prompt(names))


def refer_request(sentence: str) -> Request:
    """Find the object that a sentence describes."""
    return Request("refer", refer_prompt(sentence))


def caption_request() -> Request:
    """Describe the picture, every noun grounded."""
    return Request("caption", CAPTION_PROMPT)


def text_request(prompt: str) -> Request:
    """Ask anything.

    Raises:
        UserError: the prompt is blank.
    """
    if not prompt.strip():
        raise UserError("The prompt is blank: say what you want to know.")
    return Request("text", prompt)


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated.

    Attributes:
        max_new_tokens: longest answer.
        num_beams: beams of a beam search; 1 = none.
        temperature: 0 = greedy, else sampling.
        top_p: nucleus of the sampling.
        forbid_repeats: a VRT may not come twice in one group (robust cross-entropy never punishes repeats).
        masks: decode masks to run lengths; boxes and scores come always.
    """

    max_new_tokens: int = 1024
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    forbid_repeats: bool = False
    masks: bool = True


@dataclass(frozen=True)
class PredictedObject:
    """One grounded thing of an answer.

    Attributes:
        label: what the answer calls it.
        score: the decoder's estimate of the box's quality, (0, 1).
        box: ``(x0, y0, x1, y1)`` in pixels of the upright original image.
        mask: COCO run-length mask of the upright original image; None if not asked for.
        patches: the VRTs, as row-major indices in the image's patch grid, in order of writing.
        span: token span in the answer.
        confidence: geometric mean of the probabilities of its VRTs.
        complete: False where the answer was cut off inside the group.
        image: index of the image among those of the request.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any] | None
    patches: tuple[int, ...]
    span: tuple[int, int]
    confidence: float
    complete: bool
    image: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Prediction:
    """An answer.

    Attributes:
        text: the answer with VRTs written ``<|VRT_k|>``.
        objects: in order of writing.
        width, height: of the (first) upright original image, in pixels; 0 without one.
        grid: its patch grid ``(grid_h, grid_w)``.
        token_ids: the answer's ids.
        truncated: the answer ended at ``max_new_tokens``.
        warnings: what the parser dropped or split.
    """

    text: str
    objects: tuple[PredictedObject, ...]
    width: int
    height: int
    grid: tuple[int, int]
    token_ids: tuple[int, ...] = field(repr=False)
    truncated: bool = False
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; token ids are left out."""
        values = asdict(self)
        del values["token_ids"]
        return values


class ForbidRepeatedVRTs(LogitsProcessor):
    """Makes it impossible to write a VRT that the current group already has."""

    def __init__(self, vrt_offset: int) -> None:
        self.vrt_offset = vrt_offset

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``(rows, tokens)`` and ``(rows, V + max_patches)`` -> scores with the group's VRTs at -inf."""
        in_group = (input_ids >= self.vrt_offset).flip(1).long().cumprod(1).flip(1).bool()
        longest = int(in_group.sum(1).max())
        if not longest:
            return scores
        tail, active = input_ids[:, -longest:], in_group[:, -longest:]
        # Rows whose group is shorter point at their last token instead, which is either in the group or text of theirs.
        columns = torch.where(active, tail, tail[:, -1:])
        hide = torch.zeros_like(scores, dtype=torch.bool).scatter(1, columns, columns >= self.vrt_offset)
        return scores.masked_fill(hide, float("-inf"))


@torch.inference_mode()
def predict(
    model: "PaDTForConditionalGeneration",
    images: Sequence[ImageSource | Sequence[ImageSource]],
    requests: Sequence[Request],
    settings: GenerationSettings | None = None,
) -> list[Prediction]:
    """Answer a batch of requests.

    Args:
        model: a loaded model with its processor (``padt.load_model``).
        images: for each request its image, or a list of images (empty for a text-only turn).
        requests: what is asked.
        settings: how to generate; greedy by default.

    Raises:
        UserError: images and requests differ in number, or the model has no processor, or a grounding request has no
            image.
        ImageError: an image cannot be used.
    """
    settings = settings or GenerationSettings()
    processor = model.processor
    if processor is None:
        raise UserError("The model has no processor: load it with padt.load_model(path).")
    if len(images) != len(requests):
        raise UserError(f"{len(images)} images for {len(requests)} requests: give one image, or a list, for each.")
    lists = [list(item) if isinstance(item, list | tuple) else [item] for item in images]
    for group, request in zip(lists, requests, strict=True):
        if not group and request.task != "text":
            raise UserError(f"A {request.task!r} request needs an image: give one.")
    if not requests:
        return []
    inputs, opened = processor.prompt_inputs(lists, [request.prompt for request in requests])
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    grid_thw = inputs.get("image_grid_thw")
    encoded = None
    if grid_thw is not None:
        encoded = model.model.get_image_features(inputs.pop("pixel_values"), grid_thw, return_dict=True)
        # generate may rearrange its copy for beams.
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=list(encoded.pooler_output))}
    recorder = StateRecorder()
    output = model.generate(
        **inputs, recorder=recorder, return_dict_in_generate=True, **_generate_arguments(processor, settings)
    )
    answers = output.sequences[:, inputs["input_ids"].shape[1] :]
    states = recorder.states(getattr(output, "beam_indices", None))[:, : answers.shape[1]]
    grids = _grids_of(lists, grid_thw)
    parsed = [
        parse_answer(
            row, processor.vrt_offset, [h * w // 4 for h, w in grid], processor.decode_ids, _end_ids(processor)
        )
        for row, grid in zip(answers.tolist(), grids, strict=True)
    ]
    objects = _decode_objects(model, encoded, grid_thw, parsed, states, answers, grids, opened, settings)
    return [
        _prediction(processor, *parts) for parts in zip(answers.tolist(), parsed, objects, opened, grids, strict=True)
    ]


def _generate_arguments(processor, settings: GenerationSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "num_beams": settings.num_beams,
        "do_sample": settings.temperature > 0,
        "eos_token_id": _end_ids(processor),
        "pad_token_id": processor.pad_token_id,
    }
    if settings.temperature > 0:
        arguments |= {"temperature": settings.temperature, "top_p": settings.top_p}
    if settings.forbid_repeats:
        arguments["logits_processor"] = LogitsProcessorList([ForbidRepeatedVRTs(processor.vrt_offset)])
    return arguments


def _end_ids(processor) -> list[int]:
    return sorted({processor.end_token_id, processor.pad_token_id})


def _grids_of(lists, grid_thw: Tensor | None) -> list[list[tuple[int, int]]]:
    flat = iter([] if grid_thw is None else [(h, w) for _, h, w in grid_thw.tolist()])
    return [[next(flat) for _ in group] for group in lists]


def _decode_objects(
    model, encoded, grid_thw, parsed: list[ParsedAnswer], states, answers, grids, opened, settings
) -> list[list[PredictedObject]]:
    """Run the object decoder once over all groups of the batch."""
    found: list[list[PredictedObject]] = [[] for _ in parsed]
    items = [(row, group) for row, answer in enumerate(parsed) for group in answer.groups]
    if not items or encoded is None:
        return found
    features = model.ordered_features(encoded, grid_thw)
    table = model.prototypes_of(features.merged)
    first_image = [sum(len(group) for group in grids[:row]) for row in range(len(grids))]
    images = [first_image[row] + group.image for row, group in items]
    rows = torch.cat([states[row, slice(*group.span)] for row, group in items])
    counts = [len(group.vrts) for _, group in items]
    boxes, scores, masks = model.vl_decoder(rows, counts, images, features, table)
    corners = cxcywh_to_xyxy(boxes.float()).clamp(0, 1).tolist()
    qualities = scores.float().sigmoid().tolist()
    confidences = _confidences(model, items, states, answers, table, grids)
    for number, (row, group) in enumerate(items):
        image = opened[row][group.image]
        mask = _to_rle(masks[number], image.height, image.width) if settings.masks else None
        found[row].append(
            _object(group, corners[number], qualities[number], confidences[number], mask, image, grids[row])
        )
    return found


def _object(group: AnswerGroup, corners, quality, confidence, mask, image, grids) -> PredictedObject:
    x0, y0, x1, y1 = corners
    before = sum(h * w // 4 for h, w in grids[: group.image])
    return PredictedObject(
        label=group.label,
        score=quality,
        box=(x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height),
        mask=mask,
        patches=tuple(vrt - before for vrt in group.vrts),
        span=group.span,
        confidence=confidence,
        complete=group.complete,
        image=group.image,
    )


def _to_rle(logits: Tensor, height: int, width: int) -> dict[str, Any]:
    full = F.interpolate(logits[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)
    return encode((full[0, 0] > 0).cpu().numpy())


def _confidences(model, items, states, answers, table, grids) -> list[float]:
    """Geometric mean of the probabilities of each group's VRTs: the head once more, at these positions only."""
    counts = [sum(h * w // 4 for h, w in group) for group in grids]
    prototypes, prototype_mask = pad_images(table, counts)
    width = max(sum(len(g.vrts) for r, g in items if r == row) for row in range(len(grids)))
    positions = torch.zeros((len(grids), width), dtype=torch.long)
    targets = torch.full((len(grids), width), -100)
    places: list[tuple[int, int, int]] = []
    used = [0] * len(grids)
    for row, group in items:
        start, length = used[row], len(group.vrts)
        positions[row, start : start + length] = torch.arange(*group.span)
        targets[row, start : start + length] = answers[row, slice(*group.span)].cpu()
        places.append((row, start, length))
        used[row] += length
    device = states.device
    rows = SupervisedRows(positions.to(device), targets.to(device), torch.full_like(targets, -1).to(device))
    nll = model.lm_head(states, prototypes, prototype_mask, rows).cpu()
    return [float(torch.exp(-nll[row, start : start + length].mean())) for row, start, length in places]


def _prediction(processor, ids, parsed: ParsedAnswer, objects, opened, grids) -> Prediction:
    ends = set(_end_ids(processor))
    kept = ids[: next((index for index, token in enumerate(ids) if token in ends), len(ids))]
    first = opened[0] if opened else None
    return Prediction(
        text=processor.decode_ids(kept),
        objects=tuple(objects),
        width=first.width if first else 0,
        height=first.height if first else 0,
        grid=(grids[0][0] // 2, grids[0][1] // 2) if grids else (0, 0),
        token_ids=tuple(kept),
        truncated=parsed.truncated,
        warnings=parsed.warnings,
    )
