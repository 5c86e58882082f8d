"""Makes the small base model that the toy recipe starts from: a plain Qwen2.5-VL at toy size, from seeds.

It plays the part that Qwen2.5-VL-3B plays for the real PaDT: it can see, read and answer questions about a picture
(colours, kinds, counts, places, captions, points as numbers), and knows nothing of VRTs, boxes, masks or scores. Its
scenes come from a split of their own. The folder has the Hub's layout, so that the demo loads it as users load theirs.

    python -m jobs.toy_base --out pipelines/toy/base --minutes 60
"""

import argparse
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Qwen2_5_VLForConditionalGeneration

from padt.batch import Batch, EncodedSample, collate, cut_patches
from padt.config import PaDTConfig
from padt.image import ResizePolicy
from padt.losses import LossSettings
from padt.model.modeling import PaDTForConditionalGeneration
from padt.processor import PaDTProcessor, image_processor
from pipelines.toy.config import toy_config
from pipelines.toy.language import plain_turns
from pipelines.toy.scenes import SCENE_SIZES, SceneOptions, draw_scene
from pipelines.toy.tokenizer import CHAT_TEMPLATE, build_tokenizer

logger = logging.getLogger(__name__)

# Splits of the toy set count from 0; this one is out of their reach.
BASE_SPLIT = 1_000_003


@dataclass(frozen=True)
class BaseRecipe:
    """How the base model is trained.

    Attributes:
        seed: of scenes, turns and weights.
        minutes: wall-clock time; the schedule follows it.
        images: pictures a step, all of one size.
        turns: questions about each picture, in one conversation.
        learning_rate: peak, AdamW.
        muon_rate: peak, Muon; 0 = AdamW for everything.
    """

    seed: int = 7
    minutes: float = 60.0
    images: int = 24
    turns: int = 7
    learning_rate: float = 2e-3
    muon_rate: float = 0.02


class PlainConversations(IterableDataset):
    """Endless batches of multi-turn conversations about base scenes; every batch has pictures of one size."""

    def __init__(self, processor: PaDTProcessor, recipe: BaseRecipe, first: int = 0) -> None:
        super().__init__()
        self.processor, self.recipe, self.first = processor, recipe, first

    def __iter__(self) -> Iterator[Batch]:
        """Batches in an order that the seed fixes."""
        step = self.first
        while True:
            rng = np.random.default_rng([self.recipe.seed, BASE_SPLIT, step])
            options = SceneOptions(sizes=(SCENE_SIZES[rng.integers(len(SCENE_SIZES))],))
            samples = [conversation(self.processor, rng, options, self.recipe.turns) for _ in range(self.recipe.images)]
            yield collate(samples, self.processor.pad_token_id)
            step += 1


def conversation(
    processor: PaDTProcessor, rng: np.random.Generator, options: SceneOptions, turns: int
) -> EncodedSample:
    """One picture and several questions with supervised answers."""
    scene = draw_scene(rng, options)
    h_vit, w_vit = scene.height // 14, scene.width // 14
    ids: list[int] = []
    supervised: list[bool] = []
    for number, (question, answer) in enumerate(plain_turns(scene, rng)[:turns]):
        if number == 0:
            prompt = processor.prompt_ids(question, [h_vit * w_vit // 4])
        else:
            text = f"\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            prompt = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        reply = [*processor.tokenize(answer), processor.end_token_id]
        ids += prompt + reply
        supervised += [False] * len(prompt) + [True] * len(reply)
    input_ids = np.asarray(ids, np.int64)
    return EncodedSample(
        key="base",
        task="text",
        input_ids=input_ids,
        supervised=np.asarray(supervised),
        is_image=input_ids == processor.image_token_id,
        pixels=cut_patches(scene.image),
        grids=((h_vit, w_vit),),
        groups=(),
    )


def toy_processor(vrt_offset: int) -> PaDTProcessor:
    """Processor of the toy model: its tokenizer, Qwen2.5-VL's image processor with the released pixel limits."""
    return PaDTProcessor(
        image_processor(policy=ResizePolicy()), build_tokenizer(), chat_template=CHAT_TEMPLATE, vrt_offset=vrt_offset
    )


def initialise(model: PaDTForConditionalGeneration, seed: int) -> None:
    """Weights that a small model learns from quickly: 1/sqrt(fan_in) maps, damped residual outputs, wide embeddings."""
    torch.manual_seed(seed)
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear):
            residual = name.endswith(("o_proj", "down_proj", "attn.proj"))
            nn.init.normal_(module.weight, std=(0.2 if residual else 1.0) * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.15)


def train(model: PaDTForConditionalGeneration, processor: PaDTProcessor, recipe: BaseRecipe, out: Path) -> None:
    """Train the plain part of the model on conversations until the time is up; progress goes to the log."""
    # Prototypes stay zero, so the VRTs' logits are zero: the text learns to stand above them.
    parameters = dict(model.model.named_parameters())
    optimizers = build_optimizers(parameters, recipe)
    batches = iter(DataLoader(PlainConversations(processor, recipe), batch_size=None, num_workers=1, prefetch_factor=8))
    started, seconds, step, shown, saved = time.monotonic(), recipe.minutes * 60, 0, [], 0
    model.train()
    while (progress := (time.monotonic() - started) / seconds) < 1:
        factor = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        output = model(batch=next(batches), loss=LossSettings(box=False, mask=False, score=False))
        model.zero_grad(set_to_none=True)
        output.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        shown.append(output.parts["token"].item())
        if step % 50 == 0:
            logger.info("%5.1f %%  step %d  loss %.4f", 100 * progress, step, sum(shown) / len(shown))
            shown.clear()
        if progress > (saved + 1) / 12:
            saved += 1
            save(model, processor, out)


def build_optimizers(parameters: dict[str, nn.Parameter], recipe: BaseRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms, biases and the patch embedding."""
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and "embed" not in name]
    slow = [p for name, p in parameters.items() if "patch_embed" in name]
    rest = [p for name, p in parameters.items() if "patch_embed" not in name and (p.ndim != 2 or "embed" in name)]
    peak = recipe.learning_rate
    adam = torch.optim.AdamW(
        [{"params": rest, "peak": peak}, {"params": slow, "peak": 0.3 * peak}],
        lr=peak,
        betas=(0.9, 0.99),
        weight_decay=0.01,
    )
    if recipe.muon_rate == 0:
        adam.add_param_group({"params": matrices, "peak": peak})
        return [adam]
    muon = torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.01)
    for group in muon.param_groups:
        group["peak"] = recipe.muon_rate
    return [muon, adam]


def save(model: PaDTForConditionalGeneration, processor: PaDTProcessor, out: Path) -> None:
    """Write the plain part as a Hub-layout Qwen2.5-VL folder in bf16."""
    config = toy_config(processor.tokenizer)
    plain = Qwen2_5_VLForConditionalGeneration(config)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    plain.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    """Command line: ``--out FOLDER --minutes M --seed S``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--minutes", type=float, default=BaseRecipe.minutes, help="training time on one core")
    parser.add_argument("--muon", type=float, default=BaseRecipe.muon_rate)
    parser.add_argument("--seed", type=int, default=BaseRecipe.seed)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    recipe = BaseRecipe(seed=arguments.seed, minutes=arguments.minutes, muon_rate=arguments.muon)
    config = PaDTConfig(**{k: v for k, v in toy_config().to_dict().items() if k != "model_type"})
    model = PaDTForConditionalGeneration(config)
    initialise(model, recipe.seed)
    processor = toy_processor(config.vrt_offset)
    train(model, processor, recipe, arguments.out)
    save(model, processor, arguments.out)


if __name__ == "__main__":
    main()
