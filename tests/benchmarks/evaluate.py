"""Answering a set against generation alone, and against predicting it batch by batch.

    python -m tests.benchmarks.evaluate                          # a random model, answers of drawn lengths
    python -m tests.benchmarks.evaluate --model runs/toy/finetune/model

Whole windows of an evaluation (rows read, pictures decoded, questions answered, objects with masks, records made) on
the CPU, detection and references mixed. Beside it the same questions, sorted by task and picture size into batches:
through ``padt.inference.predict`` as evaluations did before they had the engine, and through ``model.generate`` alone,
without objects. Ratios of processor time in rounds that alternate.

The random model has the released vocabulary, and its language model has the largest part of the work, as in models of
use. Each of its answers ends at a length that is drawn from what it would say first: 18 tokens for a sentence, 10 to
160 for a detection. With a trained toy model steps are so cheap that the object decoder has a third of all work.
"""

import argparse
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import LogitsProcessor

from jobs.evaluation.answerer import ModelAnswerer
from jobs.evaluation.answers import answer_here, windows
from jobs.evaluation.samples import EvalSample, EvalSet, open_eval_set
from padt.checkpoints.loading import load_model
from padt.data.image import open_image
from padt.inference.grounding import prepare_questions
from padt.inference.predict import GenerationSettings, answer, predict
from padt.inference.requests import ask
from pipelines.loader.sample_source import RowReader
from tests.benchmarks.batch_predict import model_with_words
from tests.benchmarks.common.measure import interleaved
from tests.pipelines.mini_set import scene_row, write_set


@dataclass
class EndsAt(LogitsProcessor):
    """Ends each answer at a drawn length, and not before."""

    end: int
    prompt: int
    _lengths: list[int] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``(rows, tokens)`` and ``(rows, V + patches)`` -> scores of the end at -inf, or of all else."""
        if not self._lengths:
            self._lengths = [self._drawn(*pair) for pair in zip(input_ids.tolist(), scores, strict=True)]
        scores = scores.clone()
        scores[:, self.end] = float("-inf")
        for row, length in enumerate(self._lengths):
            if input_ids.shape[1] - self.prompt >= length - 1:
                scores[row] = float("-inf")
                scores[row, self.end] = 0.0
        return scores

    def _drawn(self, prompt: list[int], scores: Tensor) -> int:
        if "following objects" not in _DECODE[0](prompt):
            return 18
        # Pictures differ in this; the prompts of detection do not.
        liked = scores[: 32 * _WORDS].view(32, _WORDS).argmax(-1).tolist()
        share = zlib.crc32(str(liked).encode()) % 1000 / 1000
        return round(10 * 16**share)


_WORDS = 1000
_DECODE: list[Callable[[list[int]], str]] = []


def random_model(hidden: int, layers: int) -> Any:
    """A random model whose answers have drawn lengths."""
    model = model_with_words(hidden, layers, "cpu", torch.float32)
    _DECODE[:] = [model.processor.tokenizer.decode]
    own = model._get_logits_processor

    def processors(generation_config: Any, input_ids_seq_length: int, **options: Any) -> Any:
        found = own(generation_config, input_ids_seq_length, **options)
        found.append(EndsAt(model.processor.end_token_id, input_ids_seq_length))
        return found

    model._get_logits_processor = processors
    return model


def batches(samples: list[EvalSample], size: int) -> Iterator[list[EvalSample]]:
    """Batches of one task and pictures of like size."""
    for task in ("refer", "detect"):
        group = sorted((s for s in samples if s.task == task), key=lambda s: (s.patches, s.id))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def by_batches(data: EvalSet, size: int, work: Callable) -> None:
    """Do some work on every batch of every window."""
    reader = RowReader(data.index)
    for window in windows(data.samples):
        images = {row: open_image(reader.row(row)["image"]["bytes"]) for row in {sample.row for sample in window}}
        for batch in batches(window, size):
            names = data.index.class_names
            requests = [ask(one.task, names if one.task == "detect" else one.sentence) for one in batch]
            work([images[one.row] for one in batch], requests)


def main() -> int:
    """Print the ratios; exit 1 if one of them is below its limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evaluate")
    parser.add_argument("--model", help="folder; default: a random model")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--sentences", type=int, default=2, help="of a scene, at most")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--least-of-generation", type=float, default=0.9, help="throughput over generation alone")
    parser.add_argument("--least-gain", type=float, default=1.5, help="throughput over predicting by batches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = GenerationSettings(max_new_tokens=arguments.tokens)
    if arguments.model:
        model = load_model(arguments.model, device="cpu", attn_implementation="sdpa")
    else:
        model = random_model(arguments.hidden, arguments.layers)
    with tempfile.TemporaryDirectory() as folder:
        rows = [scene_row(number) for number in range(arguments.scenes)]
        for row in rows:
            row["references"] = row["references"][: arguments.sentences]
        data = open_eval_set(write_set(Path(folder) / "set", rows), ["detect", "refer"])
        asked = ModelAnswerer("loaded already", data.index.class_names, settings, {}, arguments.batch)
        lengths: list[int] = []

        def evaluated() -> None:
            with mock.patch("padt.checkpoints.loading.load_model", lambda *given, **options: model):
                parts = [part for _, part in answer_here(dict(enumerate(windows(data.samples))), data.index, asked)]
            lengths[:] = [record["prediction"]["tokens"] for part in parts for record in part]

        def predicted() -> None:
            by_batches(data, arguments.batch, lambda images, requests: predict(model, images, requests, settings))

        def generated() -> None:
            by_batches(
                data,
                arguments.batch,
                lambda images, requests: answer(
                    model, prepare_questions(model, [[image] for image in images], requests), settings
                ),
            )

        alone = interleaved(evaluated, generated, arguments.rounds, warm_up=1)
        spread = sorted(lengths)
        print(
            f"{len(data.samples)} questions, {sum(lengths)} tokens: shortest {spread[0]}, median "
            f"{spread[len(spread) // 2]}, longest {spread[-1]}"
        )
        print(f"evaluation, generation alone: {alone}", flush=True)
        before = interleaved(evaluated, predicted, arguments.rounds, warm_up=0)
        print(f"evaluation, predicting by batches: {before}", flush=True)
    print(f"throughput {alone.cpu:.2f} times generation alone, limit {arguments.least_of_generation}")
    print(f"throughput {before.cpu:.2f} times predicting by batches, limit {arguments.least_gain}")
    return 0 if alone.cpu >= arguments.least_of_generation and before.cpu >= arguments.least_gain else 1


if __name__ == "__main__":
    sys.exit(main())
