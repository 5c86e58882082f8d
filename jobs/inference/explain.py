"""``padt explain``: look inside one answer. A sheet for each object and a JSON file with the numbers.

Works with the plain model library, as ``padt predict`` does.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.model_reference import find_model
from jobs.inference.predict import open_picture, out_folder, save_picture, save_record

if TYPE_CHECKING:
    from padt.inference.requests import GenerationSettings, Request


@dataclass(frozen=True)
class ExplainResult:
    """What was written.

    Attributes:
        record: what the JSON file holds: the fields of the prediction with ``steps`` in each object.
        json_path: the file.
        sheets: one picture for each object; a single one about the whole answer where it has no object.
    """

    record: dict[str, Any]
    json_path: Path
    sheets: tuple[Path, ...]


def run_explain(
    model: str | os.PathLike,
    image: str | os.PathLike,
    request: "Request",
    out_dir: str | os.PathLike,
    *,
    settings: "GenerationSettings | None" = None,
    top: int = 10,
    load_options: Mapping[str, Any] | None = None,
) -> ExplainResult:
    """Ask about one picture and draw where the probability of each VRT lay.

    Args:
        model: model folder, ``models:/padt@champion`` or ``models:/padt/3``.
        image: path.
        request: see ``jobs.inference.predict.make_request``.
        out_dir: folder for ``NAME.json``, and ``NAME-1.png`` and so on.
        settings: how to generate; greedy by default.
        top: patches that the JSON lists at each step.
        load_options: further arguments of ``padt.load_model``, such as ``device``.

    Raises:
        UserError: the picture or the model cannot be used, or ``out_dir`` is a file.
    """
    out = out_folder(out_dir)
    picture = open_picture(str(image))
    found = find_model(model)
    # What the user can have got wrong is known by now: these take seconds to import.
    from padt.checkpoints.loading import load_model
    from padt.drawing.heatmap import draw_nearest_sheet, draw_object_sheet
    from padt.inference.explain import explain

    loaded = load_model(found.path, **(load_options or {}))
    explanation = explain(loaded, picture, request, settings)
    count = len(explanation.prediction.objects)
    drawn = [draw_object_sheet(explanation, number) for number in range(count)] or [draw_nearest_sheet(explanation)]
    name = Path(image).stem or "picture"
    sheets = [out / (f"{name}-{number}.png" if count else f"{name}.png") for number in range(1, len(drawn) + 1)]
    record = {
        "image": str(image),
        "model": str(model),
        **({"model_version": found.version} if found.version else {}),
        "task": request.task,
        "prompt": request.prompt,
        **explanation.to_dict(top),
    }
    for thing, sheet in zip(record["objects"], sheets, strict=False):
        thing["sheet"] = sheet.name
    out.mkdir(parents=True, exist_ok=True)
    for picture, path in zip(drawn, sheets, strict=True):
        save_picture(picture, path)
    save_record(record, out / f"{name}.json")
    return ExplainResult(record, out / f"{name}.json", tuple(sheets))
