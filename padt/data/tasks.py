"""Tasks: how a row of a data set becomes a prompt and an answer, and how a user's request becomes a prompt.

A row is the dictionary that a shard stores (schema version 1): ``objects``, ``references``, ``captions`` and the image.
Prompts and answers are worded as the released PaDT was trained (templates: paper, appendix; ``detect`` = OVD,
``refer`` = REC and RES, ``caption`` = RIC). ``chat`` rows are conversations, taken as they are.

Every wording stands here once: training, estimates of length, exports, requests and the toy's base model take it from
``TASKS`` and the functions beside it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from padt.data.conversation import Group, ObjectTarget, Turn, question, read_messages
from padt.data.image import PATCH
from padt.data.patches import unpack_patches
from padt.data.text_boxes import text_box
from padt.data.vrt import VRTRule, choose_vrts
from padt.errors import UserError, check_range, look_up

CAPTION_PROMPT = "Please describe this image."
NO_OBJECTS = "No objects from the list are present in the image."
_CLASSES = re.compile(r"detect the following objects: *(\[.*\])", re.DOTALL)
_SENTENCE = re.compile(r'object this sentence describes: *"(.*)"', re.DOTALL)
_DESCRIBE = re.compile(r"describe (?:this|the) image", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"<\|Obj_(\d+)\|>")
_BRACKET = re.compile(r"(\s*)\(((?:<\|Obj_\d+\|>[\s,]*)+)\)")

Place = TypeVar("Place")
"""What stands for an object in an answer: a ``Group``, or text such as ``<|Obj_3|>``."""


@dataclass(frozen=True)
class Sample:
    """A conversation about any number of images, whose assistant's turns are what a model learns to say.

    Attributes:
        key: the row's key.
        task: one of ``TASKS``.
        images: encoded bytes (or paths or decoded images) as ``padt.data.image.open_image`` takes them; none for plain
            text.
        turns: user and assistant in turn, after a system turn where there is one; the last is the assistant's.
    """

    key: str
    task: str
    images: tuple[Any, ...]
    turns: tuple[Turn, ...]

    @classmethod
    def single(cls, key: str, task: str, image: Any, prompt: str, answer: Sequence[str | Group]) -> "Sample":
        """One question about one image, and its answer: text pieces and groups in order of reading."""
        return cls(key, task, (image,), (question(prompt, 1), Turn("assistant", tuple(answer))))

    @property
    def prompt(self) -> str:
        """The words of the last question."""
        return next(turn.text for turn in reversed(self.turns) if turn.role == "user")

    @property
    def answer(self) -> tuple[str | Group, ...]:
        """The last answer: text pieces and groups."""
        return tuple(piece for piece in self.turns[-1].content if isinstance(piece, str | Group))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of all answers, in order."""
        return tuple(piece for turn in self.turns for piece in turn.content if isinstance(piece, Group))


@dataclass(frozen=True)
class TaskOptions:
    """What is drawn when a row is rendered.

    Attributes:
        vrt_rule: how VRTs are picked from an object's foreground patches (``padt.data.vrt``).
        num_vrts: VRTs per object (N_vrt of the paper); ignored by rule ``all``.
        max_names: longest class list of a detection prompt.
        drop_names: probability with which half of the absent class names are left out (released preparation: 0.5).
        partial_lists: probability with which a detection prompt asks for some of its classes only, one as likely as
            all, whether they are in the image or not; objects of the others are left out of the answer (released: 0).
        max_per_class: classes with more objects in the image are left out of prompt and answer (released: 50).
        skip_crowd: leave crowd regions out of answers (the released preparation keeps them).
        class_names: names that a detection prompt may ask for; the categories of the data set.
        places: what stands for an object in an answer: its ``vrts``, or ``text``, its box in numbers
            (``padt.data.text_boxes``), which trains the language model alone, as plain Qwen2.5-VL is tuned.
    """

    vrt_rule: VRTRule = "random"
    num_vrts: int = 5
    max_names: int = 100
    drop_names: float = 0.5
    partial_lists: float = 0.0
    max_per_class: int = 50
    skip_crowd: bool = False
    class_names: tuple[str, ...] = ()
    places: Literal["vrts", "text"] = "vrts"

    def __post_init__(self) -> None:
        for name, least in (("num_vrts", 1), ("max_names", 1), ("max_per_class", 0)):
            check_range(f"task.{name}", getattr(self, name), least)
        for name in ("drop_names", "partial_lists"):
            check_range(f"task.{name}", getattr(self, name), 0, 1)


def detect_prompt(names: Sequence[str]) -> str:
    """Prompt that asks for every object of the named classes.

    Raises:
        UserError: the list is empty, or a name is blank.
    """
    if not names or any(not name.strip() for name in names):
        raise UserError(f"The class list {list(names)!r} is empty or has a blank name: name at least one class.")
    listed = json.dumps(list(names), ensure_ascii=False)
    return f"Please carefully check the image and detect the following objects: {listed}."


def detect_answer(found: Sequence[tuple[str, Sequence[Place]]]) -> tuple[str | Place, ...]:
    """Answer to a class list: each class that is there with the places of its objects (at least one)."""
    if not found:
        return (NO_OBJECTS,)
    # The released preparation words one class differently from several.
    single = len(found) == 1
    if single:
        pieces: list[str | Place] = ["There is " if len(found[0][1]) == 1 else "There are "]
    else:
        pieces = ["In this image, there are "]
    for position, (name, places) in enumerate(found):
        pieces.append(f'{", " if position else ""}{len(places)} "{name}" (')
        pieces += _listed(places)
        pieces.append(")")
    pieces.append(" in this image." if single else ".")
    return merge_text(pieces)


def refer_prompt(sentence: str) -> str:
    """Prompt that asks for the object which a sentence describes.

    Raises:
        UserError: the sentence is blank.
    """
    if not sentence.strip():
        raise UserError("The sentence to refer to is blank: describe one object, for example 'the red car'.")
    return f'Please carefully check the image and detect the object this sentence describes: "{sentence}".'


def refer_answer(sentence: str, places: Sequence[Place]) -> tuple[str | Place, ...]:
    """Answer to a sentence: the places of what it describes, if anything."""
    if not places:
        return (NO_OBJECTS,)
    return merge_text([f'The "{sentence}" refers to ', *_listed(places), " in this image."])


def caption_prompt(_: Any = None) -> str:
    """Prompt that asks for a description of the image."""
    return CAPTION_PROMPT


def free_prompt(words: str) -> str:
    """Any words as a prompt.

    Raises:
        UserError: they are blank.
    """
    if not words.strip():
        raise UserError("The prompt is blank: say what you want to know.")
    return words


def _listed(places: Sequence[Place]) -> list[str | Place]:
    return [piece for number, place in enumerate(places) for piece in ((", ", place) if number else (place,))]


def render(row: Mapping[str, Any], task: str, item: int, rng: np.random.Generator, options: TaskOptions) -> Sample:
    """Turn one row into one training sample.

    Args:
        row: a row of a shard (schema version 1).
        task: one of ``TASKS``.
        item: which entry of the task's column of the row; ignored by tasks without one.
        rng: source of every draw (class list, order, VRTs); seed it from ``(seed, epoch, sample)`` alone.
        options: the draws' limits.

    Raises:
        UserError: the task is unknown, or the row has no such item or no class list for it.
    """
    return look_up("Task", task, TASKS).build(row, item, rng, options)


def asked(prompt: str) -> tuple[str, Any] | None:
    """What a prompt in our words asks: task and its words (class names, a sentence, None); None if it is another."""
    if found := _CLASSES.search(prompt):
        try:
            names = json.loads(found.group(1))
        except json.JSONDecodeError:
            names = []
        return "detect", tuple(name for name in names if isinstance(name, str))
    if found := _SENTENCE.search(prompt):
        return "refer", found.group(1)
    return ("caption", None) if _DESCRIBE.search(prompt) else None


def _sample(row: Mapping[str, Any], task: str, prompt: str, answer: Sequence[str | Group]) -> Sample:
    return Sample.single(row["key"], task, _source(row["image"]), prompt, answer)


def _source(image: Mapping[str, Any]) -> Any:
    return image["bytes"] if image.get("bytes") is not None else image["path"]


def _chat(row, item, rng, options) -> Sample:
    if not row.get("messages"):
        raise UserError(f"Row {row['key']} holds no conversation: remove task 'chat' from its set's tasks.")
    stored = [row["image"], *(row.get("more_images") or ())] if row["image"] is not None else []
    images = tuple(_source(image) for image in stored)
    return Sample(row["key"], "chat", images, read_messages(row["messages"], len(images)))


def object_target(row: Mapping[str, Any], index: int, label: str | None = None) -> ObjectTarget:
    """Object ``index`` of a row as a target; ``label`` replaces its class name (a sentence, for ``refer``)."""
    item = row["objects"][index]
    count = row["grid_h"] * row["grid_w"]
    patches = tuple(int(patch) for patch in np.flatnonzero(unpack_patches(item["patches"], count)))
    box = item["box"]
    return ObjectTarget(
        label=item["label"] if label is None else label,
        box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
        patches=patches,
        rle=dict(item["rle"]) if item.get("rle") is not None else None,
    )


def _placed(
    target: ObjectTarget, rng: np.random.Generator, options: TaskOptions, row: Mapping[str, Any]
) -> str | Group:
    """What stands for an object in an answer."""
    if options.places == "text":
        sides = (row["grid_w"] * PATCH, row["grid_h"] * PATCH) * 2
        return text_box([edge * side for edge, side in zip(target.box, sides, strict=True)])
    vrts = choose_vrts(np.asarray(target.patches), row["grid_w"], options.vrt_rule, options.num_vrts, rng)
    return Group(target=target, vrts=vrts)


def _detect(row, item, rng, options) -> Sample:
    names = options.class_names
    if not names:
        raise UserError("Task 'detect' needs the class names of its data set: the manifest's categories are empty.")
    by_name: dict[str, list[ObjectTarget]] = {}
    for index, entry in enumerate(row["objects"]):
        if entry["iscrowd"] and options.skip_crowd:
            continue
        target = object_target(row, index)
        if target.patches:
            by_name.setdefault(target.label, []).append(target)
    crowded = {name for name, targets in by_name.items() if len(targets) > options.max_per_class}
    present = [name for name in by_name if name not in crowded]
    # A class whose only objects are crowds or too small for a patch is neither answered nor called absent.
    seen = {entry["label"] for entry in row["objects"]}
    absent = [name for name in names if name not in seen]
    if absent and rng.random() < options.drop_names:
        absent = [absent[i] for i in rng.permutation(len(absent))[: len(absent) // 2]]
    absent = absent[: max(0, options.max_names - len(present))]
    listed = present + absent
    if not listed:
        listed = [names[0]]
    listed = [listed[i] for i in rng.permutation(len(listed))]
    # Nothing is drawn where the share is 0: the draws that follow stay those of the released recipe.
    if options.partial_lists and rng.random() < options.partial_lists:
        listed = listed[: int(rng.integers(1, len(listed) + 1))]
    answered = [
        (name, [_placed(target, rng, options, row) for target in by_name[name]])
        for name in listed
        if name in by_name and name not in crowded
    ]
    return _sample(row, "detect", detect_prompt(listed), detect_answer(answered))


def _refer(row, item, rng, options) -> Sample:
    reference = _item(row, "references", item)
    sentence = reference["text"]
    targets = [object_target(row, index, label=sentence) for index in reference["objects"]]
    places = [_placed(target, rng, options, row) for target in targets if target.patches]
    return _sample(row, "refer", refer_prompt(sentence), refer_answer(sentence, places))


def _caption(row, item, rng, options) -> Sample:
    caption = _item(row, "captions", item)
    targets = [object_target(row, index) for index in caption["objects"]]
    pieces: list[str | Group] = []
    for position, part in enumerate(_PLACEHOLDER.split(_without_lost(caption["text"], targets))):
        pieces.append(part if position % 2 == 0 else _placed(targets[int(part)], rng, options, row))
    return _sample(row, "caption", CAPTION_PROMPT, merge_text(pieces))


def _without_lost(text: str, targets: Sequence[ObjectTarget]) -> str:
    """A caption without the placeholders of objects that no VRT can stand for, and without the brackets they leave."""

    def kept(places: str) -> list[str]:
        return [f"<|Obj_{place}|>" for place in _PLACEHOLDER.findall(places) if targets[int(place)].patches]

    def bracket(match: re.Match) -> str:
        places = kept(match[2])
        return f"{match[1]}({', '.join(places)})" if places else ""

    text = _BRACKET.sub(bracket, text)
    return _PLACEHOLDER.sub(lambda match: "".join(kept(match[0])), text)


def _item(row, column, item):
    if not 0 <= item < len(row[column]):
        raise UserError(f"Row {row['key']} has {len(row[column])} {column}, so there is no item {item}.")
    return row[column][item]


def merge_text(pieces: Sequence[str | Place]) -> tuple[str | Place, ...]:
    """Join neighbouring text pieces and drop empty ones, so that tokens are those of the whole text."""
    merged: list[str | Place] = []
    for piece in pieces:
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        elif piece != "":
            merged.append(piece)
    return tuple(merged)


@dataclass(frozen=True)
class Task:
    """One row.

    Attributes:
        prompt: words of the question, from what a request names.
        build: a training sample from a row of a shard: ``(row, item, rng, options)``.
        needs: what a data set must hold for it, in words.
        words: what a request names: ``names`` of classes, a ``sentence``, a free ``prompt``; None for nothing.
        column: column of a row that holds its items; None: a row is one item.
        answer: words of the answer, from the item's text and the places of its objects; None where the item's text
            is the answer, or is no single text.
        grounded: whether it needs a picture, and its answers point at objects.
    """

    prompt: Callable[[Any], str]
    build: Callable[[Mapping[str, Any], int, np.random.Generator, TaskOptions], Sample]
    needs: str
    words: str | None = None
    column: str | None = None
    answer: Callable[[str, Sequence[Any]], tuple[Any, ...]] | None = None
    grounded: bool = True


TASKS = {
    "detect": Task(detect_prompt, _detect, "images", "names"),
    "refer": Task(refer_prompt, _refer, "referring sentences", "sentence", "references", refer_answer),
    "caption": Task(caption_prompt, _caption, "captions", column="captions"),
    "chat": Task(free_prompt, _chat, "conversations", "prompt", grounded=False),
}
"""All tasks by name. Their order numbers them in plans of training."""

TASK_NAMES = tuple(TASKS)
GROUNDED_TASKS = tuple(name for name, task in TASKS.items() if task.grounded)
