"""Scenes of the built-in data set: coloured shapes on grey textured backgrounds, drawn from a random generator.

Everything is drawn by numpy from signed distances, so that a scene is the same picture on every machine and costs
about a millisecond. Coordinates are pixels, x to the right and y down; pixel ``i`` covers ``[i, i + 1)``.
"""

import math
from dataclasses import dataclass

import numpy as np

from padt.errors import UserError, look_up

KINDS = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (222, 32, 36),
    "green": (30, 150, 44),
    "blue": (34, 64, 222),
    "yellow": (242, 222, 30),
    "pink": (250, 96, 200),
    "cyan": (40, 216, 226),
}
SIZES = {"small": (17.0, 20.0), "large": (26.0, 30.0)}
# What detection may ask for.
CLASS_NAMES = {"colour": tuple(f"{colour} shape" for colour in COLOURS), "kind": KINDS}
CATEGORY_NAMES = CLASS_NAMES["kind"]
SCENE_SIZES = ((112, 112), (112, 140), (140, 112))

_PATCH = 28
_PLACE_TRIES = 60
# Pixels between two shapes of one colour: closer, they would look like one.
_GAP = 4
_SCENE_TRIES = 20


@dataclass(frozen=True)
class SceneOptions:
    """What a scene may look like.

    Shapes overlap a little at most; those of one colour keep apart. At most two shapes of a scene share a colour.

    Attributes:
        sizes: ``(height, width)`` of the images in pixels, multiples of 28; one is drawn for each scene.
        min_shapes: fewest shapes of a scene.
        max_shapes: most shapes of a scene.
        min_inside: share of a shape that lies inside the image at least.
        min_visible: share of a shape (its part inside the image) that no other shape covers at least; two shapes
            overlap by at most the rest of the smaller one.
        max_tilt: largest rotation of a shape to either side, in degrees.
        shared_colour: share of the scenes with several shapes in which two of them have one colour, so that its name
            does not tell them apart.
        large: radii of large shapes in pixels, smallest and largest.
        classes: what the class of a shape goes by, a key of ``CLASS_NAMES``.
    """

    sizes: tuple[tuple[int, int], ...] = SCENE_SIZES
    min_shapes: int = 1
    max_shapes: int = 3
    min_inside: float = 0.75
    min_visible: float = 0.75
    max_tilt: float = 8.0
    shared_colour: float = 0.5
    large: tuple[float, float] = SIZES["large"]
    classes: str = "kind"

    def __post_init__(self) -> None:
        if not self.sizes or any(side < 4 * _PATCH or side % _PATCH for size in self.sizes for side in size):
            raise UserError(
                f"sizes {self.sizes} are not usable: each side must be a multiple of {_PATCH}, at least {4 * _PATCH}."
            )
        if not 1 <= self.min_shapes <= self.max_shapes <= 4:
            raise UserError(
                f"min_shapes {self.min_shapes} and max_shapes {self.max_shapes} are not usable: "
                "give 1 <= min_shapes <= max_shapes <= 4."
            )
        if not (0.5 <= self.min_inside < 1 and 0.5 <= self.min_visible < 1):
            raise UserError(
                f"min_inside {self.min_inside} and min_visible {self.min_visible} are not usable: "
                "give shares of at least 0.5 and below 1."
            )
        if not 0 <= self.shared_colour <= 1:
            raise UserError(f"shared_colour {self.shared_colour} is not usable: give a share between 0 and 1.")
        look_up("classes", self.classes, CLASS_NAMES)


@dataclass(frozen=True, eq=False)
class Shape:
    """One visible shape of a scene.

    Attributes:
        kind: one of ``KINDS``.
        colour: a key of ``COLOURS``.
        size: a key of ``SIZES``.
        mask: visible part, bool ``(height, width)``.
        box: ``(x0, y0, x1, y1)`` in pixels around the visible part; x1 and y1 are exclusive.
        area: pixels of the visible part.
        category: its class name, one of ``CLASS_NAMES``.
    """

    kind: str
    colour: str
    size: str
    mask: np.ndarray
    box: tuple[int, int, int, int]
    area: int
    category: str

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, ``(x, y)`` in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, uint8 RGB ``(height, width, 3)``, and its shapes from the backmost to the foremost."""

    image: np.ndarray
    shapes: tuple[Shape, ...]

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.image.shape[0]

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.image.shape[1]


def draw_scene(rng: np.random.Generator, options: SceneOptions | None = None) -> Scene:
    """Draw one scene; every choice comes from ``rng``."""
    options = options or SceneOptions()
    height, width = options.sizes[rng.integers(len(options.sizes))]
    count = int(rng.integers(options.min_shapes, options.max_shapes + 1))
    image = _background(rng, height, width)
    for _ in range(_SCENE_TRIES):
        placed = _place(rng, height, width, count, options)
        if placed is not None:
            break
    else:
        # So many large shapes do not fit: the scene gets fewer of them.
        while placed is None:
            count -= 1
            placed = _place(rng, height, width, count, options)
    for plan in placed:
        _paint(rng, image, plan)
    shapes = tuple(
        _finish(plan, visible, options.classes)
        for plan, visible in zip(placed, _visible([p.mask for p in placed]), strict=True)
    )
    return Scene(image=np.clip(image + 0.5, 0, 255).astype(np.uint8), shapes=shapes)


def scene_rng(seed: int, split: int, number: int) -> np.random.Generator:
    """Generator of scene ``number`` of split number ``split``: scenes are independent, and any can be drawn alone."""
    return np.random.default_rng(np.random.SeedSequence([seed, split, number]))


@dataclass(frozen=True, eq=False)
class _Plan:
    """A shape on its way into the picture: ``alpha`` is its coverage per pixel, ``(height, width)`` in [0, 1]."""

    kind: str
    colour: str
    size: str
    alpha: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return self.alpha >= 0.5


def _place(rng, height, width, count, options) -> list[_Plan] | None:
    placed: list[_Plan] = []
    colours = [tuple(COLOURS)[number] for number in rng.permutation(len(COLOURS))[:count]]
    # Nothing is drawn where the share is 0, so that such scenes stay what they were.
    if count > 1 and options.shared_colour and rng.random() < options.shared_colour:
        colours[1] = colours[0]
    radii = {**SIZES, "large": options.large}
    for colour in colours:
        kind = KINDS[rng.integers(len(KINDS))]
        size = ("small", "large")[rng.integers(2)]
        radius = rng.uniform(*radii[size])
        tilt = math.radians(rng.uniform(-options.max_tilt, options.max_tilt))
        for _ in range(_PLACE_TRIES):
            centre = rng.uniform(0.7 * radius, width - 0.7 * radius), rng.uniform(0.7 * radius, height - 0.7 * radius)
            alpha, inside = _coverage(kind, radius, tilt, centre, height, width)
            plan = _Plan(kind, colour, size, alpha)
            if inside >= options.min_inside and _fits(plan, placed, options):
                placed.append(plan)
                break
        else:
            return None
    return placed


def _fits(plan: _Plan, placed: list[_Plan], options: SceneOptions) -> bool:
    mask = plan.mask
    masks = [other.mask for other in placed]
    room = 1 - options.min_visible
    if any((other & mask).sum() > room * min(other.sum(), mask.sum()) for other in masks):
        return False
    if any(_touch(other.mask, mask) for other in placed if other.colour == plan.colour):
        return False
    visible = _visible([*masks, mask])
    return all(
        seen.sum() >= options.min_visible * whole.sum() for seen, whole in zip(visible, [*masks, mask], strict=True)
    )


def _touch(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two masks overlap, or would if one of them were moved by ``_GAP`` pixels along an axis."""
    moved = [
        (first[_GAP:], second[:-_GAP]),
        (first[:-_GAP], second[_GAP:]),
        (first[:, _GAP:], second[:, :-_GAP]),
        (first[:, :-_GAP], second[:, _GAP:]),
    ]
    return bool((first & second).any() or any((a & b).any() for a, b in moved))


def _visible(masks: list[np.ndarray]) -> list[np.ndarray]:
    """Parts that no later mask covers."""
    covered = np.zeros_like(masks[0])
    result = []
    for mask in reversed(masks):
        result.append(mask & ~covered)
        covered = covered | mask
    return result[::-1]


def _coverage(kind, radius, tilt, centre, height, width) -> tuple[np.ndarray, float]:
    """Coverage per pixel ``(height, width)``, and the share of the shape's area inside the image."""
    reach = math.ceil(1.5 * radius)
    left, top = round(centre[0]) - reach, round(centre[1]) - reach
    x = np.arange(left, left + 2 * reach) + 0.5 - centre[0]
    y = (np.arange(top, top + 2 * reach) + 0.5 - centre[1])[:, None]
    cos, sin = math.cos(tilt), math.sin(tilt)
    crop = np.clip(0.5 - _distance(kind, cos * x + sin * y, cos * y - sin * x, radius), 0, 1)
    y0, y1, x0, x1 = max(0, top), min(height, top + 2 * reach), max(0, left), min(width, left + 2 * reach)
    alpha = np.zeros((height, width), np.float32)
    alpha[y0:y1, x0:x1] = crop[y0 - top : y1 - top, x0 - left : x1 - left]
    return alpha, float(alpha.sum() / crop.sum())


def _distance(kind: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to the outline in pixels, negative inside, for a shape around the origin."""
    if kind == "circle":
        return np.hypot(x, y) - radius
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.92 * radius
    if kind == "triangle":
        # Equilateral, one corner up; moved down by a sixth of its height so that the box is centred.
        inner = 0.64 * radius
        y = y - 0.5 * inner
        return np.maximum(math.sqrt(0.75) * np.abs(x) - 0.5 * y, y) - inner
    arm = 0.36 * radius
    return np.minimum(
        np.maximum(np.abs(x) - arm, np.abs(y) - 1.05 * radius), np.maximum(np.abs(x) - 1.05 * radius, np.abs(y) - arm)
    )


def _paint(rng, image: np.ndarray, plan: _Plan) -> None:
    x0, y0, x1, y1 = _bounds(plan.alpha > 0)
    alpha = plan.alpha[y0:y1, x0:x1, None]
    colour = np.array(COLOURS[plan.colour], np.float32) * rng.uniform(0.9, 1.04) + rng.uniform(-8, 8, 3)
    shade = rng.uniform(-10, 10) * np.linspace(-1, 1, y1 - y0, dtype=np.float32)[:, None]
    grain = rng.standard_normal((y1 - y0, x1 - x0), np.float32) * rng.uniform(0, 5)
    paint = colour.astype(np.float32) + (shade + grain).astype(np.float32)[..., None]
    image[y0:y1, x0:x1] += alpha * (paint - image[y0:y1, x0:x1])


def _finish(plan: _Plan, visible: np.ndarray, classes: str) -> Shape:
    category = plan.kind if classes == "kind" else f"{plan.colour} shape"
    return Shape(plan.kind, plan.colour, plan.size, visible, _bounds(visible), int(visible.sum()), category)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _background(rng, height: int, width: int) -> np.ndarray:
    """Grey texture, float32 ``(height, width, 3)``: brightness, contrast and a faint tint vary."""
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle = rng.uniform(0, 2 * math.pi)
    along = math.cos(angle) * x + math.sin(angle) * y
    texture = rng.integers(5)
    if texture == 0:
        field = along
    elif texture == 1:
        field = np.sin(along * rng.uniform(6, 40) + rng.uniform(0, 6))
    elif texture == 2:
        field = _blobs(rng, height, width)
    elif texture == 3:
        across = math.cos(angle) * y - math.sin(angle) * x
        frequency = rng.uniform(6, 24)
        field = np.sign(np.sin(along * frequency) * np.sin(across * frequency))
    else:
        field = np.zeros((height, width), np.float32)
    grey = rng.uniform(55, 200) + field * rng.uniform(4, 26)
    grey = grey + rng.standard_normal((height, width), np.float32) * rng.uniform(1, 12)
    tint = rng.uniform(-9, 9, 3).astype(np.float32)
    return grey.astype(np.float32)[..., None] + tint


def _blobs(rng, height: int, width: int) -> np.ndarray:
    """Smooth noise in [-1, 1]: a coarse random grid, interpolated."""
    coarse = rng.uniform(-1, 1, (int(rng.integers(3, 9)), int(rng.integers(3, 9)))).astype(np.float32)
    return _stretch(_stretch(coarse, height).T, width).T


def _stretch(values: np.ndarray, length: int) -> np.ndarray:
    """Linear interpolation of the rows of ``values`` to ``length`` rows."""
    place = np.linspace(0, len(values) - 1, length, dtype=np.float32)
    low = np.minimum(place.astype(int), len(values) - 2)
    share = (place - low)[:, None]
    return values[low] * (1 - share) + values[low + 1] * share
