"""Answers on a GPU: half precision against float32, and the engine against ``predict``, compiled and not."""

import copy
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from padt.checkpoints.loading import load_model
from padt.data.rle import decode
from padt.inference.engine import Engine, EngineLimits, StepReport
from padt.inference.predict import GenerationSettings, Request, caption_request, predict, refer_request
from padt.inference.results import Prediction
from padt.model.modeling import PaDTForConditionalGeneration
from pipelines.toy.language import referring_expressions
from pipelines.toy.scenes import draw_scene, scene_rng
from tests.gpu.measure import cost_of
from tests.gpu.models import noise, sized_model

Figures = dict[str, Any]
TOY = Path(__file__).resolve().parents[2] / "pipelines" / "toy" / "base"


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        device, dtype: where, and of the large model's weights.
        size: of the large model, one of ``tests.gpu.models.SIZES``.
        requests, rows: how many are answered, and how many at a time.
        tokens: of each answer.
        side: width and height of the pictures in pixels.
        scenes: drawn scenes of the comparison of precisions.
        compile: back end of the compiled step; empty = leave it out, ``inductor`` with CUDA graphs on a GPU.
    """

    device: torch.device
    dtype: torch.dtype
    size: str
    requests: int
    rows: int
    tokens: int
    side: tuple[int, int]
    scenes: int
    compile: str


def precisions(plan: Plan) -> Figures:
    """The shipped toy model's answers in float16 and bfloat16 against those in float32."""
    whole = load_model(TOY, device=plan.device, dtype=torch.float32)
    asked: list[tuple[Image.Image, Request]] = []
    for number in range(plan.scenes):
        scene = draw_scene(scene_rng(7, 0, number))
        picture = Image.fromarray(scene.image)
        asked += [(picture, refer_request(each.text)) for each in referring_expressions(scene)[:2]]
        asked.append((picture, caption_request()))
    settings = GenerationSettings(max_new_tokens=200)
    expected = [predict(whole, *one, settings)[0] for one in asked]
    return {
        str(dtype).removeprefix("torch."): _differences(
            expected, [predict(copy.deepcopy(whole).to(dtype), *one, settings)[0] for one in asked]
        )
        for dtype in (torch.float16, torch.bfloat16)
    }


def _differences(expected: list[Prediction], found: list[Prediction]) -> Figures:
    """How far answers differ; boxes, scores and masks where the text is the same."""
    same = [(one, other) for one, other in zip(expected, found, strict=True) if one.text == other.text]
    pairs = [pair for one, other in same for pair in zip(one.objects, other.objects, strict=False)]
    return {
        "answers": len(found),
        "same_text": len(same),
        "objects": len(pairs),
        "not_finite": sum(prediction.not_finite for prediction in found),
        "box_px": max((abs(a - b) for one, other in pairs for a, b in zip(one.box, other.box, strict=True)), default=0),
        "score": max((abs(one.score - other.score) for one, other in pairs), default=0),
        "mask_share": max((float(np.mean(decode(one.mask) != decode(other.mask))) for one, other in pairs), default=0),
    }


def throughput(plan: Plan) -> Figures:
    """Requests with answers of one length: ``predict`` in batches and one by one, the engine, the compiled engine."""
    model = sized_model(plan.size, plan.device, plan.dtype)
    asked = [(noise(*plan.side, seed), caption_request()) for seed in range(plan.requests)]
    settings = GenerationSettings(max_new_tokens=plan.tokens)
    patches = _patches(model, plan.side)
    limits = EngineLimits(max_rows=plan.rows, max_length=patches + 256 + plan.tokens, cache_mb=0)

    def batches(size: int) -> list[Prediction]:
        found: list[Prediction] = []
        for start in range(0, len(asked), size):
            images, requests = zip(*asked[start : start + size], strict=True)
            found += predict(model, list(images), list(requests), settings)
        return found

    batches(plan.rows)
    figures: Figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "patches": patches,
        "weights_gib": round(sum(parameter.nbytes for parameter in model.parameters()) / 2**30, 2),
        "predict_in_batches": _figures(plan, lambda: batches(plan.rows)),
        "predict_one_by_one": _figures(plan, lambda: batches(1)),
    }
    expected = batches(1)
    engines: list[tuple[str, str]] = [("engine", "")] + ([("engine_compiled", plan.compile)] if plan.compile else [])
    for name, compile in engines:
        figures[name] = _engine_figures(plan, model, limits, compile, asked, settings, expected)
    return figures


def _engine_figures(
    plan: Plan,
    model: PaDTForConditionalGeneration,
    limits: EngineLimits,
    compile: str,
    asked: list[tuple[Image.Image, Request]],
    settings: GenerationSettings,
    expected: list[Prediction],
) -> Figures:
    reports: list[StepReport] = []
    backend: bool | str = True if compile == "inductor" else compile
    engine = Engine(model, limits, on_step=reports.append, compile=backend)

    def answer() -> list[Prediction]:
        tickets = [engine.submit(*one, settings) for one in asked]
        engine.run_until_idle()
        return [ticket.result(0) for ticket in tickets]

    first = cost_of(answer, plan.device)
    reports.clear()
    found: list[Prediction] = []
    figures = _figures(plan, lambda: found.extend(answer()))
    steps = [1000 * report.work.decode_s / report.rows for report in reports if report.rows]
    whole = [1000 * report.work.decode_s for report in reports if report.rows == plan.rows]
    return {
        **figures,
        "first_run_s": round(first.seconds, 3),
        "full_step_ms": round(statistics.median(whole), 3) if whole else None,
        "step_ms_by_row": round(statistics.median(steps), 3),
        "prefill_s": round(sum(report.work.prefill_s for report in reports), 3),
        "decode_s": round(sum(report.work.decode_s for report in reports), 3),
        "objects_s": round(sum(report.work.objects_s for report in reports), 3),
        "objects": sum(report.work.objects for report in reports),
        "not_finite": sum(prediction.not_finite for prediction in found),
        "same_as_predict": sum(one.token_ids == other.token_ids for one, other in zip(found, expected, strict=True)),
        "same_first_tokens": statistics.mean(
            _common(one.token_ids, other.token_ids) for one, other in zip(found, expected, strict=True)
        ),
    }


def _figures(plan: Plan, work: Any) -> Figures:
    cost = cost_of(work, plan.device)
    return {
        "seconds": round(cost.seconds, 3),
        "tokens_per_s": round(plan.requests * plan.tokens / cost.seconds, 1),
        "peak_gib": round(cost.peak_gib, 2) if cost.peak_gib is not None else None,
    }


def _patches(model: PaDTForConditionalGeneration, side: tuple[int, int]) -> int:
    height, width = model.processor.policy.grid(side[1], side[0])
    return height * width


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Tokens until two answers differ: in half precision random weights soon have a tie."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
