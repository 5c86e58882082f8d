"""Conversations about toy scenes as a file of messages: words only, no Visual Reference Tokens.

A model that learns from them stands where Qwen2.5-VL stands before PaDT: it sees, reads, answers, and gives boxes as
numbers, and it has never been told of patches.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from padt.data.text_boxes import text_box
from pipelines.io.storage import Folder
from pipelines.toy.language import plain_turns, referring_expressions
from pipelines.toy.scenes import Scene, SceneOptions, draw_scene, scene_rng
from pipelines.toy.writing import SPLITS

FILE = "conversations.jsonl"
SPLIT = "talk"
_QUALITY = 92


def write_conversations(
    folder: Path, *, scenes: int, seed: int, options: SceneOptions, turns: int = 6, boxes: int = 2
) -> Path:
    """Write ``conversations.jsonl``, one conversation a scene, its picture inside; a file that is there stays.

    Args:
        folder: local folder.
        scenes: number of conversations, about scenes of a split of their own.
        seed: together with a scene's number it decides everything about the conversation.
        options: what scenes look like.
        turns: plain questions of a conversation, at most.
        boxes: questions whose answer is a box in numbers, at most.
    """
    lines = []
    if not (folder / FILE).exists():
        for number in range(scenes):
            rng = scene_rng(seed, SPLITS.index(SPLIT), number)
            scene = draw_scene(rng, options)
            lines.append(json.dumps({"id": f"{number:06d}", "messages": _messages(scene, rng, turns, boxes)}))
        Folder(str(folder)).write(FILE, "\n".join(lines) + "\n")
    return folder / FILE


def _messages(scene: Scene, rng: np.random.Generator, turns: int, boxes: int) -> list[dict]:
    asked = plain_turns(scene, rng)[:turns]
    expressions = referring_expressions(scene)
    for place in rng.permutation(len(expressions))[:boxes]:
        expression = expressions[place]
        box = scene.shapes[expression.shape].box
        asked.append((f"Give the box of {expression.text}.", text_box(box)))
    messages: list[dict] = []
    for number, place in enumerate(rng.permutation(len(asked))):
        question, answer = asked[place]
        content: list[dict] = [{"type": "text", "text": question}]
        if number == 0:
            content = [{"type": "image_url", "image_url": {"url": _data_url(scene)}}, *content]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return messages


def _data_url(scene: Scene) -> str:
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
