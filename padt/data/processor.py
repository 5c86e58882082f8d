"""PaDT's processor: images and words in, token ids and patches out, and back.

The tokenizer is never grown: the VRT of patch ``k`` is the id ``V + k`` and is written ``<|VRT_k|>`` only for people.
Users' text is tokenised without special tokens, so that a label or a sentence can neither inject a turn nor a VRT.
"""

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

from padt.data.chat_tokens import IMAGE_PAD, TokenLayout, lay_out
from padt.data.collate import NO_PIXELS, EncodedGroup, EncodedSample, cut_patches, mask_target, normalize_pixels
from padt.data.conversation import Group, Turn, prompt_turns
from padt.data.image import PATCH, VIT_PATCH, ImageSource, ResizePolicy, open_image
from padt.data.tasks import Sample
from padt.errors import UserError
from padt.pretrained.auto_code import add_auto_code
from padt.pretrained.config import load_config
from padt.pretrained.hub import model_folder, read_json
from padt.pretrained.tokenizer import load_tokenizer

VRT_TEXT = "<|VRT_{}|>"


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
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "PaDTProcessor":
        """As transformers', from a folder of any layout or a Hub repository; with ``min_pixels``, ``max_pixels``."""
        wanted = {name: kwargs[name] for name in ("min_pixels", "max_pixels") if kwargs.get(name) is not None}
        return load_processor(pretrained_model_name_or_path, revision=kwargs.get("revision"), **wanted)

    def save_pretrained(self, save_directory, **kwargs) -> list[str]:
        """As transformers', with what lets ``AutoProcessor`` find this class (``padt.pretrained.auto_code``)."""
        files = super().save_pretrained(save_directory, **kwargs)
        add_auto_code(save_directory)
        return files

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Nothing: a save has its own code file (``padt.pretrained.auto_code``) and needs no copy of this module."""

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
        # Quiet about long texts: what is too long is decided by the reader and by generation.
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def prompt_ids(self, prompt: str | Sequence[Turn], patch_counts: Sequence[int] = ()) -> list[int]:
        """Ids of a prompt, up to where the answer starts.

        Args:
            prompt: the user's words, with the pictures before them; or a conversation that ends with the user's turn.
            patch_counts: patches of each image.

        Raises:
            UserError: the turns are out of order, or places and images do not match.
        """
        return self.token_layout(prompt_turns(prompt, len(patch_counts)), patch_counts, answered=False).ids

    def token_layout(self, turns: Sequence[Turn], patch_counts: Sequence[int], answered: bool) -> TokenLayout:
        """Ids of a conversation under the chat template, and what stands where (``padt.data.chat_tokens``)."""
        return lay_out(self, turns, patch_counts, answered)

    def render_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        """Text that the chat template makes of messages."""
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def template_ids(self, text: str) -> list[int]:
        """Ids of the template's own text, special tokens recognised: never give it a user's words."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

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

    # ------------------------------------------------------------------ images

    def resize(self, image: Image.Image) -> np.ndarray:
        """Resize an upright RGB image under the policy: uint8 ``(H, W, 3)``, sides multiples of 28."""
        height, width = self.policy.size(image.height, image.width)
        if (image.height, image.width) != (height, width):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image)

    # ------------------------------------------------------------------ training

    def encode(self, sample: Sample) -> EncodedSample:
        """Tokenise a sample: images, prompts, and answers with their groups.

        Raises:
            ImageError: an image cannot be used.
            UserError: a group names a patch or image that the sample does not have; see also ``token_layout``.
        """
        resized = [self.resize(open_image(image)) for image in sample.images]
        grids = tuple((pixels.shape[0] // VIT_PATCH, pixels.shape[1] // VIT_PATCH) for pixels in resized)
        counts = [h * w // 4 for h, w in grids]
        for group in sample.groups:
            _check_group(sample, group, counts)
        layout = self.token_layout(sample.turns, counts, answered=True)
        input_ids = np.asarray(layout.ids, np.int64)
        return EncodedSample(
            key=sample.key,
            task=sample.task,
            input_ids=input_ids,
            supervised=np.asarray(layout.supervised, bool),
            # Words are never tokenised to the placeholder.
            is_image=input_ids == self.image_token_id,
            pixels=np.concatenate([cut_patches(pixels) for pixels in resized]) if resized else NO_PIXELS,
            grids=grids,
            groups=tuple(
                _encode_group(group, start, sum(counts[: group.image]), grids[group.image])
                for group, start in layout.groups
            ),
        )

    # ------------------------------------------------------------------ generation

    def prompt_inputs(
        self, images: Sequence[Sequence[ImageSource]], prompts: Sequence[str | Sequence[Turn]]
    ) -> tuple[dict[str, torch.Tensor], list[list[Image.Image]]]:
        """Inputs of ``model.generate`` for a batch of prompts, padded on the left.

        Args:
            images: the images of each prompt; an empty list for a text-only turn.
            prompts: the user's words, or a conversation that ends with the user's turn (``padt.data.conversation``).

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


def _check_group(sample: Sample, group: Group, counts: Sequence[int]) -> None:
    if not 0 <= group.image < len(counts):
        raise UserError(
            f"Sample {sample.key!r} has an object in image {group.image}, but {len(counts)} images: number them from 0."
        )
    highest = max((*group.vrts, *group.target.patches))
    if highest >= counts[group.image]:
        raise UserError(
            f"Sample {sample.key!r} names patch {highest} but its image has {counts[group.image]} patches under this "
            "processor: prepare the data set again with this model's --min-pixels and --max-pixels."
        )


def _encode_group(group: Group, start: int, offset: int, grid: tuple[int, int]) -> EncodedGroup:
    target = group.target
    return EncodedGroup(
        start=start,
        vrts=tuple(offset + vrt for vrt in group.vrts),
        image=group.image,
        foreground=offset + np.asarray(target.patches, np.int64),
        box=target.box,
        mask=mask_target(target.rle, *grid) if target.rle is not None else None,
    )


def load_processor(
    path: str | os.PathLike,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    revision: str | None = None,
) -> PaDTProcessor:
    """Load the processor of a model folder of any layout, or of a folder that holds our processor alone.

    Args:
        path: folder, or ``OWNER/NAME`` on the Hub.
        min_pixels: least area of resized images, in place of the saved one.
        max_pixels: largest area of resized images, in place of the saved one.
        revision: branch, tag or commit on the Hub.

    Raises:
        UserError: the folder has no tokenizer or image processor.
    """
    folder = model_folder(path, revision)
    offset = load_config(folder)[0].vrt_offset if (folder / "config.json").is_file() else None
    processor = PaDTProcessor.from_folder(folder, vrt_offset=offset)
    if min_pixels is not None or max_pixels is not None:
        size = processor.image_processor.size
        processor.image_processor.size = {
            "shortest_edge": min_pixels or size["shortest_edge"],
            "longest_edge": max_pixels or size["longest_edge"],
        }
    return processor


def image_processor(settings: dict[str, Any] | None = None, policy: ResizePolicy | None = None):
    """Qwen2.5-VL's image processor (Pillow, no torchvision) from a saved configuration or a resize policy."""
    if policy is not None:
        return Qwen2VLImageProcessorPil(size={"shortest_edge": policy.min_pixels, "longest_edge": policy.max_pixels})
    known = {
        key: value
        for key, value in (settings or {}).items()
        if not key.endswith("_type") and key not in ("processor_class", "auto_map")
    }
    if "size" in known and not {"shortest_edge", "longest_edge"} <= set(known["size"]):
        known.pop("size")
    return Qwen2VLImageProcessorPil(**known)


def _chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    return read_json(folder / "chat_template.json").get("chat_template") or tokenizer.chat_template
