"""What can be said about a scene: referring sentences, grounded captions, and plain questions with answers.

All texts share one small vocabulary. Positions are those of the shapes' boxes; whatever is close (within
``CLEAR_MARGIN`` pixels, or near a border between places) is not said at all, so that every text is plainly true.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from padt.data.tasks import CAPTION_PROMPT
from pipelines.toy.scenes import COLOURS, KINDS, Scene, Shape

CLEAR_MARGIN = 8.0
_PATCH = 28
_COLOURED = ("full", "colour", "shade")
NUMBER_WORDS = ("none", "one", "two", "three", "four")

# Word, axis, sign, edge of the box: the leftmost shape has the smallest centre and the smallest left edge.
_EXTREMES = (("leftmost", 0, 1, 0), ("rightmost", 0, -1, 2), ("topmost", 1, 1, 1), ("bottommost", 1, -1, 3))
# Relation, axis of the centre, sign: "a is RELATION b" when sign * (a - b) is clearly negative.
_RELATIONS = (("to the left of", 0, 1), ("to the right of", 0, -1), ("above", 1, 1), ("below", 1, -1))


@dataclass(frozen=True)
class Expression:
    """A sentence that fits exactly one shape of its scene.

    Attributes:
        text: the sentence, for example ``the large red circle``.
        shape: index into the scene's shapes.
        family: what tells the shape apart: ``full``, ``colour``, ``size``, ``kind``, ``shade`` (colour of any kind),
            ``position`` or ``extent``.
    """

    text: str
    shape: int
    family: str


Piece = str | tuple[int, ...]


def referring_expressions(scene: Scene) -> list[Expression]:
    """Every sentence of the vocabulary that fits exactly one shape of the scene, in a fixed order."""
    shapes = scene.shapes
    found: list[Expression] = []
    for index, shape in enumerate(shapes):
        size, colour, kind = shape.size, shape.colour, shape.kind
        for family, words in (
            ("full", (size, colour, kind)),
            ("colour", (colour, kind)),
            ("size", (size, kind)),
            ("kind", (kind,)),
            ("shade", (colour, "shape")),
        ):
            if len(_matching(shapes, words)) == 1:
                found.append(Expression(f"the {' '.join(words)}", index, family))
    for noun in ("shape", *KINDS):
        among = _matching(shapes, (noun,))
        for word, axis, sign, edge in _EXTREMES:
            first = _clear_first(shapes, among, axis, sign, edge)
            if first is not None:
                found.append(Expression(f"the {word} {noun}", first, "position"))
        for word, size in (("largest", "large"), ("smallest", "small")):
            odd = [i for i in among if shapes[i].size == size]
            if len(odd) == 1 and len(among) > 1 and _differs_in_area(shapes, odd[0], among):
                found.append(Expression(f"the {word} {noun}", odd[0], "extent"))
    return found


def choose_expressions(scene: Scene, rng: np.random.Generator, per_shape: int = 3) -> list[Expression]:
    """Up to ``per_shape`` sentences for each shape, of different families as long as there are some.

    One of them names the shape's colour; the others tell the shape by kind, size or place alone.
    """
    chosen: list[Expression] = []
    everything = referring_expressions(scene)
    for index in range(len(scene.shapes)):
        families: dict[str, list[Expression]] = {}
        for expression in everything:
            if expression.shape == index:
                families.setdefault(expression.family, []).append(expression)
        names = _shuffled(list(families), rng)
        coloured = [name for name in names if name in _COLOURED]
        colourless = [name for name in names if name not in _COLOURED]
        for name in [*coloured[:1], *colourless, *coloured[1:]][:per_shape]:
            chosen.append(_pick(families[name], rng))
    return chosen


def grounded_captions(scene: Scene, ids: Sequence[int], rng: np.random.Generator, count: int = 2) -> list[str]:
    """Up to ``count`` different captions with ``(<box_id: N/>)`` after each noun, as RIC's files have them.

    Args:
        scene: the scene.
        ids: annotation id of each shape.
        rng: source of the choice among templates.
        count: most captions wanted; simple scenes have fewer.
    """
    captions = _caption_pieces(scene, rng)[:count]
    return ["".join(_with_tags(piece, ids) for piece in pieces) for pieces in captions]


def plain_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption without tags."""
    return "".join(piece for piece in _caption_pieces(scene, rng)[0] if isinstance(piece, str))


def place(scene: Scene, shape: Shape) -> str | None:
    """Where a shape is in a 3x3 division of the image (``top left``, ``centre``), or None near a border."""
    x, y = shape.centre[0] / scene.width, shape.centre[1] / scene.height
    if min(abs(value - border) for value in (x, y) for border in (1 / 3, 2 / 3)) < 0.03:
        return None
    row = ("top", "", "bottom")[min(2, int(y * 3))]
    column = ("left", "", "right")[min(2, int(x * 3))]
    return f"{row} {column}".strip() or "centre"


def point(scene: Scene, shape: Shape) -> str:
    """Centre of a shape's box in hundredths of the image, ``left, top`` (``07, 52``), as pointing models write it."""
    x, y = shape.centre[0] / scene.width, shape.centre[1] / scene.height
    return ", ".join(f"{min(99, max(0, int(100 * value))):02d}" for value in (x, y))


def reading_order(shapes: Sequence[Shape], indices: Iterable[int] | None = None) -> list[int]:
    """Indices of the shapes from left to right."""
    return sorted(range(len(shapes)) if indices is None else indices, key=lambda i: shapes[i].centre)


def describe(shape: Shape, article: str = "a") -> str:
    """``a large red circle``."""
    return f"{article} {shape.size} {shape.colour} {shape.kind}"


def plain_turns(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions and short answers about a scene: no boxes, no VRTs.

    They are what a vision-language model learns from before it is taught to ground its words. Kinds of question take
    turns in random order, so that the first few of the list are always of different kinds.
    """
    expressions = referring_expressions(scene)
    kinds = [
        [(CAPTION_PROMPT, plain_caption(scene, rng))],
        [("List the shapes.", _listing(scene))],
        [("Read the colours patch by patch.", _patchwise(scene, "colour"))],
        [("Read the kinds patch by patch.", _patchwise(scene, "kind"))],
        _counting_turns(scene),
        _presence_turns(scene, rng),
        _place_turns(scene),
        _relation_turns(scene, expressions),
        *_attribute_turns(scene, expressions),
    ]
    queues = [_shuffled(turns, rng) for turns in kinds]
    return [queue[i] for i in range(max(map(len, queues))) for queue in _shuffled(queues, rng) if i < len(queue)]


def _attribute_turns(scene: Scene, expressions: Sequence[Expression]) -> list[list[tuple[str, str]]]:
    colours, sizes, kinds, names, places, points = [], [], [], [], [], []
    for expression in expressions:
        shape, text, family = scene.shapes[expression.shape], expression.text, expression.family
        # What the question already says is not asked for.
        if family in ("kind", "size", "position", "extent"):
            colours.append((f"What colour is {text}?", shape.colour))
        if family in ("kind", "colour", "shade", "position"):
            sizes.append((f"What size is {text}?", shape.size))
        if family in ("shade", "position", "extent") and text.endswith(" shape"):
            kinds.append((f"What kind of shape is {text}?", shape.kind))
            names.append((f"What is {text}?", describe(shape)))
        where = place(scene, shape)
        if where is not None:
            places.append((f"Where is {text}?", where))
        points.append((f"Point to {text}.", point(scene, shape)))
    return [colours, sizes, kinds, names, places, points]


def _counting_turns(scene: Scene) -> list[tuple[str, str]]:
    counts = [(_plural(kind), len(_matching(scene.shapes, (kind,)))) for kind in KINDS]
    counts.append(("shapes", len(scene.shapes)))
    return [(f"How many {noun} are there?", NUMBER_WORDS[count]) for noun, count in counts]


def _place_turns(scene: Scene) -> list[tuple[str, str]]:
    places = [place(scene, shape) for shape in scene.shapes]
    # A shape near a border might be meant too.
    if None in places:
        return []
    return [
        (f"Which shape is {_at(where)}?", describe(shape))
        for where, shape in zip(places, scene.shapes, strict=True)
        if where is not None and places.count(where) == 1
    ]


def _relation_turns(scene: Scene, expressions: Sequence[Expression]) -> list[tuple[str, str]]:
    shapes, turns = scene.shapes, []
    for expression in expressions:
        others = [i for i in range(len(shapes)) if i != expression.shape]
        if expression.family not in ("full", "colour", "kind") or not others:
            continue
        for relation, axis, sign in _RELATIONS:
            gaps = [sign * (shapes[i].centre[axis] - shapes[expression.shape].centre[axis]) for i in others]
            there = [i for i, gap in zip(others, gaps, strict=True) if gap < 0]
            if min(abs(gap) for gap in gaps) >= CLEAR_MARGIN and len(there) < 2:
                answer = describe(shapes[there[0]]) if there else "nothing"
                turns.append((f"What is {relation} {expression.text}?", answer))
    return turns


def _presence_turns(scene: Scene, rng) -> list[tuple[str, str]]:
    present = [(shape.colour, shape.kind) for shape in scene.shapes]
    absent = [pair for pair in ((colour, kind) for colour in COLOURS for kind in KINDS) if pair not in present]
    # Some of the wrong ones share the colour or the kind of a shape, so that both must be looked at.
    near = [pair for pair in absent if any(pair[0] == colour or pair[1] == kind for colour, kind in present)]
    asked = [
        (_pick(present, rng), "yes"),
        (_pick(near, rng), "no"),
        (_pick(present, rng), "yes"),
        (_pick(absent, rng), "no"),
    ]
    return [(f"Is there a {colour} {kind}?", answer) for (colour, kind), answer in dict(asked).items()]


def _listing(scene: Scene) -> str:
    return ", ".join(describe(scene.shapes[i]) for i in reading_order(scene.shapes))


def _patchwise(scene: Scene, attribute: str) -> str:
    """What each 28-pixel patch shows, row by row: a word for the shape that covers a third of it, or ``none``."""
    rows = []
    for top in range(0, scene.height, _PATCH):
        words = []
        for left in range(0, scene.width, _PATCH):
            covers = [shape.mask[top : top + _PATCH, left : left + _PATCH].mean() for shape in scene.shapes]
            best = int(np.argmax(covers))
            words.append(getattr(scene.shapes[best], attribute) if covers[best] >= 1 / 3 else "none")
        rows.append(" ".join(words))
    return ", ".join(rows)


def _caption_pieces(scene: Scene, rng) -> list[list[Piece]]:
    """Every caption of the scene in random order, as text and groups of shapes that a text before them names."""
    shapes, order = scene.shapes, reading_order(scene.shapes)
    captions: list[list[Piece]] = [["The image shows ", *_joined([_noun(shapes, i) for i in order]), "."]]
    if len(shapes) == 1:
        captions.append(["There is ", *_noun(shapes, 0), "."])
        where = place(scene, shapes[0])
        if where is not None:
            captions.append([*_noun(shapes, 0, "A"), f" is {_at(where)}."])
    for first, second in ((order[0], order[-1]), (order[-1], order[0])) if len(shapes) > 1 else ():
        rest = [i for i in order if i not in (first, second)]
        for relation, axis, sign in _RELATIONS:
            if len(rest) > 1 or not _clearly(shapes, first, second, axis, sign):
                continue
            captions.append([*_noun(shapes, first, "A"), f" is {relation} ", *_noun(shapes, second)])
            captions[-1] += [", and there is ", *_noun(shapes, rest[0]), "."] if rest else ["."]
    for kind in KINDS:
        same = reading_order(shapes, _matching(shapes, (kind,)))
        if len(same) > 1:
            others = [_noun(shapes, i) for i in order if i not in same]
            group: list[Piece] = [f"{NUMBER_WORDS[len(same)]} {_plural(kind)}", tuple(same)]
            captions.append(["There are ", *_joined([group, *others]), "."])
    return _shuffled(captions, rng)


def _noun(shapes: Sequence[Shape], index: int, article: str = "a") -> list[Piece]:
    return [describe(shapes[index], article), (index,)]


def _joined(nouns: Sequence[list[Piece]]) -> list[Piece]:
    pieces = list(nouns[0])
    for position, noun in enumerate(nouns[1:], start=2):
        pieces += [" and " if position == len(nouns) else ", ", *noun]
    return pieces


def _with_tags(piece: Piece, ids: Sequence[int]) -> str:
    if isinstance(piece, str):
        return piece
    return f" ({', '.join(f'<box_id: {ids[index]}/>' for index in piece)})"


def _matching(shapes: Sequence[Shape], words: Sequence[str]) -> list[int]:
    """Indices of the shapes that every word fits; ``shape`` fits all."""
    return [
        index
        for index, shape in enumerate(shapes)
        if all(word in ("shape", shape.kind, shape.colour, shape.size) for word in words)
    ]


def _clear_first(shapes: Sequence[Shape], among: Sequence[int], axis: int, sign: int, edge: int) -> int | None:
    """The shape that lies clearly before the others along an axis, by its centre and by the edge of its box."""
    ranked = sorted(among, key=lambda i: sign * shapes[i].centre[axis])
    if len(ranked) < 2 or sign * (shapes[ranked[1]].centre[axis] - shapes[ranked[0]].centre[axis]) < CLEAR_MARGIN:
        return None
    first = ranked[0]
    return first if all(sign * (shapes[i].box[edge] - shapes[first].box[edge]) > 0 for i in ranked[1:]) else None


def _clearly(shapes: Sequence[Shape], first: int, second: int, axis: int, sign: int) -> bool:
    """Whether a person would put ``first`` before ``second`` along this axis, rather than along the other."""
    gaps = [a - b for a, b in zip(shapes[first].centre, shapes[second].centre, strict=True)]
    return -sign * gaps[axis] >= max(CLEAR_MARGIN, 0.7 * abs(gaps[1 - axis]))


def _differs_in_area(shapes: Sequence[Shape], index: int, among: Sequence[int]) -> bool:
    """Whether the visible areas tell the size apart too (a large shape may be cut by the border)."""
    area = shapes[index].area
    others = [shapes[i].area for i in among if i != index]
    return area > 1.3 * max(others) or 1.3 * area < min(others)


def _at(where: str) -> str:
    if where == "centre":
        return "in the centre"
    return f"on the {where}" if where in ("left", "right") else f"at the {where}"


def _plural(kind: str) -> str:
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def _pick(options, rng):
    return options[int(rng.integers(len(options)))]


def _shuffled(items: list, rng) -> list:
    return [items[i] for i in rng.permutation(len(items))]
