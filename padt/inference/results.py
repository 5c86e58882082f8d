"""What a prediction gives: text, and objects in pixels of the original pictures."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from padt.data.conversation import Said, Turn
from padt.data.rle import decode
from padt.errors import UserError, install_command, suggestion
from padt.metrics.detect import coco_entry, fold

if TYPE_CHECKING:
    from supervision import Detections


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
        # By hand: `asdict` copies number by number, which costs as much as writing the tokens of a short answer.
        return {**vars(self), "mask": None if self.mask is None else dict(self.mask)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PredictedObject":
        """The object that ``to_dict`` gave these values of, before JSON or after it; unknown keys are passed over."""
        x0, y0, x1, y1 = (float(edge) for edge in values["box"])
        start, end = values["span"]
        return cls(
            label=str(values["label"]),
            score=float(values["score"]),
            box=(x0, y0, x1, y1),
            mask=dict(values["mask"]) if values["mask"] is not None else None,
            patches=tuple(int(patch) for patch in values["patches"]),
            span=(int(start), int(end)),
            confidence=float(values["confidence"]),
            complete=bool(values["complete"]),
            image=int(values.get("image", 0)),
        )


@dataclass(frozen=True)
class Prediction:
    """An answer.

    Attributes:
        text: the answer with VRTs written ``<|VRT_k|>``; ``k`` runs on over the images of the request.
        objects: in order of writing.
        images: the pictures of the request; empty for a text-only turn.
        token_ids: the answer's ids.
        truncated: the answer ended at ``max_new_tokens``.
        warnings: what was dropped or split.
        not_finite: objects that were left out because their box, score or mask is not finite (inf or NaN).
    """

    text: str
    objects: tuple[PredictedObject, ...]
    images: tuple[Frame, ...]
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    truncated: bool = False
    warnings: tuple[str, ...] = ()
    not_finite: int = 0

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
        wanted = {fold(name) for name in names}
        others = Counter(found.label for found in self.objects if fold(found.label) not in wanted)
        if not others:
            return self
        named = ", ".join(f"{count} {label!r}" for label, count in others.items())
        kept = tuple(found for found in self.objects if found.label not in others)
        return replace(self, objects=kept, warnings=(*self.warnings, f"not asked for and left out: {named}"))

    def above(self, threshold: float) -> "Prediction":
        """The answer without objects whose score is not above a threshold; a warning counts them."""
        kept = tuple(found for found in self.objects if found.score > threshold)
        left_out = len(self.objects) - len(kept)
        if not left_out:
            return self
        warning = f"left out for a score of at most {threshold:.3f}: {left_out}"
        return replace(self, objects=kept, warnings=(*self.warnings, warning))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, ``width``, ``height`` and ``grid`` among them; token ids are left out."""
        values = {name: value for name, value in vars(self).items() if name != "token_ids"}
        values |= {
            "objects": tuple(found.to_dict() for found in self.objects),
            "images": tuple(dict(vars(frame)) for frame in self.images),
        }
        return {**values, "width": self.width, "height": self.height, "grid": self.grid}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Prediction":
        """The prediction that ``to_dict`` gave these values of, before JSON or after it, without its token ids.

        Raises:
            UserError: a field is missing or of the wrong kind.
        """
        try:
            return cls(
                text=str(values["text"]),
                objects=tuple(PredictedObject.from_dict(found) for found in values["objects"]),
                images=tuple(
                    Frame(int(frame["width"]), int(frame["height"]), (int(frame["grid"][0]), int(frame["grid"][1])))
                    for frame in values["images"]
                ),
                truncated=bool(values["truncated"]),
                warnings=tuple(str(warning) for warning in values["warnings"]),
                not_finite=int(values.get("not_finite", 0)),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"These values are no prediction ({error!r}): give what Prediction.to_dict() returns."
            ) from error

    def to_coco(self, image_id: int | Sequence[int], category_ids: Mapping[str, int]) -> list[dict[str, Any]]:
        """The objects as records of a COCO results file, which pycocotools' ``COCO.loadRes`` reads.

        Args:
            image_id: number of the picture in the data set; of several pictures one number each.
            category_ids: number of each class, by its name as answers give it; letter case and spaces do not count.

        Returns:
            ``{image_id, category_id, bbox (x, y, width, height in pixels of the upright original), score}`` for each
            object, and ``segmentation`` (run lengths) where it has a mask; in order of writing.

        Raises:
            UserError: an object's label is the name of no class, or pictures and numbers differ in number.
        """
        numbers = [image_id] if isinstance(image_id, int) else list(image_id)
        if len(numbers) != len(self.images):
            raise UserError(f"image_id has {len(numbers)} for {len(self.images)} pictures: give one for each.")
        known = {fold(name): number for name, number in category_ids.items()}
        missing = sorted({found.label for found in self.objects if fold(found.label) not in known})
        if missing:
            raise UserError(
                f"category_ids has no class {missing[0]!r}: {suggestion(missing[0], category_ids)} Add it, or leave "
                "such objects out first with Prediction.of_classes(category_ids)."
            )
        return [coco_entry(numbers[found.image], known[fold(found.label)], found) for found in self.objects]

    def to_supervision(self, image: int = 0) -> "Detections":
        """The objects of one picture as ``supervision.Detections``, for that library's annotators and trackers.

        Args:
            image: which picture of the request.

        Returns:
            Detections with boxes ``(n, 4)`` in pixels of the upright original, masks ``(n, height, width)`` where every
            object has one, scores, classes numbered by the order in which their labels first come, and the labels as
            ``data["class_name"]``.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise UserError(
                f"to_supervision needs the package supervision: install it with `{install_command('supervision')}`."
            ) from error
        found = [each for each in self.objects if each.image == image]
        if not found:
            return Detections.empty()
        labels = [each.label for each in found]
        order = list(dict.fromkeys(labels))
        masks = [decode(each.mask) for each in found if each.mask is not None]
        return Detections(
            xyxy=np.array([each.box for each in found], np.float32),
            mask=np.stack(masks) if len(masks) == len(found) else None,
            confidence=np.array([each.score for each in found], np.float32),
            class_id=np.array([order.index(label) for label in labels]),
            data={"class_name": np.array(labels)},
        )
