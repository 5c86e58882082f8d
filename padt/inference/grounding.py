"""From groups of VRTs to objects: one run of the object decoder over any groups of a batch of questions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from padt.data.image import ImageSource
from padt.data.rle import encode
from padt.data.tasks import TASKS
from padt.errors import UserError
from padt.inference.answer_parser import AnswerGroup, AnswerParser
from padt.inference.generation import end_token_ids
from padt.inference.requests import Request
from padt.inference.results import Frame, PredictedObject, Prediction
from padt.model.losses import cxcywh_to_xyxy
from padt.model.outputs import Trace
from padt.model.vision import ImageFeatures
from padt.pretrained.config import PaDTConfig


class GroundingModel(Protocol):
    """What prediction needs of a model (:class:`padt.PaDTForConditionalGeneration` has it).

    Attributes:
        config: its configuration.
        processor: its processor, or None where it was loaded without.
        lm_head: ``(rows, positions, d)`` states, prototypes and their mask -> logits over words and VRTs.
        vl_decoder: the object decoder (``padt.model.decoder.ObjectDecoder``).
    """

    config: PaDTConfig
    processor: Any
    lm_head: Any
    vl_decoder: Any

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def image_features(self, pixel_values: Tensor, grid_thw: Tensor) -> ImageFeatures:
        """``(vit_patches, 1176)`` pixels and ``(images, 3)`` grids -> features of the vision tower."""

    def prototypes_of(self, merged: Tensor) -> Tensor:
        """Merged features ``(patches, d)`` -> prototypes ``(patches, d)``."""

    def generate(self, **arguments: Any) -> Any:
        """Transformers' ``generate``, with a ``recorder`` of states."""


@dataclass(frozen=True)
class SeenImages:
    """What the model has seen of the images of some questions.

    Attributes:
        frames: sizes and grids of the images of each question.
        features: of all images, one after the other; None where no question has any.
        table: ``(patches, d)`` their prototypes.
    """

    frames: list[tuple[Frame, ...]]
    features: ImageFeatures | None
    table: Tensor | None

    @property
    def patch_counts(self) -> list[int]:
        """Patches of each question, over all its images."""
        return [sum(frame.patches for frame in frames) for frames in self.frames]


@dataclass(frozen=True)
class Questions(SeenImages):
    """A batch of questions with everything that does not depend on the answers.

    Attributes:
        inputs: arguments of ``model.generate``: ids padded on the left, and the vision tower's output.
        pictures: the upright images of each question.
    """

    inputs: dict[str, Any]
    pictures: list[list[Image.Image]]

    @property
    def prompt_length(self) -> int:
        """Positions before the answers."""
        return self.inputs["input_ids"].shape[1]


@torch.inference_mode()
def prepare_questions(
    model: GroundingModel, images: Sequence[Sequence[ImageSource]], requests: Sequence[Request]
) -> Questions:
    """Open the images, run the vision tower once over all of them, and tokenise the prompts.

    Args:
        model: with its processor.
        images: the images of each question.
        requests: the questions.

    Raises:
        UserError: the model has no processor, or a grounding request has no image.
        ImageError: an image cannot be used.
    """
    processor = processor_of(model)
    for group, request in zip(images, requests, strict=True):
        check_images(request, len(group))
    inputs, pictures = processor.prompt_inputs(images, [request.prompt for request in requests])
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    features = table = None
    grids: Iterator[tuple[int, int]] = iter(())
    if "pixel_values" in inputs:
        features = model.image_features(inputs.pop("pixel_values"), inputs["image_grid_thw"])
        table = model.prototypes_of(features.merged)
        grids = iter(features.grids)
        # generate may rearrange its list for beams.
        pooled = list(features.merged.split(features.patch_counts))
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=pooled)}
    frames = [tuple(frame_of(picture, *next(grids)) for picture in group) for group in pictures]
    return Questions(frames, features, table, inputs, pictures)


def processor_of(model: GroundingModel) -> Any:
    """The model's processor.

    Raises:
        UserError: it has none.
    """
    if model.processor is None:
        raise UserError("The model has no processor: load it with padt.load_model(path).")
    return model.processor


def check_images(request: Request, images: int) -> None:
    """Make sure that a request has the image that its task needs.

    Raises:
        UserError: it has none.
    """
    if not images and TASKS[request.task].grounded:
        raise UserError(f"A {request.task!r} request needs an image: give one.")


def answer_parser(model: GroundingModel, frames: Sequence[Frame]) -> AnswerParser:
    """A parser for the answer to a question about these pictures."""
    processor = model.processor
    counts = [frame.patches for frame in frames]
    return AnswerParser(processor.vrt_offset, counts, processor.decode_ids, end_token_ids(processor))


@torch.inference_mode()
def decode_groups(
    model: GroundingModel,
    seen: SeenImages,
    items: Sequence[tuple[int, AnswerGroup]],
    traces: Sequence[Trace],
    masks: bool = True,
) -> list[PredictedObject | None]:
    """Decode groups into objects.

    Args:
        model: the model.
        seen: the images of the questions.
        items: question and group of each object.
        traces: of the VRTs of each object.
        masks: make masks at the size of the original pictures too.

    Returns:
        One object for each item; None where its box, score, mask or confidence is not finite.
    """
    if not items or seen.features is None or seen.table is None:
        return []
    first_image = [0]
    for frames in seen.frames:
        first_image.append(first_image[-1] + len(frames))
    images = [first_image[row] + group.image for row, group in items]
    counts = [len(group.vrts) for _, group in items]
    boxes, scores, logits = model.vl_decoder(
        torch.cat([trace.states for trace in traces]), counts, images, seen.features, seen.table, masks=masks
    )
    tables = seen.table.split(seen.patch_counts)
    confidences = [_confidence(tables[row], group, trace) for (row, group), trace in zip(items, traces, strict=True)]
    finite = boxes.isfinite().all(1) & scores.isfinite() & torch.stack(confidences).isfinite()
    if masks:
        finite &= torch.stack([cells.isfinite().all() for cells in logits])
    numbers = torch.column_stack(
        [finite, cxcywh_to_xyxy(boxes.float()).clamp(0, 1), scores.float().sigmoid(), torch.stack(confidences)]
    )
    found: list[PredictedObject | None] = []
    for number, ((row, group), values) in enumerate(zip(items, numbers.tolist(), strict=True)):
        is_finite, x0, y0, x1, y1, score, confidence = values
        if not is_finite:
            found.append(None)
            continue
        frames = seen.frames[row]
        frame = frames[group.image]
        before = sum(earlier.patches for earlier in frames[: group.image])
        found.append(
            PredictedObject(
                label=group.label,
                score=score,
                box=(x0 * frame.width, y0 * frame.height, x1 * frame.width, y1 * frame.height),
                mask=mask_rle(logits[number], frame.height, frame.width) if masks else None,
                patches=tuple(vrt - before for vrt in group.vrts),
                span=group.span,
                confidence=confidence,
                complete=group.complete,
                image=group.image,
            )
        )
    return found


def prediction_of(
    model: GroundingModel,
    parser: AnswerParser,
    objects: Sequence[PredictedObject],
    frames: tuple[Frame, ...],
    normalizers: Tensor | None = None,
) -> Prediction:
    """The answer that a parser has read.

    Args:
        model: the model.
        parser: its reader.
        objects: of the answer's groups; those that are not finite are left out, and counted here.
        frames: of the request's pictures.
        normalizers: of the answer's tokens (:class:`padt.model.outputs.Trace`); None = known to be finite.
    """
    parsed = parser.result()
    warnings = list(parsed.warnings)
    lost = len(parsed.groups) - len(objects)
    if lost:
        warnings.append(
            f"{lost} of {len(parsed.groups)} objects are not finite (inf or NaN) and were left out: use float32"
        )
    if normalizers is not None and not normalizers[: len(parser.ids)].isfinite().all():
        warnings.append("the logits of words are not finite (inf or NaN), so the text means nothing: use float32")
    return Prediction(
        text=model.processor.decode_ids(parser.ids),
        objects=tuple(objects),
        images=frames,
        token_ids=tuple(parser.ids),
        truncated=parsed.truncated,
        warnings=tuple(warnings),
        not_finite=lost,
    )


def frame_of(picture: Image.Image, h_vit: int, w_vit: int) -> Frame:
    """Size of an upright picture whose resized self has this grid of ViT patches."""
    return Frame(picture.width, picture.height, (h_vit // 2, w_vit // 2))


def mask_rle(logits: Tensor, height: int, width: int) -> dict[str, Any]:
    """Mask logits ``(4 h_vit, 4 w_vit)`` -> run-length mask of the picture's ``(height, width)``."""
    full = F.interpolate(logits[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)
    return encode((full[0, 0] > 0).cpu().numpy())


def _confidence(table: Tensor, group: AnswerGroup, trace: Trace) -> Tensor:
    """Geometric mean of the probabilities of a group's VRTs, a scalar in fp32."""
    vrts = torch.tensor(group.vrts, device=table.device)
    logits = (trace.states.float() * table[vrts].float()).sum(-1)
    # In half precision the logit that the normalizer has seen may have been a little different.
    return (logits - trace.normalizers).clamp(max=0).mean().exp()
