"""Conversations of the toy must be readable as messages, true of their scene, and free of VRTs."""

import json

from padt.data.text_boxes import read_text_boxes, text_box
from pipelines.sources.messages import read_conversation
from pipelines.toy.conversations import write_conversations
from pipelines.toy.language import referring_expressions
from pipelines.toy.scenes import SceneOptions, draw_scene, scene_rng
from pipelines.toy.writing import SPLITS


def test_each_conversation_is_read_and_its_boxes_are_true(tmp_path):
    options = SceneOptions(min_shapes=2, shared_colour=1.0)
    file = write_conversations(tmp_path / "talk", scenes=12, seed=5, options=options, turns=4, boxes=2)
    lines = file.read_text().splitlines()
    assert len(lines) == 12
    for number, line in enumerate(lines):
        conversation = read_conversation(json.loads(line))
        assert len(conversation.embedded) == 1
        scene = draw_scene(scene_rng(5, SPLITS.index("talk"), number), options)
        true = {
            f"Give the box of {each.text}.": text_box(scene.shapes[each.shape].box)
            for each in referring_expressions(scene)
        }
        asked = [each["content"].removeprefix("<image>") for each in conversation.messages[::2]]
        answers = [each["content"] for each in conversation.messages[1::2]]
        boxes = [(question, answer) for question, answer in zip(asked, answers, strict=True) if "box" in question]
        assert len(boxes) == min(2, len(true)) and len(asked) <= 6
        assert all(true[question] == answer and len(list(read_text_boxes(answer))) == 1 for question, answer in boxes)


def test_what_is_written_stays(tmp_path):
    first = write_conversations(tmp_path, scenes=1, seed=5, options=SceneOptions())
    before = first.read_bytes()
    write_conversations(tmp_path, scenes=2, seed=6, options=SceneOptions())
    assert first.read_bytes() == before
