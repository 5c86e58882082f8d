"""Questions about drawn scenes, as bodies of requests."""

import base64
import json
from dataclasses import dataclass
from typing import Any

from pipelines.toy.language import referring_expressions
from pipelines.toy.scenes import SceneOptions, draw_scene, scene_rng
from tests.benchmarks.engine import encoded
from tests.conftest import REPOSITORY

TOY_MODEL = str(REPOSITORY / "pipelines" / "toy" / "base")
LONG = "Read the colours patch by patch."


@dataclass(frozen=True)
class Asked:
    """A question: its picture as a file, its fields, and both as a request's body."""

    picture: bytes
    fields: dict[str, Any]

    @property
    def body(self) -> bytes:
        """JSON for ``/v1/predict``."""
        return json.dumps({**self.fields, "image": base64.b64encode(self.picture).decode()}).encode()


def mixed(count: int, seed: int, tokens: int = 128, side: int | None = None) -> list[Asked]:
    """Questions of every task in turn, each about a picture of its own; ``side`` = pixels, None = the toy's sizes."""
    found = []
    for number in range(count):
        picture, sentence = drawn(seed, number, side)
        tasks: list[dict[str, Any]] = [
            {"task": "caption"},
            {"task": "refer", "sentence": sentence},
            {"task": "chat", "prompt": LONG},
            {"task": "detect", "names": ["circle", "square", "triangle"]},
        ]
        found.append(Asked(picture, {**tasks[number % len(tasks)], "max_new_tokens": tokens}))
    return found


def drawn(seed: int, number: int, side: int | None = None) -> tuple[bytes, str]:
    """A scene as a picture file, and a sentence about it."""
    options = SceneOptions(sizes=((side, side),)) if side else SceneOptions()
    scene = draw_scene(scene_rng(seed, 0, number), options)
    return encoded(scene), referring_expressions(scene)[0].text
