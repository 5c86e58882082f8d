"""``padt predict``: ask a model about pictures; get JSON and pictures with boxes, masks, VRTs and scores.

Works with the plain model library: no Ray, no pycocotools, no MLflow (except for ``models:/`` references).
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.model_reference import fetched, find_model
from padt.data.image import check_shape, open_image
from padt.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from padt.inference.refine import Refinement
    from padt.inference.requests import GenerationSettings, Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PicturePrediction:
    """The answer about one picture.

    Attributes:
        image: path as the user gave it.
        record: what the JSON file holds: ``image`` (the paths of all, where they were asked about together), ``model``,
            ``task``, ``prompt``, ``refine`` where masks were refined, and the fields of the prediction.
        drawn: the picture with everything that was found.
        json_path, picture_path: files, or None where no folder was given.
        number: of the picture in its request.
    """

    image: str
    record: dict[str, Any]
    drawn: "Image.Image"
    json_path: Path | None = None
    picture_path: Path | None = None
    number: int = 0

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What was found in this picture."""
        return [found for found in self.record["objects"] if found["image"] == self.number]


def make_request(
    detect: str | Sequence[str] | None = None,
    refer: str | None = None,
    caption: bool = False,
    ask: str | None = None,
) -> "Request":
    """The one request that the options of the command line ask for.

    Args:
        detect: class names, as a list or separated by commas.
        refer: a sentence that describes one object.
        caption: describe the picture.
        ask: any other words.

    Raises:
        UserError: none or several of them are given, or the words are blank.
    """
    given = [name for name, value in (("--detect", detect), ("--refer", refer), ("--ask", ask)) if value is not None]
    given += ["--caption"] if caption else []
    if len(given) != 1:
        raise UserError(
            f'Ask for one thing at a time ({", ".join(given) or "nothing is given"}): --detect "cat,dog", --refer '
            '"the red car", --caption or --ask "...".'
        )
    from padt.inference.requests import caption_request, detect_request, refer_request, text_request

    if detect is not None:
        names = detect.split(",") if isinstance(detect, str) else list(detect)
        return detect_request([name.strip() for name in names])
    if refer is not None:
        return refer_request(refer)
    return caption_request() if ask is None else text_request(ask)


def run_predict(
    model: str | os.PathLike,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    request: "Request",
    out_dir: str | os.PathLike | None = None,
    *,
    settings: "GenerationSettings | None" = None,
    batch_size: int = 8,
    together: bool = False,
    load_options: Mapping[str, Any] | None = None,
    false_alarms: float | None = None,
    refine: "Refinement | None" = None,
    on_result: Callable[[PicturePrediction], None] | None = None,
) -> list[PicturePrediction]:
    """Ask the same question about each of some pictures, or one question about all of them together.

    Args:
        model: model folder, ``models:/padt@champion`` or ``models:/padt/3``.
        images: paths.
        request: see :func:`make_request`.
        out_dir: folder for ``NAME.json`` and ``NAME.png`` of each picture; None = write nothing.
        settings: how to generate; default: greedy, with masks.
        batch_size: requests answered at the same time.
        together: the pictures belong to one request; there is one answer, and one JSON file, about all of them.
        load_options: further arguments of ``padt.load_model``, such as ``device``.
        false_alarms: leave out objects by the model's thresholds (``padt.inference.thresholds``): at most this share of
            questions for something absent (``refer``), or of pictures (other tasks), gets a wrong object.
        refine: let SAM 2 refine the masks; None = the model's own.
        on_result: called with each result when it is there, in the order of the pictures.

    Raises:
        UserError: a picture or the model cannot be used, the request is blank, or the model has no such threshold.
    """
    paths = [str(image) for image in ([images] if isinstance(images, str | os.PathLike) else images)]
    if not paths:
        raise UserError("There is no picture to ask about: give at least one path.")
    out = out_folder(out_dir) if out_dir is not None else None
    pictures = [open_picture(path) for path in paths]
    found = find_model(model)
    # What the user can have got wrong is known by now: these take seconds to import.
    from padt.checkpoints.loading import load_model
    from padt.inference.answers import answers
    from padt.inference.requests import class_names
    from padt.pretrained.config import load_config

    threshold = None
    if false_alarms is not None:
        from padt.inference.thresholds import threshold_of

        known = load_config(found.path)[0].score_thresholds
        threshold = threshold_of(known, "absent" if request.task == "refer" else "wrong", false_alarms)
    refiner = None
    if refine is not None:
        from padt.inference.refine import load_refiner

        refiner = load_refiner(replace(refine, model=fetched(refine.model)), device=(load_options or {}).get("device"))
    loaded = load_model(found.path, **(load_options or {}))
    results: list[PicturePrediction] = []
    names = _names(paths)
    # The pictures of each request, by number.
    groups = [list(range(len(paths)))] if together else [[number] for number in range(len(paths))]
    asked = [[pictures[number] for number in group] for group in groups]
    predictions = answers(loaded, asked, [request] * len(groups), settings, batch_size)
    for group, prediction in zip(groups, predictions, strict=True):
        prediction = prediction.of_classes(class_names(request))
        if threshold is not None:
            prediction = prediction.above(threshold)
        if refiner is not None:
            (prediction,) = refiner.refine([pictures[number] for number in group], [prediction])
        record = {
            "image": paths[group[0]] if len(group) == 1 else [paths[number] for number in group],
            "model": str(model),
            **({"model_version": found.version} if found.version else {}),
            "task": request.task,
            "prompt": request.prompt,
            **({"refine": refine.to_dict()} if refine is not None else {}),
            **prediction.to_dict(),
        }
        json_path = _write_record(out, names[group[0]], record)
        for image, number in enumerate(group):
            drawn = _draw(pictures[number], record, image)
            path = out / f"{names[number]}.png" if out is not None else None
            if path is not None:
                save_picture(drawn, path)
            results.append(PicturePrediction(paths[number], record, drawn, json_path, path, image))
            if on_result is not None:
                on_result(results[-1])
    return results


def open_picture(path: str) -> "Image.Image":
    """A local picture, upright and RGB.

    Raises:
        ImageError: it cannot be used; the message names it.
    """
    picture = open_image(Path(path).expanduser() if "://" not in path else path)
    check_shape(picture.height, picture.width, path)
    return picture


def out_folder(path: str | os.PathLike) -> Path:
    """The folder that results go to; made when the first one comes.

    Raises:
        UserError: it is a file.
    """
    out = Path(path).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder as --out.")
    return out


def save_picture(picture: "Image.Image", path: Path) -> None:
    """Write a PNG file whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    picture.save(partial, "PNG")
    partial.replace(path)


def save_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _draw(picture: "Image.Image", record: Mapping[str, Any], image: int) -> "Image.Image":
    from jobs.inference.drawing import found_objects, readable
    from padt.drawing.objects import draw_objects

    grid = tuple(record["images"][image]["grid"])
    return draw_objects(picture, found_objects(record, image), grid=grid, caption=readable(record["text"]))


def _names(paths: Sequence[str]) -> list[str]:
    """File names without ending, one for each picture: equal ones are numbered."""
    names: list[str] = []
    for path in paths:
        stem = Path(path).stem or "picture"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def _write_record(out: Path | None, name: str, record: dict[str, Any]) -> Path | None:
    if out is None:
        return None
    out.mkdir(parents=True, exist_ok=True)
    save_record(record, out / f"{name}.json")
    return out / f"{name}.json"
