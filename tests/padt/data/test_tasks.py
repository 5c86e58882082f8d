"""Rows become prompts and answers in the released wording, and every draw comes from the given source alone."""

import json
import re

import numpy as np
import pytest

from padt.data.conversation import Group
from padt.data.patches import pack_patches
from padt.data.tasks import (
    CAPTION_PROMPT,
    NO_OBJECTS,
    TASKS,
    Sample,
    Task,
    TaskOptions,
    asked,
    detect_answer,
    detect_prompt,
    merge_text,
    refer_answer,
    refer_prompt,
    render,
)
from padt.data.text_boxes import read_text_boxes
from padt.errors import UserError
from padt.inference.requests import ask
from tests.conftest import shared_path

NAMES = ("person", "car", "dog", "cup", "traffic light")
ALL_NAMES = TaskOptions(class_names=NAMES, drop_names=0.0)


def entry(label, patches=(0, 1), crowd=False):
    flags = np.zeros(12, bool)
    flags[list(patches)] = True
    return {
        "label": label,
        "box": [0.1, 0.2, 0.3, 0.4],
        "iscrowd": crowd,
        "patches": pack_patches(flags.reshape(3, 4)),
        "rle": None,
    }


def row_of(objects, references=(), captions=()):
    return {
        "key": "set/val/1",
        "image": {"bytes": b"data", "path": None},
        "grid_h": 3,
        "grid_w": 4,
        "objects": list(objects),
        "references": list(references),
        "captions": list(captions),
    }


def text_of(sample):
    """The answer with a placeholder for each group, numbered."""
    pieces, number = [], 0
    for piece in sample.answer:
        if isinstance(piece, Group):
            pieces.append(f"<|Obj_{number}|>")
            number += 1
        else:
            pieces.append(piece)
    return "".join(pieces)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", ["coco_out_val", "coco_out_train"])
def test_detection_is_worded_as_released(name):
    fixture = shared_path("reference/fixture")
    for line in (fixture / f"{name}.jsonl").read_text().splitlines():
        released = json.loads(line)
        labels = [item["label"] for item in released["objects"]]
        row = row_of(entry(label) for label in labels)
        prompt = released["conversations"][0]["value"]
        listed = json.loads(re.search(r"(\[.*\])\.$", prompt).group(1))
        assert detect_prompt(listed) == prompt
        order = list(dict.fromkeys(labels))
        for seed in range(200):
            sample = render(row, "detect", 0, rng(seed), ALL_NAMES)
            asked = json.loads(re.search(r"(\[.*\])\.$", sample.prompt).group(1))
            if [label for label in asked if label in order] == order:
                assert text_of(sample) == released["answer_template"]
                break
        else:
            pytest.fail("no draw gave the released order of classes")


def test_one_class_is_worded_as_one():
    one = render(row_of([entry("dog")]), "detect", 0, rng(), ALL_NAMES)
    assert text_of(one) == 'There is 1 "dog" (<|Obj_0|>) in this image.'
    two = render(row_of([entry("dog"), entry("dog")]), "detect", 0, rng(), ALL_NAMES)
    assert text_of(two) == 'There are 2 "dog" (<|Obj_0|>, <|Obj_1|>) in this image.'


def test_the_prompt_lists_present_and_absent_names_once():
    prompts = [render(row_of([entry("dog")]), "detect", 0, rng(seed), ALL_NAMES).prompt for seed in range(20)]
    lists = [json.loads(re.search(r"(\[.*\])\.$", prompt).group(1)) for prompt in prompts]
    assert all(sorted(each) == sorted(NAMES) for each in lists)
    assert len({tuple(each) for each in lists}) > 5, "order is drawn"


def test_half_of_the_absent_names_are_dropped_with_the_given_chance():
    options = TaskOptions(class_names=NAMES, drop_names=0.5)
    counts = []
    for seed in range(300):
        prompt = render(row_of([entry("dog")]), "detect", 0, rng(seed), options).prompt
        counts.append(len(json.loads(re.search(r"(\[.*\])\.$", prompt).group(1))))
    assert set(counts) == {5, 3}
    assert 100 < counts.count(3) < 200


def asked_and_answered(sample):
    """Classes that a detection prompt names, and those of its answer, in order."""
    listed = json.loads(re.search(r"(\[.*\])\.$", sample.prompt).group(1))
    return listed, list(dict.fromkeys(group.target.label for group in sample.groups))


def test_a_partial_list_is_answered_with_its_classes_alone():
    # Who asks for two of the classes must not be told about a third one that is there as well.
    options = TaskOptions(class_names=NAMES, partial_lists=1.0)
    row = row_of([entry("dog"), entry("cup"), entry("dog"), entry("car")])
    lengths, nothing = [], 0
    for seed in range(300):
        sample = render(row, "detect", 0, rng(seed), options)
        listed, answered = asked_and_answered(sample)
        assert answered == [name for name in listed if name in ("dog", "cup", "car")]
        assert len(set(listed)) == len(listed)
        nothing += sample.answer == (NO_OBJECTS,)
        lengths.append(len(listed))
    assert set(lengths) == {1, 2, 3, 4, 5} and all(20 < lengths.count(length) < 120 for length in (1, 2, 3))
    assert 5 < nothing < 100, "short lists may name absent classes only"


def test_without_partial_lists_every_draw_stays_as_it_was():
    # Recorded before the option was there: runs of the released recipe must not change by it.
    row = row_of([entry("dog", patches=range(8)), entry("cup", patches=range(4, 12))])
    sample = render(row, "detect", 0, rng(3), TaskOptions(class_names=NAMES))
    assert sample.prompt.endswith(': ["dog", "cup", "person"].')
    assert [group.vrts for group in sample.groups] == [(6, 3, 2, 7, 0), (4, 10, 11, 7, 8)]


def test_the_share_of_partial_lists_is_kept():
    options = TaskOptions(class_names=NAMES, drop_names=0.0, partial_lists=0.5)
    row = row_of([entry("dog")])
    lengths = [len(asked_and_answered(render(row, "detect", 0, rng(seed), options))[0]) for seed in range(300)]
    # One of five partial lists is as long as the whole.
    assert 90 < sum(length < 5 for length in lengths) < 150


def test_long_lists_keep_what_is_present():
    names = tuple(f"class {index}" for index in range(300))
    options = TaskOptions(class_names=names, max_names=20, drop_names=0.0)
    row = row_of(entry(f"class {index}") for index in (7, 250))
    sample = render(row, "detect", 0, rng(), options)
    listed = json.loads(re.search(r"(\[.*\])\.$", sample.prompt).group(1))
    assert len(listed) == 20 and {"class 7", "class 250"} <= set(listed)


def test_crowds_of_objects_are_neither_asked_for_nor_answered():
    options = TaskOptions(class_names=NAMES, drop_names=0.0, max_per_class=3)
    row = row_of([entry("cup")] * 4 + [entry("dog")])
    sample = render(row, "detect", 0, rng(), options)
    assert "cup" not in sample.prompt and text_of(sample) == 'There is 1 "dog" (<|Obj_0|>) in this image.'


def test_crowd_regions_can_be_left_out_and_are_never_called_absent():
    row = row_of([entry("person", crowd=True), entry("dog")])
    kept = render(row, "detect", 0, rng(), ALL_NAMES)
    assert '1 "person"' in text_of(kept)
    left_out = render(row, "detect", 0, rng(), TaskOptions(class_names=NAMES, drop_names=0.0, skip_crowd=True))
    assert "person" not in left_out.prompt and "person" not in text_of(left_out)


def test_objects_without_patches_are_neither_answered_nor_called_absent():
    sample = render(row_of([entry("cup", patches=()), entry("dog")]), "detect", 0, rng(), ALL_NAMES)
    assert "cup" not in sample.prompt and len(sample.groups) == 1


def test_a_picture_without_objects():
    sample = render(row_of([]), "detect", 0, rng(), ALL_NAMES)
    assert sample.answer == (NO_OBJECTS,)
    crowded = TaskOptions(class_names=("cup",), max_per_class=0)
    assert render(row_of([entry("cup")]), "detect", 0, rng(), crowded).answer == (NO_OBJECTS,)


def test_references_with_one_two_and_no_objects():
    references = [
        {"text": 'the "left" dog', "objects": [1]},
        {"text": "both", "objects": [0, 1]},
        {"text": "x", "objects": []},
    ]
    row = row_of([entry("dog", (0,)), entry("dog", (5,))], references)
    one, two, none = (render(row, "refer", item, rng(), ALL_NAMES) for item in range(3))
    assert one.prompt == refer_prompt('the "left" dog')
    assert text_of(one) == 'The "the "left" dog" refers to <|Obj_0|> in this image.'
    assert one.groups[0].target.patches == (5,) and one.groups[0].target.label == 'the "left" dog'
    assert text_of(two) == 'The "both" refers to <|Obj_0|>, <|Obj_1|> in this image.'
    assert none.answer == (NO_OBJECTS,)


def test_boxes_in_numbers_can_stand_in_place_of_vrts_and_are_read_back():
    """A grid of 3 x 4 patches is a picture of 112 x 84 pixels for the model."""
    options = TaskOptions(class_names=NAMES, drop_names=0.0, places="text")
    row = row_of([entry("cup"), entry("cup", ()), entry("car")], references=[{"text": "the cup", "objects": [0]}])
    refer = render(row, "refer", 0, rng(), options)
    assert text_of(refer) == 'The "the cup" refers to [11, 17, 34, 34] in this image.' and not refer.groups
    detect = render(row, "detect", 0, rng(), options)
    # As with VRTs, what has no patch is not answered.
    assert sorted(box for _, box in read_text_boxes(text_of(detect))) == [(11, 17, 34, 34)] * 2
    vrts = render(row, "detect", 0, rng(), ALL_NAMES)
    assert detect.prompt == vrts.prompt and len(vrts.groups) == 2


def test_captions_put_groups_in_their_places():
    captions = [{"text": "A dog (<|Obj_1|>) and (<|Obj_0|>, <|Obj_1|>).", "objects": [1, 0]}]
    row = row_of([entry("dog", (0,)), entry("cup", (5,))], captions=captions)
    sample = render(row, "caption", 0, rng(), ALL_NAMES)
    assert sample.prompt == CAPTION_PROMPT
    assert text_of(sample) == "A dog (<|Obj_0|>) and (<|Obj_1|>, <|Obj_2|>)."
    assert [group.target.label for group in sample.groups] == ["dog", "cup", "dog"]


def test_the_same_seed_gives_the_same_sample_and_another_another():
    row = row_of([entry("dog", range(12)), entry("cup", range(8))])
    one, same, other = (render(row, "detect", 0, rng(seed), ALL_NAMES) for seed in (1, 1, 2))
    assert one == same and one != other


def test_what_a_row_does_not_have_is_named():
    row = row_of([entry("dog")])
    with pytest.raises(UserError, match=r"Task 'captoin' is unknown: did you mean caption\?"):
        render(row, "captoin", 0, rng(), ALL_NAMES)
    with pytest.raises(UserError, match="set/val/1 has 0 references, so there is no item 0"):
        render(row, "refer", 0, rng(), ALL_NAMES)
    with pytest.raises(UserError, match="class names"):
        render(row, "detect", 0, rng(), TaskOptions())


def test_a_link_to_a_picture_is_kept():
    row = row_of([entry("dog")]) | {"image": {"bytes": None, "path": "a/b.jpg"}}
    assert render(row, "detect", 0, rng(), ALL_NAMES).images == ("a/b.jpg",)


def test_neighbouring_text_is_joined():
    assert merge_text(["a", "", "b"]) == ("ab",)
    assert merge_text([]) == ()


def test_captions_leave_no_empty_brackets_where_an_object_has_no_patch():
    objects = [entry("cat", ()), entry("dog", (3,)), entry("cup", ())]
    text = "A cat (<|Obj_0|>) and pets (<|Obj_0|>, <|Obj_1|>, <|Obj_2|>) by a cup (<|Obj_2|>)."
    row = row_of(objects, captions=[{"text": text, "objects": [0, 1, 2]}])
    sample = render(row, "caption", 0, rng(), TaskOptions(num_vrts=1))
    assert text_of(sample).count("(") == 1
    assert [piece if isinstance(piece, str) else piece.vrts for piece in sample.answer] == [
        "A cat and pets (",
        (3,),
        ") by a cup.",
    ]


def test_a_question_in_our_words_is_read_back():
    assert asked(detect_prompt(["dog", 'a "cat"', "ü"])) == ("detect", ("dog", 'a "cat"', "ü"))
    assert asked(refer_prompt('the "left" dog')) == ("refer", 'the "left" dog')
    assert asked(CAPTION_PROMPT) == ("caption", None)
    assert asked("How many dogs are there?") is None


def test_answers_are_worded_the_same_around_text_and_around_objects():
    """Exports write placeholders where training has groups."""
    sample = render(row_of([entry("dog"), entry("cup"), entry("dog")]), "detect", 0, rng(3), ALL_NAMES)
    text = text_of(sample)
    order = sorted([("dog", 2), ("cup", 1)], key=lambda item: text.index(f'"{item[0]}"'))
    places = iter(["<|Obj_0|>", "<|Obj_1|>", "<|Obj_2|>"])
    assert detect_answer([(name, [next(places) for _ in range(count)]) for name, count in order]) == (text,)
    assert refer_answer("both", ["A", "B"]) == ('The "both" refers to A, B in this image.',)
    assert refer_answer("none", []) == detect_answer([]) == (NO_OBJECTS,)


def test_a_new_row_is_a_task_of_training_and_of_requests(monkeypatch):
    def build(row, item, rng, options):
        return Sample.single(row["key"], "count", b"data", "How many?", (str(len(row["objects"])),))

    monkeypatch.setitem(TASKS, "count", Task(lambda words: f"How many {words}?", build, "images", "sentence"))
    assert render(row_of([entry("dog")]), "count", 0, rng(), ALL_NAMES).answer == ("1",)
    assert ask("count", "dogs").prompt == "How many dogs?"
    with pytest.raises(UserError, match=r"Task 'cuont' is unknown: did you mean count\?"):
        ask("cuont", "dogs")
