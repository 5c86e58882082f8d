"""The engine against one request at a time, questions about one picture against many, and a question behind captions.

    python -m tests.benchmarks.engine

On the CPU with the shipped toy model and drawn scenes. Throughput: mixed requests (captions, references, free
prompts with long and short answers) that come together, against the same requests one after the other in the same
engine; and against ``predict``. Reading and seeing pictures gain little from company, so the shorter the answers, the
smaller the gain.
Pictures: ten questions about one picture that come one after the other, against the same questions about ten pictures.
Overhead: one request, by the engine and by ``predict``.
Company: a short question while eight long captions are written, against the same question alone; and, without a limit,
where the captions come just before it, so that they are seen and read in one admission with it.
Ratios of processor time, which other processes hardly disturb, in rounds that alternate.
"""

import argparse
import copy
import io
import sys

import torch
from PIL import Image

from padt.checkpoints.loading import load_model
from padt.inference.engine import Engine, EngineLimits
from padt.inference.predict import (
    GenerationSettings,
    Request,
    caption_request,
    predict,
    refer_request,
    text_request,
)
from padt.model.modeling import PaDTForConditionalGeneration as Model
from pipelines.toy.language import referring_expressions
from pipelines.toy.scenes import Scene, SceneOptions, draw_scene, scene_rng
from tests.benchmarks.common.measure import interleaved
from tests.conftest import REPOSITORY

Question = tuple[bytes, Request]
LIMITS = EngineLimits(max_rows=16, max_length=1024)
NOTHING_KEPT = EngineLimits(max_rows=16, max_length=1024, cache_mb=0)


def mixed_requests(count: int, seed: int = 3) -> list[Question]:
    """Questions of several kinds, each about a picture of its own."""
    found: list[Question] = []
    for number in range(count):
        scene = draw_scene(scene_rng(seed, 0, number))
        expressions = [each.text for each in referring_expressions(scene)]
        kinds = [
            caption_request(),
            refer_request(expressions[0]),
            text_request("Read the colours patch by patch."),
            text_request("List the shapes."),
        ]
        found.append((encoded(scene), kinds[number % len(kinds)]))
    return found


def encoded(scene: Scene) -> bytes:
    """A scene as a client sends it."""
    handle = io.BytesIO()
    Image.fromarray(scene.image).save(handle, "JPEG", quality=95)
    return handle.getvalue()


def large_scene(number: int, side: int) -> Scene:
    """A scene that is seen for longer than it is talked about, as photographs are."""
    return draw_scene(scene_rng(5, 1, number), SceneOptions(sizes=((side, side),)))


def answer_together(engine: Engine, questions: list[Question], settings: GenerationSettings) -> int:
    """Submit everything, then answer it; gives the tokens that were written."""
    tickets = [engine.submit(image, request, settings) for image, request in questions]
    engine.run_until_idle()
    return sum(len(ticket.result(0).token_ids) for ticket in tickets)


def answer_in_turn(engine: Engine, questions: list[Question], settings: GenerationSettings) -> int:
    """Submit each when the one before is answered."""
    return sum(answer_together(engine, [question], settings) for question in questions)


def throughput(model: Model, count: int, rounds: int) -> float:
    """How many times more requests are answered together than one at a time."""
    settings = GenerationSettings(max_new_tokens=128)
    questions = mixed_requests(count)
    engine = Engine(model, NOTHING_KEPT)
    tokens = answer_together(engine, questions, settings)
    gain = interleaved(
        lambda: answer_together(engine, questions, settings),
        lambda: answer_in_turn(engine, questions, settings),
        rounds,
        warm_up=1,
    )
    print(f"{len(questions)} mixed requests, {tokens} tokens: together, one at a time: {gain}", flush=True)
    ratio = interleaved(
        lambda: answer_together(engine, questions, settings),
        lambda: [predict(model, [image], [request], settings) for image, request in questions],
        rounds,
        warm_up=1,
    )
    print(f"the same: engine, predict one at a time: {ratio}", flush=True)
    return gain.cpu


def overhead(model: Model, count: int, rounds: int) -> float:
    """What a request costs in the engine, over its cost in ``predict``."""
    settings = GenerationSettings(max_new_tokens=128)
    questions = mixed_requests(count)
    engine = Engine(model, NOTHING_KEPT)
    ratio = interleaved(
        lambda: [predict(model, [image], [request], settings) for image, request in questions],
        lambda: answer_in_turn(engine, questions, settings),
        rounds,
        warm_up=1,
    )
    print(f"one request at a time: predict, engine: {ratio}", flush=True)
    return ratio.cpu


def sharing(model: Model, count: int, side: int, rounds: int) -> float:
    """Time of questions about one picture over that of questions about many."""
    scenes = [large_scene(number, side) for number in range(count)]
    words = [refer_request(each.text) for each in referring_expressions(scenes[0])]
    asked = [words[number % len(words)] for number in range(count)]
    pictures = [encoded(scene) for scene in scenes]
    many = list(zip(pictures, asked, strict=True))
    one = [(pictures[0], request) for request in asked]
    # Only the object's tokens: the toy model knows no pictures of this size, and would ramble on.
    brief = GenerationSettings(max_new_tokens=16)
    shares = []
    for name, answer in (("one after the other", answer_in_turn), ("together", answer_together)):
        ratio = interleaved(
            lambda answer=answer: answer(Engine(model, LIMITS), many, brief),  # type: ignore[misc]
            lambda answer=answer: answer(Engine(model, LIMITS), one, brief),  # type: ignore[misc]
            rounds,
            warm_up=1,
        )
        shares.append(ratio.cpu)
        print(f"{count} questions, {name}: about as many pictures, about one: {ratio}", flush=True)
    return max(shares)


def company(model: Model, captions: int, rounds: int) -> float:
    """Time of a short question while long captions are written, over its time alone."""
    talkative = copy.deepcopy(model)
    with torch.no_grad():
        # No answer ends by itself, so that captions are as long as they may be.
        talkative.lm_head.weight[model.processor.end_token_id] = 0
    scenes = [draw_scene(scene_rng(3, 2, number)) for number in range(captions + 1)]
    *others, own = [encoded(scene) for scene in scenes]
    question = (own, refer_request(referring_expressions(scenes[-1])[0].text))
    brief, long = GenerationSettings(max_new_tokens=20), GenerationSettings(max_new_tokens=900)
    alone, busy = Engine(talkative, NOTHING_KEPT), Engine(talkative, NOTHING_KEPT)

    def answer_one(engine: Engine) -> None:
        ticket = engine.submit(*question, brief)
        while not ticket.done:
            engine.step()

    running = [busy.submit(picture, caption_request(), long) for picture in others]
    busy.step()
    ratio = interleaved(lambda: answer_one(alone), lambda: answer_one(busy), rounds)
    assert not any(ticket.done for ticket in running), "the captions must be longer than the measurement"
    print(f"a question of 20 tokens: alone, beside {captions} captions: {ratio}", flush=True)

    def come_before() -> None:
        engine = Engine(talkative, NOTHING_KEPT)
        for picture in others:
            engine.submit(picture, caption_request(), long)
        answer_one(engine)

    together = interleaved(lambda: answer_one(Engine(talkative, NOTHING_KEPT)), come_before, rounds, warm_up=1)
    print(f"the same, captions that come just before it, their reading counted: {together}", flush=True)
    return ratio.cpu


def main() -> int:
    """Print the ratios; exit 1 if one of them is beyond its limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engine")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--side", type=int, default=644, help="pixels of the pictures that several questions are about")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--least-gain", type=float, default=3.0, help="of throughput over one at a time")
    parser.add_argument("--most-overhead", type=float, default=1.2, help="of one request over predict")
    parser.add_argument("--most-shared", type=float, default=0.5, help="time about one picture over that about many")
    parser.add_argument("--most-company", type=float, default=2.0, help="time beside captions over that alone")
    arguments = parser.parse_args()
    model = load_model(REPOSITORY / "pipelines" / "toy" / "base", device="cpu")
    gain = throughput(model, arguments.requests, arguments.rounds)
    most = {
        "engine over predict, one request": (
            overhead(model, arguments.requests, arguments.rounds),
            arguments.most_overhead,
        ),
        "one picture over many": (
            sharing(model, arguments.questions, arguments.side, arguments.rounds),
            arguments.most_shared,
        ),
        "beside captions over alone": (
            company(model, arguments.captions, arguments.rounds),
            arguments.most_company,
        ),
    }
    print(f"throughput {gain:.2f} times one at a time, limit {arguments.least_gain}")
    for name, (value, limit) in most.items():
        print(f"{name} {value:.2f}, limit {limit}")
    return 0 if gain >= arguments.least_gain and all(value <= limit for value, limit in most.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
