"""What a prediction gives: text, and objects in pixels of the original pictures."""

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from padt.data.conversation import Said, Turn


@dataclass(frozen=True)
class Frame:
    """Size of one picture of a request.

    Attributes:
        width, height: of the upright original, in pixels.
        grid: rows and columns of its patches ``(grid_h, grid_w)``.
    """

    width: int
    height: int
    grid: tuple[int, int]

    @property
    def patches(self) -> int:
        """How many patches, and so VRTs, it has."""
        return self.grid[0] * self.grid[1]


_NO_PICTURE = Frame(0, 0, (0, 0))


@dataclass(frozen=True)
class PredictedObject:
    """One grounded thing of an answer.

    Attributes:
        label: what the answer calls it.
        score: by which objects rank, (0, 1): the decoder's estimate of the box's quality, or, where the model has a
            score calibration, how right the object will be (``padt.inference.calibration``).
        box: ``(x0, y0, x1, y1)`` in pixels of the upright original image.
        mask: COCO run-length mask of the upright original image; None if not asked for.
        patches: the VRTs, as row-major indices in the image's patch grid, in order of writing.
        span: token span in the answer, end exclusive.
        confidence: geometric mean of the probabilities of its VRTs.
        complete: False where the answer was cut off inside the group, or a part of the group was dropped.
        image: index of the image among those of the request.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any] | None
    patches: tuple[int, ...]
    span: tuple[int, int]
    confidence: float
    complete: bool
    image: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Prediction:
    """An answer.

    Attributes:
        text: the answer with VRTs written ``<|VRT_k|>``; ``k`` runs on over the images of the request.
        objects: in order of writing.
        images: the pictures of the request; empty for a text-only turn.
        token_ids: the answer's ids.
        truncated: the answer ended at ``max_new_tokens``.
        warnings: what the parser dropped or split.
    """

    text: str
    objects: tuple[PredictedObject, ...]
    images: tuple[Frame, ...]
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    truncated: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Width of the (first) upright original picture in pixels; 0 without one."""
        return self._first.width

    @property
    def height(self) -> int:
        """Height of the (first) upright original picture in pixels; 0 without one."""
        return self._first.height

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid ``(grid_h, grid_w)`` of the (first) picture; ``(0, 0)`` without one."""
        return self._first.grid

    @property
    def _first(self) -> Frame:
        return self.images[0] if self.images else _NO_PICTURE

    @property
    def turn(self) -> Turn:
        """The answer as the assistant's turn of a conversation that goes on, VRTs included."""
        return Turn("assistant", (Said(self.token_ids),))

    def of_classes(self, names: Collection[str] | None) -> "Prediction":
        """The answer without objects of classes that were not asked for; a warning counts them.

        Args:
            names: the classes of the question (``padt.inference.requests.class_names``); None leaves all as it is.
                Letter case and spaces do not count.
        """
        if names is None:
            return self
        wanted = {_plain(name) for name in names}
        others = Counter(found.label for found in self.objects if _plain(found.label) not in wanted)
        if not others:
            return self
        named = ", ".join(f"{count} {label!r}" for label, count in others.items())
        kept = tuple(found for found in self.objects if found.label not in others)
        return replace(self, objects=kept, warnings=(*self.warnings, f"not asked for and left out: {named}"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, ``width``, ``height`` and ``grid`` among them; token ids are left out."""
        values = asdict(self)
        del values["token_ids"]
        return {**values, "width": self.width, "height": self.height, "grid": self.grid}


def _plain(label: str) -> str:
    return " ".join(label.split()).casefold()
