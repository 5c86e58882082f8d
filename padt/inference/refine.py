"""Masks made finer by SAM 2: an answer's boxes, masks or patches prompt it, and its masks take the model's place.

Only masks change: labels, scores, patches and (unless asked) boxes stay. SAM 2 sees a picture once, whatever the number
of objects and answers. It runs in float32: half precision knows places in the picture to a few pixels only.

Torch and transformers are imported where a refiner is loaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padt.data.image import ImageSource, open_image
from padt.data.rle import area, bounds, decode
from padt.errors import UserError, look_up
from padt.inference.results import PredictedObject, Prediction

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DEFAULT_MODEL = "facebook/sam2.1-hiera-large"
DEFAULT_PROMPT = "box+mask"
PROMPTS = {
    "box+mask": "the box and the model's own mask",
    "box": "the box",
    "mask": "the model's own mask",
    "points": "the centres of the object's patches",
}
"""What SAM 2 can be told of an object. Boxes and masks were seen to help, points were not."""
REFINERS = ("sam2",)
"""Models that can refine."""
_KINDS = ("sam2", "sam2_video")
# Objects that go through the mask decoder together: 16 of them take about half a GiB at SAM 2's own size.
_TOGETHER = 16
# What SAM 2 itself makes of a given mask: sure of what lies inside, and of what does not.
_SURE = 10.0


@dataclass(frozen=True)
class Refinement:
    """How masks are refined.

    Attributes:
        prompt: what SAM 2 is told of an object, a key of ``PROMPTS``.
        model: its weights: folder, or ``OWNER/NAME`` on the Hub.
        boxes: also replace an object's box by the one around its refined mask.

    Raises:
        UserError: the prompt is unknown.
    """

    prompt: str = DEFAULT_PROMPT
    model: str = DEFAULT_MODEL
    boxes: bool = False

    def __post_init__(self) -> None:
        look_up("refine_prompt", self.prompt, PROMPTS)

    @classmethod
    def asked(cls, by: str | None, prompt: str | None = None, model: str | None = None) -> "Refinement | None":
        """What options ask for: None without the name of a refiner.

        Raises:
            UserError: the refiner or the prompt is unknown, or there is a prompt or a model without a refiner.
        """
        if not by:
            if prompt or model:
                raise UserError("refine_prompt and refine_model say how masks are refined: give refine=sam2 too.")
            return None
        look_up("refine", by, dict.fromkeys(REFINERS))
        return cls(prompt or DEFAULT_PROMPT, model or DEFAULT_MODEL)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for records of how masks were made."""
        return {"by": REFINERS[0], **asdict(self)}


@dataclass(frozen=True)
class _Prompts:
    """What is told of one object, in SAM 2's frame: the picture stretched to a square of ``size`` pixels.

    Attributes:
        place: which of the answer's objects.
        points: ``(n, 2)`` x and y, or None.
        box: ``(4,)`` xyxy, or None.
        mask: ``(1, size / 4, size / 4)`` logits, or None.
    """

    place: int
    points: "Tensor | None" = field(repr=False)
    box: "Tensor | None" = field(repr=False)
    mask: "Tensor | None" = field(repr=False)

    @property
    def shape(self) -> tuple[int, bool, bool]:
        """Objects of one shape go through the decoder together, without padding, which it would see."""
        return (0 if self.points is None else len(self.points), self.box is not None, self.mask is not None)


class MaskRefiner:
    """SAM 2, ready to refine.

    Attributes:
        refinement: how.
    """

    def __init__(self, model: Any, image_processor: Any, refinement: Refinement) -> None:
        """Take what :func:`load_refiner` has loaded.

        Args:
            model: ``transformers.Sam2Model``, in eval mode.
            image_processor: stretches pictures to the model's square, and normalises them.
            refinement: how to refine.
        """
        self.refinement = refinement
        self._model = model
        self._image_processor = image_processor
        self._size = int(model.prompt_encoder.input_image_size)

    def refine(self, pictures: Sequence[ImageSource], predictions: Sequence[Prediction]) -> list[Prediction]:
        """Refine the masks of some answers about the same pictures.

        An object without a mask, or with an empty one where nothing but the mask is told, stays as it is. Where SAM 2
        gives nothing (an empty mask) or something not finite, the object's own mask stays and a warning counts it.

        Args:
            pictures: of the request, in its order, at any size.
            predictions: the answers.

        Returns:
            The answers, with masks of the size that they had: run lengths of the upright original pictures.

        Raises:
            UserError: pictures and answers do not belong together.
            ImageError: a picture cannot be used.
        """
        import torch

        for prediction in predictions:
            if len(prediction.images) != len(pictures):
                raise UserError(
                    f"The answer is about {len(prediction.images)} pictures, and {len(pictures)} were given: give the "
                    "pictures of its request."
                )
        found = [list(prediction.objects) for prediction in predictions]
        empty = [0] * len(predictions)
        broken = [0] * len(predictions)
        with torch.inference_mode():
            for image, picture in enumerate(pictures):
                told = [list(self._prompts(prediction, image)) for prediction in predictions]
                if not any(told):
                    continue
                seen = self._see(picture)
                for number, prompts in enumerate(told):
                    for place, logits in self._masks(seen, prompts):
                        if not bool(logits.isfinite().all()):
                            broken[number] += 1
                            continue
                        refined = self._refined(found[number][place], logits)
                        empty[number] += refined is None
                        found[number][place] = refined or found[number][place]
        return [
            replace(prediction, objects=tuple(objects), warnings=(*prediction.warnings, *_warnings(none, lost)))
            for prediction, objects, none, lost in zip(predictions, found, empty, broken, strict=True)
        ]

    def _see(self, picture: ImageSource) -> "list[Tensor]":
        """Features of a picture ``(1, channels, height, width)``, the finest first."""
        pixels = self._image_processor(open_image(picture), return_tensors="pt")["pixel_values"]
        return self._model.get_image_embeddings(pixels.to(self._model.device, self._model.dtype))

    def _prompts(self, prediction: Prediction, image: int) -> Iterator[_Prompts]:
        """What is told of those objects of an answer that lie in a picture and can be refined."""
        import torch

        frame, prompt = prediction.images[image], self.refinement.prompt
        to_square = torch.tensor([self._size / frame.width, self._size / frame.height] * 2)
        for place, thing in enumerate(prediction.objects):
            if thing.image != image or thing.mask is None:
                continue
            points = box = mask = None
            if prompt == "points":
                patches = torch.tensor(thing.patches)
                rows, columns = patches // frame.grid[1], patches % frame.grid[1]
                points = torch.stack([(columns + 0.5) / frame.grid[1], (rows + 0.5) / frame.grid[0]], 1) * self._size
            if "box" in prompt:
                box = torch.tensor(thing.box) * to_square
            if "mask" in prompt and area(thing.mask):
                mask = self._mask_prompt(thing.mask)
            told = _Prompts(place, points if points is not None and len(points) else None, box, mask)
            if any(told.shape):
                yield told

    def _mask_prompt(self, mask: dict[str, Any]) -> "Tensor":
        import torch
        import torch.nn.functional as F

        pixels = torch.from_numpy(decode(mask))[None, None].to(self._model.device, torch.float32)
        size = self._model.prompt_encoder.mask_input_size
        share = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)[0]
        return 2 * _SURE * share - _SURE

    def _masks(self, seen: "list[Tensor]", prompts: list[_Prompts]) -> "Iterator[tuple[int, Tensor]]":
        """The place of each object and its new mask's logits ``(size / 4, size / 4)``, in float32."""
        import torch

        device, dtype = self._model.device, self._model.dtype
        for shape, same in groupby(sorted(prompts, key=lambda told: told.shape), key=lambda told: told.shape):
            each = list(same)
            for start in range(0, len(each), _TOGETHER):
                some = each[start : start + _TOGETHER]
                told: dict[str, Tensor] = {}
                if shape[0]:
                    # (objects, 1, points, 2): an object is one mask of "its own" picture.
                    told["input_points"] = torch.stack([one.points for one in some if one.points is not None])[:, None]
                    told["input_labels"] = torch.ones(told["input_points"].shape[:3], dtype=torch.int64)
                if shape[1]:
                    told["input_boxes"] = torch.stack([one.box for one in some if one.box is not None])[:, None]
                told = {name: values.to(device) for name, values in told.items()}
                if shape[2]:
                    told["input_masks"] = torch.stack([one.mask for one in some if one.mask is not None]).to(dtype)
                features = [each.expand(len(some), -1, -1, -1) for each in seen]
                output = self._model(image_embeddings=features, multimask_output=False, **told)
                yield from zip((one.place for one in some), output.pred_masks[:, 0, 0].float(), strict=True)

    def _refined(self, thing: PredictedObject, logits: "Tensor") -> PredictedObject | None:
        """The object with the mask of these logits; None where that is empty."""
        from padt.inference.grounding import mask_rle

        assert thing.mask is not None
        mask = mask_rle(logits, *thing.mask["size"])
        around = bounds(mask)
        if around is None:
            return None
        if not self.refinement.boxes:
            return replace(thing, mask=mask)
        x0, y0, x1, y1 = map(float, around)
        return replace(thing, mask=mask, box=(x0, y0, x1, y1))


def load_refiner(
    refinement: Refinement | None = None,
    *,
    device: "str | torch.device | None" = None,
    dtype: "torch.dtype | None" = None,
) -> MaskRefiner:
    """Load SAM 2 by transformers' own classes.

    Args:
        refinement: how to refine, and with which weights.
        device: where to put it; by default the accelerator if there is one.
        dtype: of its weights, float32 by default; half precision is quicker on an accelerator and places boxes and
            points to a few pixels only.

    Raises:
        UserError: the weights cannot be found or read, or are no SAM 2.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import Sam2Model

    from padt.checkpoints.loading import default_device
    from padt.pretrained.quiet import quiet_transformers

    refinement = refinement or Refinement()
    folder = sam2_folder(refinement.model)
    try:
        with quiet_transformers():
            model, info = Sam2Model.from_pretrained(
                folder, dtype=dtype or torch.float32, local_files_only=True, output_loading_info=True
            )
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"The SAM 2 in {folder} cannot be read ({error}): check that the folder is whole.") from error
    lost = sorted(str(key) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[name])
    if lost:
        raise UserError(f"The SAM 2 in {folder} does not fit its configuration ({', '.join(lost[:5])}): copy it again.")
    model = model.to(default_device() if device is None else device).eval()
    return MaskRefiner(model, _image_processor(folder, int(model.prompt_encoder.input_image_size)), refinement)


def sam2_folder(reference: str) -> Path:
    """Local folder of a SAM 2, downloaded first where it is a repository of the Hub.

    Raises:
        UserError: it is not there, or is no SAM 2.
    """
    from padt.pretrained.hub import model_folder, read_json

    folder = model_folder(reference)
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in _KINDS:
        raise UserError(
            f"{reference} is no SAM 2 (its model_type is {kind!r}): give a folder of Sam2Model, or a repository of the "
            f"Hub such as {DEFAULT_MODEL}, as the model to refine with."
        )
    return folder


def _image_processor(folder: Path, size: int) -> Any:
    """Stretches a picture to the square and normalises it as the folder says, without torchvision.

    Transformers' own processor of SAM 2 does the same, but its module needs torchvision.
    """
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from padt.pretrained.hub import read_json

    saved = read_json(folder / "preprocessor_config.json")
    saved = saved or read_json(folder / "processor_config.json").get("image_processor") or {}
    return ViTImageProcessorPil(
        size={"height": size, "width": size},
        image_mean=saved.get("image_mean", IMAGENET_DEFAULT_MEAN),
        image_std=saved.get("image_std", IMAGENET_DEFAULT_STD),
    )


def _warnings(empty: int, broken: int) -> Iterator[str]:
    if empty:
        yield f"{empty} masks that SAM 2 made are empty: the model's own stay"
    if broken:
        yield f"{broken} masks that SAM 2 made are not finite (inf or NaN): the model's own stay; use float32"
