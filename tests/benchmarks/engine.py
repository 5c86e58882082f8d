"""The engine against one request at a time, and questions about one picture against questions about many.

    python -m tests.benchmarks.engine

On the CPU with the shipped toy model and drawn scenes. Throughput: mixed requests (captions, references, free
prompts with long and short answers) that come together, against the same requests one after the other in the same
engine; and against ``predict``. Reading and seeing pictures gain little from company, so the shorter the answers, the
smaller the gain.
Pictures: ten questions about one picture that come one after the other, against the same questions about ten pictures.
Ratios of processor time, which other processes hardly disturb, in rounds that alternate.
"""

import argparse
import io
import sys

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


def main() -> int:
    """Print the ratios; exit 1 if one of them is beyond its limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engine")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--side", type=int, default=644, help="pixels of the pictures that several questions are about")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--least-gain", type=float, default=3.0, help="of throughput over one at a time")
    parser.add_argument("--most-shared", type=float, default=0.5, help="time about one picture over that about many")
    arguments = parser.parse_args()
    model = load_model(REPOSITORY / "pipelines" / "toy" / "base", device="cpu")
    settings = GenerationSettings(max_new_tokens=128)

    questions = mixed_requests(arguments.requests)
    engine = Engine(model, NOTHING_KEPT)
    tokens = answer_together(engine, questions, settings)
    ratio = interleaved(
        lambda: answer_together(engine, questions, settings),
        lambda: answer_in_turn(engine, questions, settings),
        arguments.rounds,
        warm_up=1,
    )
    gain = ratio.cpu
    print(f"{len(questions)} mixed requests, {tokens} tokens: together, one at a time: {ratio}", flush=True)
    ratio = interleaved(
        lambda: answer_together(engine, questions, settings),
        lambda: [predict(model, [image], [request], settings) for image, request in questions],
        arguments.rounds,
        warm_up=1,
    )
    print(f"the same: engine, predict one at a time: {ratio}", flush=True)

    scenes = [large_scene(number, arguments.side) for number in range(arguments.questions)]
    words = [refer_request(each.text) for each in referring_expressions(scenes[0])]
    asked = [words[number % len(words)] for number in range(arguments.questions)]
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
            arguments.rounds,
            warm_up=1,
        )
        shares.append(ratio.cpu)
        print(f"{len(asked)} questions, {name}: about ten pictures, about one: {ratio}", flush=True)
    print(f"throughput {gain:.2f} times one at a time, limit {arguments.least_gain}")
    print(f"one picture over many {max(shares):.2f}, limit {arguments.most_shared}")
    return 0 if gain >= arguments.least_gain and max(shares) <= arguments.most_shared else 1


if __name__ == "__main__":
    sys.exit(main())
