"""What the toy base model learns from: conversations about a scene, and what each patch of the picture shows."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from padt.data.collate import EncodedSample
from padt.data.conversation import Group, ObjectTarget, Turn, question
from padt.data.patches import coverage_of_rle, foreground
from padt.data.processor import PaDTProcessor
from padt.data.rle import encode
from padt.data.tasks import Sample, refer_answer, refer_prompt
from padt.data.vrt import VRTRule, choose_vrts
from pipelines.toy.language import choose_expressions, plain_turns
from pipelines.toy.scenes import COLOURS, KINDS, SIZES, Scene, Shape

PATCH_ATTRIBUTES = {"kind": KINDS, "colour": tuple(COLOURS), "size": tuple(SIZES)}
"""What is said of a patch, and the words for it."""

_PATCH = 28
_QUALITY = 92


@dataclass(frozen=True)
class PatchLabels:
    """What each 28-pixel patch of a picture shows, row by row: the shape that covers most of it.

    Attributes:
        attributes: ``(patches, 3)`` int64, for each of ``PATCH_ATTRIBUTES`` the number of the word; one past the last
            word where no shape covers enough of the patch to be foreground.
        boxes: ``(patches, 4)`` float32 xyxy normalised, of that shape; zeros where there is none.
    """

    attributes: np.ndarray
    boxes: np.ndarray


def conversation(
    processor: PaDTProcessor, scene: Scene, rng: np.random.Generator, pointing: int, talking: int, vrt_rule: VRTRule
) -> EncodedSample:
    """Several turns about one picture; every answer is supervised.

    Args:
        processor: of the model.
        scene: what is talked about.
        rng: source of the choice of turns and VRTs.
        pointing: most turns that ask for the place of one thing.
        talking: most turns with plain questions and answers.
        vrt_rule: how up to five VRTs of each object are picked, see ``padt.data.vrt``.
    """
    asked: list[tuple[str, str, Shape | None]] = []
    asked += [(words, answer, None) for words, answer in plain_turns(scene, rng)[:talking]]
    expressions = choose_expressions(scene, rng)
    for index in rng.permutation(len(expressions))[:pointing]:
        expression = expressions[index]
        asked.append((refer_prompt(expression.text), expression.text, scene.shapes[expression.shape]))
    turns: list[Turn] = []
    for number, place in enumerate(rng.permutation(len(asked))):
        words, said, shape = asked[place]
        content = (said,) if shape is None else refer_answer(said, [_group(scene, shape, rng, vrt_rule)])
        turns += [question(words, 1 if number == 0 else 0), Turn("assistant", content)]
    return processor.encode(Sample("base", "refer", (_as_photograph(scene.image),), tuple(turns)))


def patch_labels(scene: Scene) -> PatchLabels:
    """What the patches of a scene show."""
    covers = np.stack([coverage_of_rle(encode(shape.mask), *_grid(scene)).ravel() for shape in scene.shapes])
    most = covers.argmax(0)
    seen = foreground(covers.max(0))
    words = [[names.index(getattr(shape, name)) for name, names in PATCH_ATTRIBUTES.items()] for shape in scene.shapes]
    nothing = [len(names) for names in PATCH_ATTRIBUTES.values()]
    boxes = np.array([_normalised(scene, shape) for shape in scene.shapes], np.float32)
    return PatchLabels(
        np.where(seen[:, None], np.array(words, np.int64)[most], nothing), np.where(seen[:, None], boxes[most], 0)
    )


def _group(scene: Scene, shape: Shape, rng: np.random.Generator, vrt_rule: VRTRule) -> Group:
    rle = encode(shape.mask)
    patches = np.flatnonzero(foreground(coverage_of_rle(rle, *_grid(scene))))
    target = ObjectTarget(shape.kind, _normalised(scene, shape), tuple(patches.tolist()), rle)
    return Group(target, choose_vrts(patches, scene.width // _PATCH, vrt_rule, 5, rng))


def _grid(scene: Scene) -> tuple[int, int]:
    return scene.height // _PATCH, scene.width // _PATCH


def _normalised(scene: Scene, shape: Shape) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = shape.box
    return x0 / scene.width, y0 / scene.height, x1 / scene.width, y1 / scene.height


def _as_photograph(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()
