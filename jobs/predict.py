"""``padt predict``: ask a model about pictures; get JSON and pictures with boxes, masks, VRTs and scores.

Works with the plain model library: no Ray, no pycocotools, no MLflow (except for ``models:/`` references).
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.models import find_model
from padt.errors import ImageError, UserError
from padt.image import open_image

if TYPE_CHECKING:
    from PIL import Image

    from padt.prediction import GenerationSettings, Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PicturePrediction:
    """The answer about one picture.

    Attributes:
        image: path as the user gave it.
        record: what the JSON file holds: ``image``, ``model``, ``task``, ``prompt`` and the fields of the prediction.
        drawn: the picture with everything that was found.
        json_path, picture_path: files, or None where no folder was given.
    """

    image: str
    record: dict[str, Any]
    drawn: "Image.Image"
    json_path: Path | None = None
    picture_path: Path | None = None


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
    from padt.prediction import caption_request, detect_request, refer_request, text_request

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
    load_options: Mapping[str, Any] | None = None,
) -> list[PicturePrediction]:
    """Ask the same question about one or more pictures.

    Args:
        model: model folder, ``models:/padt@champion`` or ``models:/padt/3``.
        images: paths.
        request: see :func:`make_request`.
        out_dir: folder for ``NAME.json`` and ``NAME.png`` of each picture; None = write nothing.
        settings: how to generate; default: greedy, with masks.
        batch_size: pictures answered together.
        load_options: further arguments of ``padt.load_model``, such as ``device``.

    Raises:
        UserError: a picture or the model cannot be used, or the request is blank.
    """
    from padt.loading import load_model
    from padt.prediction import GenerationSettings, predict

    paths = [str(image) for image in ([images] if isinstance(images, str | os.PathLike) else images)]
    if not paths:
        raise UserError("There is no picture to ask about: give at least one path.")
    out = Path(out_dir).expanduser() if out_dir is not None else None
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder as --out.")
    pictures = [_open(path) for path in paths]
    found = find_model(model)
    loaded = load_model(found.path, **(load_options or {}))
    settings = settings or GenerationSettings()
    results: list[PicturePrediction] = []
    names = _names(paths)
    for start in range(0, len(paths), batch_size):
        part = pictures[start : start + batch_size]
        for offset, prediction in enumerate(predict(loaded, part, [request] * len(part), settings)):
            position = start + offset
            record = {
                "image": paths[position],
                "model": str(model),
                **({"model_version": found.version} if found.version else {}),
                "task": request.task,
                "prompt": request.prompt,
                **prediction.to_dict(),
            }
            drawn = _draw(pictures[position], record)
            results.append(_write(out, names[position], paths[position], record, drawn))
    return results


def _open(path: str) -> "Image.Image":
    if "://" not in path:
        return open_image(Path(path).expanduser())
    raise ImageError("image_missing", f"{path} is a URL: download the picture and give its path.")


def _draw(picture: "Image.Image", record: Mapping[str, Any]) -> "Image.Image":
    from jobs.drawing import found_objects, readable
    from padt.draw import draw_objects

    return draw_objects(picture, found_objects(record), grid=tuple(record["grid"]), caption=readable(record["text"]))


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


def _write(out: Path | None, name: str, image: str, record: dict[str, Any], drawn: "Image.Image") -> PicturePrediction:
    if out is None:
        return PicturePrediction(image, record, drawn)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    files = out / f"{name}.json", out / f"{name}.png"
    for file in files:
        partial = file.with_name(f".{file.name}.tmp")
        if file.suffix == ".json":
            partial.write_text(text, encoding="utf-8")
        else:
            drawn.save(partial, "PNG")
        partial.replace(file)
    return PicturePrediction(image, record, drawn, *files)
