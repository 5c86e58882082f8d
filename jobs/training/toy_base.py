"""Makes the small base model that the toy recipe starts from, out of seeds and nothing else.

It plays the part that a pretrained checkpoint plays for the real PaDT. First its vision tower learns to tell what each
patch of a picture shows (kind, colour, size and box of the shape there), through a head that is dropped at the end.
Then, in conversations about drawn scenes, it learns to read, to answer short questions, and to point at the one thing
that a sentence describes. It has never seen a detection prompt, a class list, several objects in one answer, or a
grounded caption: these are what the recipe's stages teach. Its scenes come from a split of their own.

    python -m jobs.training.toy_base --out pipelines/toy/base
"""

import argparse
import logging
import math
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Qwen2_5_VLConfig

from padt.checkpoints.loading import save_model
from padt.data.collate import Batch, collate, normalize_pixels
from padt.data.image import ResizePolicy
from padt.data.processor import PaDTProcessor, image_processor
from padt.data.vrt import VRTRule
from padt.model.losses import LOSS_TERMS, LossSettings
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import PaDTConfig
from padt.pretrained.model_card import ModelFacts
from pipelines.toy.lessons import PATCH_ATTRIBUTES, conversation, patch_labels
from pipelines.toy.model_config import toy_config
from pipelines.toy.scenes import SCENE_SIZES, SceneOptions, draw_scene
from pipelines.toy.tokenizer import CHAT_TEMPLATE, build_tokenizer

logger = logging.getLogger(__name__)

# Splits of the toy set count from 0; this one is out of their reach.
BASE_SPLIT = 1_000_003
_SHOWN_STEPS = 50


@dataclass(frozen=True)
class Phase:
    """A stretch of training with optimisers and a schedule of its own.

    Attributes:
        steps: optimiser steps.
        horizon: steps after which the learning rate, falling along a cosine, would be a fiftieth; 0: ``steps``.
        rise: steps in which the learning rate rises to its top.
        rate: factor of the recipe's learning rates at the top.
        vision: factor of the learning rates of the vision tower, beside ``rate``.
        patches: weight of the loss of the head that tells what each patch shows.
        pointing: turns of a conversation that ask for the place of one thing.
        talking: turns with plain questions and answers. Without any turns, the vision tower learns alone.
        vrt_rule: how VRTs are picked. Greedy decoding under the paper's rule repeats one patch, which often is one that
            two shapes share; under ``distinct`` it learns to go on to others, which tell the shapes apart.
        warm: first steps, in which the decoder gets prototypes, until states mean something.
    """

    steps: int
    horizon: int = 0
    rise: int = 100
    rate: float = 1.0
    vision: float = 1.0
    patches: float = 1.0
    pointing: int = 0
    talking: int = 0
    vrt_rule: VRTRule = "random"
    warm: int = 0

    @property
    def talks(self) -> bool:
        """Whether the whole model learns."""
        return self.pointing + self.talking > 0


@dataclass(frozen=True)
class BaseRecipe:
    """How the base model is trained.

    Attributes:
        seed: of scenes, turns and weights.
        images: pictures a step, all of one size.
        learning_rate: peak, AdamW (embeddings, norms, prototypes, decoder).
        muon_rate: peak, Muon (matrices of vision tower and language model).
        phases: one after the other, on the weights that the one before left.
    """

    seed: int = 7
    images: int = 16
    learning_rate: float = 2e-3
    muon_rate: float = 0.02
    # Seconds a step on one quiet core: 0.2 in the first phase, 0.9 in the others.
    phases: tuple[Phase, ...] = (
        Phase(steps=1500),
        Phase(steps=200, horizon=900, vision=0.2, patches=0.3, pointing=4, talking=2, warm=90),
        Phase(steps=400, rise=30, vision=0.2, patches=0.3, pointing=4, talking=2),
        Phase(steps=800, rise=30, rate=0.7, vision=0.2, patches=0.3, pointing=4, talking=2),
        Phase(steps=240, rise=20, rate=0.5, vision=0.2, patches=0.3, pointing=4, talking=2, vrt_rule="distinct"),
    )


class PatchTargets(NamedTuple):
    """What the patches of a batch show; see ``pipelines.toy.lessons.PatchLabels``."""

    attributes: Tensor
    boxes: Tensor


class Lessons(IterableDataset):
    """Endless batches of conversations about base scenes; every batch has pictures of one size."""

    def __init__(self, processor: PaDTProcessor, recipe: BaseRecipe, number: int) -> None:
        super().__init__()
        self.processor, self.recipe, self.number = processor, recipe, number

    def __iter__(self) -> Iterator[tuple[Batch, PatchTargets]]:
        """Batches in an order that the seed fixes."""
        phase = self.recipe.phases[self.number]
        step = 0
        while True:
            rng = np.random.default_rng([self.recipe.seed, BASE_SPLIT, self.number, step])
            options = SceneOptions(sizes=(SCENE_SIZES[rng.integers(len(SCENE_SIZES))],))
            scenes = [draw_scene(rng, options) for _ in range(self.recipe.images)]
            # A conversation needs a turn, also where the words are not read.
            talking = phase.talking if phase.talks else 1
            samples = [
                conversation(self.processor, scene, rng, phase.pointing, talking, phase.vrt_rule) for scene in scenes
            ]
            labels = [patch_labels(scene) for scene in scenes]
            targets = PatchTargets(
                torch.from_numpy(np.concatenate([label.attributes for label in labels])),
                torch.from_numpy(np.concatenate([label.boxes for label in labels])),
            )
            yield collate(samples, self.processor.pad_token_id), targets
            step += 1


class PatchHead(nn.Module):
    """Tells from the vision tower's features what each patch shows; the base model is shipped without it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(words) + 1 for words in PATCH_ATTRIBUTES.values()]
        self.head = nn.Linear(width, sum(self.sizes) + 4)

    def loss(self, features: Tensor, targets: PatchTargets) -> dict[str, Tensor]:
        """Cross-entropy of each attribute and the boxes' L1 distance; ``features``: ``(patches, width)``."""
        *logits, boxes = self.head(features).split([*self.sizes, 4], dim=-1)
        parts = {
            name: F.cross_entropy(scores, targets.attributes[:, column])
            for column, (name, scores) in enumerate(zip(PATCH_ATTRIBUTES, logits, strict=True))
        }
        seen = targets.boxes.sum(-1) > 0
        distances = (boxes.sigmoid() - targets.boxes).abs().sum(-1)
        return parts | {"place": (distances * seen).sum() / seen.sum()}


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


def build_optimizers(
    parameters: Iterable[tuple[str, nn.Parameter]], recipe: BaseRecipe, vision: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside vision tower and language model, AdamW for everything else.

    With Muon the loss of 200 AdamW steps was reached in about 150 (same seed, same data). Each group's ``peak`` is the
    top of its learning rate; ``vision`` is a factor of the vision tower's.
    """
    matrices: dict[float, list[nn.Parameter]] = {}
    others: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        factor = vision if ".visual." in name else 1.0
        if name.startswith("model.") and parameter.ndim == 2 and "embed" not in name:
            matrices.setdefault(factor * recipe.muon_rate, []).append(parameter)
        else:
            factor *= 0.3 if "patch_embed" in name else 1.0
            others.setdefault(factor * recipe.learning_rate, []).append(parameter)
    adam = torch.optim.AdamW(
        [{"params": part, "peak": peak} for peak, part in others.items()], betas=(0.9, 0.99), weight_decay=0.01
    )
    muon = torch.optim.Muon([{"params": part, "peak": peak} for peak, part in matrices.items()], weight_decay=0.01)
    return [adam, muon]


def train(
    model: PaDTForConditionalGeneration, head: PatchHead, processor: PaDTProcessor, recipe: BaseRecipe, number: int
) -> None:
    """One phase of training; progress goes to the log."""
    phase = recipe.phases[number]
    learning = [(name, parameter) for name, parameter in model.named_parameters() if phase.talks or ".visual." in name]
    learning += head.named_parameters()
    optimizers = build_optimizers(learning, recipe, phase.vision)
    batches = iter(DataLoader(Lessons(processor, recipe, number), batch_size=None, num_workers=1, prefetch_factor=8))
    features: list[Tensor] = []
    watching = model.model.visual.register_forward_hook(lambda _, __, output: features.append(output.pooler_output))
    started = time.monotonic()
    shown: dict[str, float] = {}
    model.train()
    for step in range(phase.steps):
        factor = phase.rate * min(1.0, (step + 1) / phase.rise)
        factor *= 0.02 + 0.98 * (1 + math.cos(math.pi * step / (phase.horizon or phase.steps))) / 2
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        batch, targets = next(batches)
        features.clear()
        if phase.talks:
            output = model(
                batch=batch,
                loss=LossSettings(punish_repeats=phase.vrt_rule == "distinct"),
                prototypes_to_decoder=step < phase.warm,
            )
            total, parts = output.total, {name: output.parts[name] for name in (*LOSS_TERMS, "iou")}
        else:
            model.image_features(normalize_pixels(batch.pixels), batch.grid_thw)
            total, parts = torch.zeros(()), {}
        patches = head.loss(features[0], targets)
        total = total + phase.patches * sum(patches.values())
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in learning], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for name, value in (parts | patches).items():
            shown[name] = shown.get(name, 0.0) + value.item() / _SHOWN_STEPS
        if (step + 1) % _SHOWN_STEPS == 0:
            losses = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
            seconds = time.monotonic() - started
            logger.info("phase %d, step %d of %d, %.0f s: %s", number + 1, step + 1, phase.steps, seconds, losses)
            shown = {}
    watching.remove()


def main() -> None:
    """Command line: ``--out FOLDER [--from-phase N]``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model; replaced if it exists")
    parser.add_argument("--from-phase", type=int, default=1, help="go on after an earlier run's <out>.phase<N-1>.pt")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    recipe = BaseRecipe()
    out: Path = arguments.out
    model = toy_model(recipe.seed)
    head = PatchHead(model.config.text_config.hidden_size)
    processor = toy_processor(model.config.vrt_offset)
    everything = nn.ModuleList([model, head])
    if arguments.from_phase > 1:
        everything.load_state_dict(torch.load(_weights_after(out, arguments.from_phase - 1), weights_only=True))
    for number in range(arguments.from_phase - 1, len(recipe.phases)):
        train(model, head, processor, recipe, number)
        torch.save(everything.state_dict(), _weights_after(out, number + 1))
    if out.exists():
        shutil.rmtree(out)
    # In bf16, half the size; the stages train in fp32 again.
    steps = sum(phase.steps for phase in recipe.phases)
    facts = ModelFacts(
        license="apache-2.0", training={"steps": steps, "samples_per_step": recipe.images, "seed": recipe.seed}
    )
    save_model(model.to(torch.bfloat16), processor, out, facts=facts)


def _weights_after(out: Path, phases: int) -> Path:
    return out.with_name(f"{out.name}.phase{phases}.pt")


if __name__ == "__main__":
    main()
