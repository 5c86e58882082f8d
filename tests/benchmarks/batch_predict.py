"""Predicting for a batch of pictures against one after the other, where decoding dominates.

    python -m tests.benchmarks.batch_predict

Whole predictions through ``padt.inference.predict``: pictures of 112x140 pixels, a referring sentence, 64 new tokens
over 151,936 rows and the patches, objects decoded with their masks. A step of one request reads every weight for a
single row; a step of a batch reads them once for all.
"""

import argparse
import sys

import numpy as np
import torch
from PIL import Image

from padt.data.image import ResizePolicy
from padt.data.processor import PaDTProcessor, image_processor
from padt.inference.predict import GenerationSettings, Prediction, predict, refer_request
from padt.model.modeling import PaDTForConditionalGeneration
from pipelines.toy.tokenizer import CHAT_TEMPLATE
from tests.benchmarks.common.measure import Ratio, interleaved
from tests.benchmarks.common.models import VOCABULARY, bench_config
from tests.padt.tiny import tiny_tokenizer

SIZES = ((112, 140), (140, 112), (112, 112), (140, 140))


def model_with_words(hidden: int, layers: int, device: str, dtype: torch.dtype) -> PaDTForConditionalGeneration:
    """A random model of the released vocabulary's size whose tokenizer knows bytes; the other rows are only weight."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.get_added_vocab()
    config = bench_config(hidden, layers)
    config.image_token_id = ids["<|image_pad|>"]
    config.vision_start_token_id, config.vision_end_token_id = ids["<|vision_start|>"], ids["<|vision_end|>"]
    torch.manual_seed(0)
    with torch.device(device):
        model = PaDTForConditionalGeneration(config)
    model = model.to(dtype).eval()
    torch.nn.init.constant_(model.vis_norm.weight, 0.05)
    model.processor = PaDTProcessor(
        image_processor(policy=ResizePolicy()), tokenizer, CHAT_TEMPLATE, vrt_offset=VOCABULARY
    )
    return model


def pictures(count: int) -> list[Image.Image]:
    """Noise of some sizes, so that prompts differ in length."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*SIZES[index % len(SIZES)], 3), dtype=np.uint8) for index in range(count)]
    return [Image.fromarray(values) for values in noise]


def measure(model: PaDTForConditionalGeneration, batch: int, tokens: int, rounds: int) -> tuple[Ratio, int]:
    """Time of one batch over that of its members alone, and the objects that the batch gave."""
    model.generation_config.min_new_tokens = tokens
    settings = GenerationSettings(max_new_tokens=tokens)
    images = pictures(batch)
    asked = [refer_request(f"the shape number {index}") for index in range(batch)]

    def alone() -> list[Prediction]:
        return [predict(model, image, request, settings)[0] for image, request in zip(images, asked, strict=True)]

    def together() -> list[Prediction]:
        return predict(model, images, asked, settings)

    found = together()  # also warms both up
    if any(len(prediction.token_ids) != tokens for prediction in found):
        raise RuntimeError("an answer ended early: the comparison would not be fair")
    return interleaved(alone, together, rounds, warm_up=0), sum(len(prediction.objects) for prediction in found)


def main() -> int:
    """Print the throughput of a batch over that of single predictions; exit 1 if it is below the limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.batch_predict")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--limit", type=float, default=2.0, help="smallest gain in throughput")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    model = model_with_words(arguments.hidden, arguments.layers, arguments.device, dtype)
    ratio, objects = measure(model, arguments.batch, arguments.tokens, arguments.rounds)
    gain = 1 / ratio.judged
    print(f"{arguments.batch} alone, {arguments.batch} together ({objects} objects): {ratio}")
    print(f"throughput of a batch of {arguments.batch}: {gain:.2f} times, limit {arguments.limit}")
    return 0 if gain >= arguments.limit else 1


if __name__ == "__main__":
    sys.exit(main())
