"""PaDT's processor: images and words in, token ids and patches out, and back.

The tokenizer is never grown: the VRT of patch ``k`` is the id ``V + k`` and is written ``<|VRT_k|>`` only for people.
Users' text is tokenised without special tokens, so that a label or a sentence can neither inject a turn nor a VRT.
"""

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from padt.batch import EncodedGroup, EncodedSample, cut_patches, mask_target
from padt.errors import UserError
from padt.image import PATCH, VIT_PATCH, ImageSource, ResizePolicy, open_image
from padt.model.vision import normalize_pixels
from padt.tasks import Group, Sample
from padt.tokens import load_tokenizer

VRT_TEXT = "<|VRT_{}|>"
IMAGE_PAD = "<|image_pad|>"
# Stands for the user's words while the chat template is rendered; private-use characters never come from a keyboard.
_SLOT = "\ue000user\ue001"


class PaDTProcessor(ProcessorMixin):
    """Qwen2.5-VL's image processor and tokenizer, plus VRTs, training samples and parsing-friendly decoding.

    Args:
        image_processor: holds the resize policy.
        tokenizer: Qwen2's.
        chat_template: Jinja text.
        vrt_offset: ``V``, the number of embedding rows of the model: id of the VRT of patch 0.
    """

    attributes = ["image_processor", "tokenizer"]

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, vrt_offset: int = 0, **kwargs) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        self.vrt_offset = vrt_offset
        self.image_token = IMAGE_PAD

    @classmethod
    def from_folder(cls, path: str | os.PathLike, vrt_offset: int | None = None) -> "PaDTProcessor":
        """Load from a model folder of any layout.

        Raises:
            UserError: the folder lacks a tokenizer, an image processor or (our own saves only) the VRT offset.
        """
        folder = Path(path)
        own = read_json(folder / "processor_config.json")
        settings = read_json(folder / "preprocessor_config.json") or own.get("image_processor")
        if not settings:
            raise UserError(f"{folder} has no preprocessor_config.json: save the model together with its processor.")
        offset = vrt_offset if vrt_offset is not None else own.get("vrt_offset")
        if not offset:
            raise UserError(f"{folder}/processor_config.json lacks vrt_offset: load the model with padt.load_model.")
        tokenizer = load_tokenizer(folder, int(offset))
        return cls(image_processor(settings), tokenizer, _chat_template(folder, tokenizer), vrt_offset=int(offset))

    # ------------------------------------------------------------------ facts

    @cached_property
    def policy(self) -> ResizePolicy:
        """How images are resized."""
        size = self.image_processor.size
        return ResizePolicy(PATCH, int(size["shortest_edge"]), int(size["longest_edge"]))

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return self.tokenizer.pad_token_id

    @cached_property
    def image_token_id(self) -> int:
        """Id of the image placeholder."""
        return self.tokenizer.convert_tokens_to_ids(IMAGE_PAD)

    @cached_property
    def end_token_id(self) -> int:
        """Id of the token that ends a turn."""
        return self.tokenizer.convert_tokens_to_ids("<|im_end|>")

    # ------------------------------------------------------------------ words

    def tokenize(self, text: str) -> list[int]:
        """Ids of plain words; anything that looks like a special token is taken literally."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def prompt_ids(self, prompt: str, patch_counts: Sequence[int] = ()) -> list[int]:
        """Ids of one user turn, up to where the answer starts.

        Args:
            prompt: the user's words.
            patch_counts: patches of each image, which come before the words.
        """
        content: list[dict[str, str]] = [{"type": "image"} for _ in patch_counts]
        content.append({"type": "text", "text": _SLOT})
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        before, after = rendered.split(_SLOT)
        pieces = before.split(IMAGE_PAD)
        if len(pieces) != len(patch_counts) + 1:
            raise UserError(f"The chat template made {len(pieces) - 1} image places for {len(patch_counts)} images.")
        ids = self._template_ids(pieces[0])
        for count, piece in zip(patch_counts, pieces[1:], strict=True):
            ids += [self.image_token_id] * count + self._template_ids(piece)
        return ids + self.tokenize(prompt) + self._template_ids(after)

    def decode_ids(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids, VRTs written as ``<|VRT_k|>``; bytes of one character are never torn apart by decoding."""
        pieces: list[str] = []
        text: list[int] = []
        for token in [*map(int, token_ids), None]:
            if token is not None and token < self.vrt_offset:
                text.append(token)
                continue
            if text:
                pieces.append(self.tokenizer.decode(text, skip_special_tokens=skip_special_tokens))
                text = []
            if token is not None:
                pieces.append(VRT_TEXT.format(token - self.vrt_offset))
        return "".join(pieces)

    def decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> str:
        """As ``decode_ids``; the name that transformers' streamers call."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        return self.decode_ids([ids] if isinstance(ids, int) else ids, skip_special_tokens)

    def _template_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    # ------------------------------------------------------------------ images

    def resize(self, image: Image.Image) -> np.ndarray:
        """Resize an upright RGB image under the policy: uint8 ``(H, W, 3)``, sides multiples of 28."""
        height, width = self.policy.size(image.height, image.width)
        if (image.height, image.width) != (height, width):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image)

    # ------------------------------------------------------------------ training

    def encode(self, sample: Sample) -> EncodedSample:
        """Tokenise a sample: image, prompt, and answer with its groups.

        Raises:
            ImageError: the image cannot be used.
            UserError: a group names a patch that the image does not have.
        """
        image = open_image(sample.image)
        pixels = self.resize(image)
        h_vit, w_vit = pixels.shape[0] // VIT_PATCH, pixels.shape[1] // VIT_PATCH
        patches = h_vit * w_vit // 4
        ids = self.prompt_ids(sample.prompt, [patches])
        prompt_length = len(ids)
        groups = []
        for piece in sample.answer:
            if isinstance(piece, str):
                ids += self.tokenize(piece)
                continue
            groups.append(self._encode_group(sample, piece, len(ids), patches, (h_vit, w_vit)))
            ids += [self.vrt_offset + vrt for vrt in piece.vrts]
        ids.append(self.end_token_id)
        input_ids = np.asarray(ids, np.int64)
        is_image = input_ids == self.image_token_id
        is_image[prompt_length:] = False
        return EncodedSample(
            key=sample.key,
            task=sample.task,
            input_ids=input_ids,
            supervised=np.arange(len(ids)) >= prompt_length,
            is_image=is_image,
            pixels=cut_patches(pixels),
            grids=((h_vit, w_vit),),
            groups=tuple(groups),
        )

    def _encode_group(
        self, sample: Sample, group: Group, start: int, patches: int, grid: tuple[int, int]
    ) -> EncodedGroup:
        target = group.target
        highest = max((*group.vrts, *target.patches))
        if highest >= patches:
            raise UserError(
                f"Sample {sample.key!r} names patch {highest} but its image has {patches} patches under this "
                "processor: prepare the data set again with this model's --min-pixels and --max-pixels."
            )
        mask = mask_target(target.rle, *grid) if target.rle is not None else None
        return EncodedGroup(start, group.vrts, 0, np.asarray(target.patches, np.int64), target.box, mask)

    # ------------------------------------------------------------------ generation

    def prompt_inputs(
        self, images: Sequence[Sequence[ImageSource]], prompts: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], list[list[Image.Image]]]:
        """Inputs of ``model.generate`` for a batch of prompts, padded on the left.

        Args:
            images: the images of each prompt; an empty list for a text-only turn.
            prompts: the user's words.

        Returns:
            ``input_ids``, ``attention_mask``, ``mm_token_type_ids`` ``(batch, positions)``, and where there are images
            ``pixel_values`` and ``image_grid_thw``; and the decoded upright images.
        """
        opened = [[open_image(source) for source in group] for group in images]
        resized = [[self.resize(image) for image in group] for group in opened]
        grids = [[(p.shape[0] // VIT_PATCH, p.shape[1] // VIT_PATCH) for p in group] for group in resized]
        rows = [
            self.prompt_ids(prompt, [h * w // 4 for h, w in group])
            for prompt, group in zip(prompts, grids, strict=True)
        ]
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.pad_token_id)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, length - len(row) :] = torch.tensor(row)
            mask[index, length - len(row) :] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == self.image_token_id).long()}
        flat = [pixels for group in resized for pixels in group]
        if flat:
            packed = torch.from_numpy(np.concatenate([cut_patches(pixels) for pixels in flat]))
            inputs["pixel_values"] = normalize_pixels(packed)
            inputs["image_grid_thw"] = torch.tensor([(1, h, w) for group in grids for h, w in group])
        return inputs, opened


def image_processor(settings: dict[str, Any] | None = None, policy: ResizePolicy | None = None):
    """Qwen2.5-VL's image processor (Pillow, no torchvision) from a saved configuration or a resize policy."""
    if policy is not None:
        return Qwen2VLImageProcessorPil(size={"shortest_edge": policy.min_pixels, "longest_edge": policy.max_pixels})
    known = {
        key: value for key, value in (settings or {}).items() if not key.endswith("_type") and key != "processor_class"
    }
    if "size" in known and not {"shortest_edge", "longest_edge"} <= set(known["size"]):
        known.pop("size")
    return Qwen2VLImageProcessorPil(**known)


def _chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    return read_json(folder / "chat_template.json").get("chat_template") or tokenizer.chat_template


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder; empty where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): the folder is damaged, copy or save it again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object: the folder is damaged, copy or save it again.")
    return values
