"""Makes the small base model that the toy recipe starts from, out of seeds and nothing else.

It plays the part that a pretrained checkpoint plays for the real PaDT. In conversations about drawn scenes it learns to
see, to read, to answer short questions, and to point at the one thing that a sentence describes. It has never seen a
detection prompt, a class list, several objects in one answer, or a grounded caption: these are what the recipe's
stages teach. Its scenes come from a split of their own.

    python -m jobs.training.toy_base --out pipelines/toy/base
"""

import argparse
import io
import logging
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Qwen2_5_VLConfig

from padt.checkpoints.loading import load_model, save_model
from padt.data.collate import Batch, EncodedSample, collate
from padt.data.conversation import Group, ObjectTarget, Turn, question
from padt.data.image import ResizePolicy
from padt.data.patches import coverage_of_rle, foreground
from padt.data.processor import PaDTProcessor, image_processor
from padt.data.rle import encode
from padt.data.tasks import Sample, refer_answer, refer_prompt
from padt.data.vrt import choose_vrts
from padt.model.losses import LOSS_TERMS, LossSettings
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import PaDTConfig
from pipelines.toy.language import choose_expressions, plain_turns
from pipelines.toy.model_config import toy_config
from pipelines.toy.scenes import SCENE_SIZES, Scene, SceneOptions, Shape, draw_scene
from pipelines.toy.tokenizer import CHAT_TEMPLATE, build_tokenizer

logger = logging.getLogger(__name__)

# Splits of the toy set count from 0; this one is out of their reach.
BASE_SPLIT = 1_000_003
_QUALITY = 92


@dataclass(frozen=True)
class Phase:
    """A stretch of training with optimisers and a schedule of its own.

    Attributes:
        steps: optimiser steps; about 0.85 seconds each on one core.
        horizon: steps after which the cosine of the learning rate would reach its floor.
        rate: factor of the recipe's learning rates at the top.
        pointing: turns of a conversation that ask for the place of one thing.
        talking: turns with plain questions and answers.
        warm: share of the steps in which the decoder gets prototypes, until states mean something.
    """

    steps: int
    horizon: int
    rate: float = 1.0
    pointing: int = 4
    talking: int = 2
    warm: float = 0.0


@dataclass(frozen=True)
class BaseRecipe:
    """How the base model is trained.

    Attributes:
        seed: of scenes, turns and weights.
        images: pictures a step, all of one size.
        learning_rate: peak, AdamW (embeddings, norms, prototypes, decoder).
        muon_rate: peak, Muon (matrices of vision tower and language model).
        phases: one after the other; each starts from what the one before saved.
    """

    seed: int = 7
    images: int = 16
    learning_rate: float = 2e-3
    muon_rate: float = 0.02
    phases: tuple[Phase, ...] = (
        Phase(steps=2000, horizon=3000, warm=0.15),
        Phase(steps=700, horizon=700, rate=0.5),
    )


class Conversations(IterableDataset):
    """Endless batches of conversations about base scenes; every batch has pictures of one size."""

    def __init__(self, processor: PaDTProcessor, recipe: BaseRecipe, number: int) -> None:
        super().__init__()
        self.processor, self.recipe, self.number = processor, recipe, number

    def __iter__(self) -> Iterator[Batch]:
        """Batches in an order that the seed fixes."""
        step = 0
        while True:
            rng = np.random.default_rng([self.recipe.seed, BASE_SPLIT, self.number, step])
            options = SceneOptions(sizes=(SCENE_SIZES[rng.integers(len(SCENE_SIZES))],))
            phase = self.recipe.phases[self.number]
            samples = [conversation(self.processor, rng, options, phase) for _ in range(self.recipe.images)]
            yield collate(samples, self.processor.pad_token_id)
            step += 1


def conversation(
    processor: PaDTProcessor, rng: np.random.Generator, options: SceneOptions, phase: Phase
) -> EncodedSample:
    """One picture, several turns about it; every answer is supervised."""
    scene = draw_scene(rng, options)
    talk = plain_turns(scene, rng)
    expressions = choose_expressions(scene, rng)
    expressions = [expressions[index] for index in rng.permutation(len(expressions))]
    asked: list[tuple[str, str, Shape | None]] = [(words, answer, None) for words, answer in talk[: phase.talking]]
    for expression in expressions[: phase.pointing]:
        asked.append((refer_prompt(expression.text), expression.text, scene.shapes[expression.shape]))
    turns: list[Turn] = []
    for number, place in enumerate(rng.permutation(len(asked))):
        words, said, shape = asked[place]
        content = (said,) if shape is None else refer_answer(said, [_group(scene, shape, rng)])
        turns += [question(words, 1 if number == 0 else 0), Turn("assistant", content)]
    return processor.encode(Sample("base", "refer", (_as_photograph(scene.image),), tuple(turns)))


def _group(scene: Scene, shape: Shape, rng: np.random.Generator) -> Group:
    rle = encode(shape.mask)
    patches = np.flatnonzero(foreground(coverage_of_rle(rle, scene.height // 28, scene.width // 28)))
    x0, y0, x1, y1 = shape.box
    box = (x0 / scene.width, y0 / scene.height, x1 / scene.width, y1 / scene.height)
    target = ObjectTarget(shape.kind, box, tuple(patches.tolist()), rle)
    return Group(target, choose_vrts(patches, scene.width // 28, "random", 5, rng))


def _as_photograph(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def toy_processor(vrt_offset: int) -> PaDTProcessor:
    """Processor of the toy model: its tokenizer, Qwen2.5-VL's image processor with the released pixel limits."""
    return PaDTProcessor(
        image_processor(policy=ResizePolicy()), build_tokenizer(), chat_template=CHAT_TEMPLATE, vrt_offset=vrt_offset
    )


def toy_model(seed: int, config: Qwen2_5_VLConfig | None = None) -> PaDTForConditionalGeneration:
    """A toy PaDT with weights that a small model learns from quickly, of the shipped size or another.

    1/sqrt(fan_in) maps, damped residual outputs, wide embeddings; prototypes that are not zero, unlike those of a
    model that starts from pretrained features.
    """
    torch.manual_seed(seed)
    model = PaDTForConditionalGeneration(
        PaDTConfig(**{key: value for key, value in (config or toy_config()).to_dict().items() if key != "model_type"})
    )
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear):
            residual = name.endswith(("o_proj", "down_proj", "attn.proj"))
            nn.init.normal_(module.weight, std=(0.2 if residual else 1.0) * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.15)
    nn.init.constant_(model.vis_norm.weight, 0.2)
    for weight in model.vis_proj.parameters():
        nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model


def build_optimizers(model: nn.Module, recipe: BaseRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside vision tower and language model, AdamW for everything else.

    With Muon the loss of 200 AdamW steps was reached in about 150 (same seed, same data).
    """
    matrices, slow, rest = [], [], []
    for name, parameter in model.named_parameters():
        if "patch_embed" in name:
            slow.append(parameter)
        elif name.startswith("model.") and parameter.ndim == 2 and "embed" not in name:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    adam = torch.optim.AdamW(
        [{"params": rest}, {"params": slow}], lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    muon = torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.01)
    for group, peak in zip(
        [*adam.param_groups, *muon.param_groups],
        [recipe.learning_rate, 0.3 * recipe.learning_rate, recipe.muon_rate],
        strict=True,
    ):
        group["peak"] = peak
    return [adam, muon]


def train(model: PaDTForConditionalGeneration, processor: PaDTProcessor, recipe: BaseRecipe, number: int) -> None:
    """One phase of training on conversations; progress goes to the log."""
    phase = recipe.phases[number]
    optimizers = build_optimizers(model, recipe)
    data = Conversations(processor, recipe, number)
    batches = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=8))
    started = time.monotonic()
    shown: dict[str, float] = {}
    model.train()
    for step in range(phase.steps):
        cosine = (1 + math.cos(math.pi * step / phase.horizon)) / 2
        factor = phase.rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * cosine)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        warm = step < phase.warm * phase.steps
        output = model(batch=next(batches), loss=LossSettings(), prototypes_to_decoder=warm)
        model.zero_grad(set_to_none=True)
        output.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for name in (*LOSS_TERMS, "iou"):
            shown[name] = shown.get(name, 0.0) + output.parts[name].item() / 50
        if (step + 1) % 50 == 0:
            losses = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
            seconds = time.monotonic() - started
            logger.info("phase %d, step %d of %d, %.0f s: %s", number + 1, step + 1, phase.steps, seconds, losses)
            shown = {}


def _save(model: PaDTForConditionalGeneration, processor: PaDTProcessor, out: Path) -> None:
    """Replace ``out`` by the model in bf16 (half the size; the stages train in fp32 again)."""
    if out.exists():
        shutil.rmtree(out)
    copy = PaDTForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    save_model(copy.to(torch.bfloat16), processor, out)


def main() -> None:
    """Command line: ``--out FOLDER [--from-phase N]``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model; replaced if it exists")
    parser.add_argument("--from-phase", type=int, default=1, help="go on after an earlier run's <out>.phase<N-1>")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    recipe = BaseRecipe()
    for number in range(arguments.from_phase - 1, len(recipe.phases)):
        model = toy_model(recipe.seed) if number == 0 else load_model(_saved(arguments.out, number - 1))
        processor = toy_processor(model.config.vrt_offset)
        train(model, processor, recipe, number)
        _save(model, processor, _saved(arguments.out, number))
    _save(model, processor, arguments.out)


def _saved(out: Path, number: int) -> Path:
    return out.with_name(f"{out.name}.phase{number + 1}")


if __name__ == "__main__":
    main()
