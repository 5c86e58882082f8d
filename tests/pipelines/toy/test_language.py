"""If these break, a toy sentence is false or ambiguous, and training and scores mean nothing.

The checker below reads the words of a text and looks at the shapes, sharing no code with what wrote the text.
"""

import re

import pytest

from pipelines.toy.language import choose_expressions, grounded_captions, plain_turns, referring_expressions
from pipelines.toy.scenes import COLOURS, KINDS, SIZES, draw_scene, scene_rng

TAGGED = re.compile(r"((?:[Aa] \w+ \w+ \w+)|(?:two|three|four) (?:circles|squares|triangles|crosses)) \(([^)]*)\)")
COUNTS = {"none": 0, "one": 1, "two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def scenes():
    return [(draw_scene(rng), rng) for rng in (scene_rng(23, 0, number) for number in range(250))]


def fitting(shapes, sentence):
    """Indices of the shapes that a sentence fits, or of the one it singles out by place or size."""
    the, *words = sentence.split()
    assert the == "the"
    noun, adjectives = words[-1], words[:-1]
    assert noun in (*KINDS, "shape")
    found = [i for i, shape in enumerate(shapes) if noun in ("shape", shape.kind)]
    for word in adjectives:
        if word in COLOURS:
            found = [i for i in found if shapes[i].colour == word]
        elif word in SIZES:
            found = [i for i in found if shapes[i].size == word]
        else:
            key = {
                "leftmost": lambda i: shapes[i].box[0] + shapes[i].box[2],
                "rightmost": lambda i: -shapes[i].box[0] - shapes[i].box[2],
                "topmost": lambda i: shapes[i].box[1] + shapes[i].box[3],
                "bottommost": lambda i: -shapes[i].box[1] - shapes[i].box[3],
                "largest": lambda i: -shapes[i].mask.sum(),
                "smallest": lambda i: shapes[i].mask.sum(),
            }[word]
            ranked = sorted(found, key=key)
            assert len(ranked) > 1, f"{sentence}: there is only one"
            gap = key(ranked[1]) - key(ranked[0])
            # Sums of two edges: twice the distance of the centres. Areas differ by more than 30 % of the smaller.
            smaller = min(shapes[i].area for i in ranked[:2])
            assert gap >= (0.3 * smaller if word in ("largest", "smallest") else 16), f"{sentence} is a close call"
            found = ranked[:1]
    return found


def clearly(relation, first, second):
    """Whether the centre of the first box lies where the relation says."""
    dx = (second.box[0] + second.box[2] - first.box[0] - first.box[2]) / 2
    dy = (second.box[1] + second.box[3] - first.box[1] - first.box[3]) / 2
    return {"to the left of": dx, "to the right of": -dx, "above": dy, "below": -dy}[relation] >= 8


def test_every_sentence_fits_exactly_the_shape_it_is_about(scenes):
    seen = set()
    for scene, _ in scenes:
        for expression in referring_expressions(scene):
            assert fitting(scene.shapes, expression.text) == [expression.shape], expression
            seen.add(expression.family)
    assert seen == {"full", "colour", "size", "kind", "shade", "position", "extent"}


def test_unique_shapes_are_always_spoken_of(scenes):
    for scene, _ in scenes:
        spoken_of = {expression.shape for expression in referring_expressions(scene)}
        looks = [(shape.kind, shape.colour, shape.size) for shape in scene.shapes]
        assert all(i in spoken_of for i, look in enumerate(looks) if looks.count(look) == 1)


def test_chosen_sentences_are_varied_and_few(scenes):
    for scene, rng in scenes:
        chosen = choose_expressions(scene, rng, per_shape=3)
        for index in range(len(scene.shapes)):
            families = [expression.family for expression in chosen if expression.shape == index]
            assert len(families) <= 3 and len(set(families)) == len(families)


def test_most_chosen_sentences_name_no_colour(scenes):
    chosen = [expression.text for scene, rng in scenes for expression in choose_expressions(scene, rng)]
    coloured = sum(any(colour in text.split() for colour in COLOURS) for text in chosen)
    assert 0.2 * len(chosen) < coloured < 0.45 * len(chosen)


def test_captions_tag_existing_shapes_that_are_as_their_words_say(scenes):
    for scene, rng in scenes:
        ids = [900 + 7 * index for index in range(len(scene.shapes))]
        captions = grounded_captions(scene, ids, rng, count=9)
        assert captions and len(set(captions)) == len(captions)
        for caption in captions:
            assert caption.endswith(".") and len(re.sub(r"\([^)]*\)", "", caption).split()) <= 35
            tagged = []
            for noun, tags in TAGGED.findall(caption):
                found = [int(number) for number in re.findall(r"<box_id: (\d+)/>", tags)]
                assert tags == ", ".join(f"<box_id: {number}/>" for number in found)
                tagged += found
                for shape in (scene.shapes[ids.index(number)] for number in found):
                    if noun.lower().startswith("a "):
                        assert noun.split()[1:] == [shape.size, shape.colour, shape.kind]
                    else:
                        assert noun.split()[1].startswith(shape.kind)
                if not noun.lower().startswith("a "):
                    assert COUNTS[noun.split()[0]] == len(found)
            assert sorted(tagged) == ids, "each shape is named once"
            assert len(re.findall("box_id", caption)) == len(tagged)
            relation = re.search(r" is (to the left of|to the right of|above|below) ", caption)
            if relation:
                first, second = (scene.shapes[ids.index(number)] for number in tagged[:2])
                assert clearly(relation[1], first, second), caption


def test_plain_turns_are_true(scenes):
    asked = set()
    for scene, rng in scenes:
        shapes = scene.shapes
        turns = plain_turns(scene, rng)
        assert len({question for question, _ in turns[:4]}) == 4
        for question, answer in turns:
            assert "<" not in question + answer and "(" not in question + answer
            kind, check = understand(question, shapes)
            asked.add(kind)
            assert check(answer, scene), (question, answer)
    assert asked >= {
        "attribute",
        "count",
        "presence",
        "relation",
        "where",
        "which",
        "list",
        "describe",
        "what",
        "point",
        "patches",
    }


def reads_patches(answer, scene, attribute):
    """Every patch is called after a shape that covers a third of it, and ``none`` only where there is no such shape."""
    rows = [row.split() for row in answer.split(", ")]
    assert [len(row) for row in rows] == [scene.width // 28] * (scene.height // 28)
    for r, row in enumerate(rows):
        for c, word in enumerate(row):
            square = slice(28 * r, 28 * r + 28), slice(28 * c, 28 * c + 28)
            there = [getattr(s, attribute) for s in scene.shapes if 3 * s.mask[square].sum() >= 28 * 28]
            if word not in (there or ["none"]):
                return False
    return True


def understand(question, shapes):
    """Kind of a question and a check of its answer."""

    def about(sentence):
        (index,) = fitting(shapes, sentence)
        return shapes[index]

    def named(shape):
        return f"a {shape.size} {shape.colour} {shape.kind}"

    patterns = {
        r"What (colour|size) is (the .*)\?": lambda m: ("attribute", lambda a, _: a == getattr(about(m[2]), m[1])),
        r"What kind of shape is (the .*)\?": lambda m: ("attribute", lambda a, _: a == about(m[1]).kind),
        r"Read the (colour|kind)s patch by patch\.": lambda m: (
            "patches",
            lambda a, scene: reads_patches(a, scene, m[1]),
        ),
        r"How many (\w+) are there\?": lambda m: (
            "count",
            lambda a, _: COUNTS[a] == sum(m[1] == "shapes" or m[1].startswith(s.kind) for s in shapes),
        ),
        r"Is there a (\w+) (\w+)\?": lambda m: (
            "presence",
            lambda a, _: (a == "yes") == any((s.colour, s.kind) == (m[1], m[2]) for s in shapes),
        ),
        r"What is (to the left of|to the right of|above|below) (the .*)\?": lambda m: (
            "relation",
            lambda a, _: (
                [a]
                == ([named(s) for s in shapes if s is not about(m[2]) and clearly(m[1], s, about(m[2]))] or ["nothing"])
            ),
        ),
        r"Where is (the .*)\?": lambda m: ("where", lambda a, scene: a == where(about(m[1]), scene)),
        r"Point to (the .*)\.": lambda m: ("point", lambda a, scene: points_at(a, about(m[1]), scene)),
        r"Which shape is (?:at|on|in) the (.*)\?": lambda m: (
            "which",
            lambda a, scene: [a] == [named(s) for s in shapes if where(s, scene) == m[1]],
        ),
        r"What is (the .*)\?": lambda m: ("what", lambda a, _: a == named(about(m[1]))),
        r"List the shapes\.": lambda m: ("list", lambda a, _: sorted(a.split(", ")) == sorted(map(named, shapes))),
        r"Please describe this image\.": lambda m: (
            "describe",
            lambda a, _: a.endswith(".") and any(s.kind in a for s in shapes),
        ),
    }
    for pattern, read in patterns.items():
        match = re.fullmatch(pattern, question)
        if match:
            return read(match)
    raise AssertionError(f"unknown question: {question}")


def where(shape, scene):
    x, y = (shape.box[0] + shape.box[2]) / 2 / scene.width, (shape.box[1] + shape.box[3]) / 2 / scene.height
    row = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    return " ".join(word for word in (row, column) if word) or "centre"


def points_at(answer, shape, scene):
    """Two digits for each coordinate, in hundredths of the image: left, then top."""
    if not re.fullmatch(r"\d\d, \d\d", answer):
        return False
    x, y = (int(value) / 100 for value in answer.split(", "))
    middle = (shape.box[0] + shape.box[2]) / 2 / scene.width, (shape.box[1] + shape.box[3]) / 2 / scene.height
    return 0 <= middle[0] - x < 0.0101 and 0 <= middle[1] - y < 0.0101
