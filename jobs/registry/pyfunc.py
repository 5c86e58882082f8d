"""A registered version as MLflow's users know models: ``mlflow.pyfunc.load_model("models:/padt@champion")`` answers.

What is stored is code and addresses, some kilobytes: a script that takes the class below from the installed package, a
signature, an example of a question, and where the weights lie. The weights themselves are uploaded nowhere: they are
read from there when the model is loaded, and are known by their fingerprint.
"""

import base64
import binascii
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from PIL import Image

from jobs.common.mlflow_run import experiment_id
from jobs.common.model_reference import Registration, registered_folder
from padt.data.image import check_shape, open_image
from padt.data.tasks import TASKS
from padt.errors import UserError, look_up

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from padt.inference.requests import Request

EXPERIMENT = "padt-models"
"""Experiment of models whose run is not known."""
COLUMNS = {"names": "labels", "sentence": "sentence", "prompt": "prompt"}
"""Column of what a task names, by the word of ``padt.data.tasks.TASKS``."""
_PARAMS: dict[str, Any] = {"max_new_tokens": 1024, "masks": True}
_ANSWER = ("text", "objects", "width", "height", "truncated", "warnings")
# Pictures that are open at the same time.
_CHUNK = 64
_NAME = "padt"
_SCRIPT = '''"""PaDT for MLflow: the code is the installed package, the weights lie where the model's config says."""

from mlflow.models import set_model

try:
    from jobs.registry.pyfunc import RegisteredPaDT
except ImportError as error:
    raise ImportError(
        "This model's code is the Python package of PaDT on Ray, and that is not installed here: run "
        "`pip install '.[train]'` in a checkout of PaDT on Ray. It is on no package index."
    ) from error

set_model(RegisteredPaDT())
'''


class RegisteredPaDT(mlflow.pyfunc.PythonModel):
    """Answers questions about pictures, one in each row of a DataFrame.

    Columns of the input: ``image`` (a path, an address, encoded bytes, base64 or a data URL), and what is asked:
    ``labels`` (a list, or text with commas) to detect, ``sentence`` to refer, ``prompt`` for any words, none of them to
    describe the picture; ``task`` (a key of ``padt.data.tasks.TASKS``) where it should be said. Params:
    ``max_new_tokens``, ``masks``.

    Columns of the output: ``text``, ``objects`` (``PredictedObject.to_dict()``: label, score, box in pixels of the
    upright picture, mask as COCO run lengths, patches), ``width``, ``height``, ``truncated``, ``warnings``, and
    ``error``: why a row has no answer; what is wrong with one row costs the others nothing.

    ``mlflow.pyfunc.load_model(uri, model_config={...})`` takes ``device``, ``dtype`` and ``batch_size``.
    """

    def load_context(self, context: Any) -> None:
        """Load the weights.

        Raises:
            UserError: they are not there any more, or were changed.
        """
        from padt.checkpoints.loading import load_model

        config = context.model_config
        registration = Registration(config["name"], "", config["weights"], config["tags"])
        self._batch_size = int(config["batch_size"])
        self._model = load_model(
            registered_folder(registration, f"The weights of the registered model {config['name']}"),
            device=config["device"],
            dtype=config["dtype"],
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The answers, see the class.

        Raises:
            UserError: there is no column ``image``, or a param is of the wrong kind.
        """
        from padt.inference.requests import GenerationSettings

        if "image" not in getattr(model_input, "columns", ()):
            raise UserError("The input has no column 'image': give a DataFrame with pictures and questions.")
        settings = GenerationSettings(**{**_PARAMS, **(params or {})})
        rows = model_input.to_dict("records")
        answers = [
            answer
            for start in range(0, len(rows), _CHUNK)
            for answer in self._answer(rows[start : start + _CHUNK], settings)
        ]
        return pd.DataFrame(answers, columns=[*_ANSWER, "error"], index=model_input.index, dtype=object)

    def _answer(self, rows: Sequence[Mapping[str, Any]], settings: Any) -> list[dict[str, Any]]:
        from padt.inference.answers import answers
        from padt.inference.requests import class_names

        found: list[dict[str, Any]] = [dict.fromkeys((*_ANSWER, "error")) for _ in rows]
        asked: dict[int, tuple[Image.Image, Request]] = {}
        for place, row in enumerate(rows):
            try:
                asked[place] = (picture_of(row["image"]), request_of(row))
            except UserError as error:
                found[place]["error"] = str(error)
        pictures = [[picture] for picture, _ in asked.values()]
        requests = [request for _, request in asked.values()]
        predictions = answers(self._model, pictures, requests, settings, self._batch_size)
        for place, request, prediction in zip(asked, requests, predictions, strict=True):
            # Lists in the place of tuples: what a scoring server sends is what a process has.
            values = json.loads(json.dumps(prediction.of_classes(class_names(request)).to_dict()))
            found[place].update({name: values[name] for name in _ANSWER})
        return found


def request_of(row: Mapping[str, Any]) -> "Request":
    """The question of a row.

    Raises:
        UserError: it asks for nothing that there is, or for two things.
    """
    from padt.inference.requests import ask

    given = {word: row[column] for word, column in COLUMNS.items() if _is_given(row.get(column))}
    task = row.get("task") if _is_given(row.get("task")) else None
    if task is None:
        if len(given) > 1:
            columns = " and ".join(COLUMNS[word] for word in given)
            raise UserError(f"A row has {columns}: ask for one thing, or say which task.")
        task = next((name for name, each in TASKS.items() if each.words == next(iter(given), None)), "caption")
    needed = look_up("task", task, TASKS).words
    if needed and needed not in given:
        raise UserError(f"Task {task!r} needs the column {COLUMNS[needed]!r}.")
    words = given.get(needed) if needed else None
    if needed == "names":
        listed = words.split(",") if isinstance(words, str) else list(words or ())
        words = [str(name).strip() for name in listed]
    return ask(task, words)


def picture_of(value: Any) -> Image.Image:
    """The upright picture of a cell: a path, an address, encoded bytes, base64, a data URL, or what Pillow has opened.

    Raises:
        UserError: it is none, or cannot be read.
    """
    if isinstance(value, str):
        value = _content_of(value)
    picture = open_image(value)
    check_shape(picture.height, picture.width, "The picture")
    return picture


def _content_of(text: str) -> bytes | str:
    head, comma, rest = text.partition(",")
    if text[:5].lower() == "data:" and comma:
        return _of_base64(rest if head.lower().endswith(";base64") else "")
    if "://" in text[:64]:
        from pipelines.io.reading import reaching, read_file

        with reaching(text, "picture"):
            return read_file(text, _MOST_BYTES)
    # No path is as long as a picture; and base64 has letters that few paths do without.
    if len(text) < 4096 and (os.path.exists(text) or not _looks_like_base64(text)):
        return text
    return _of_base64(text)


_MOST_BYTES = 256 * 2**20


def _looks_like_base64(text: str) -> bool:
    return len(text) >= 64 and len(text) % 4 == 0 and set(text.rstrip("=")) <= _LETTERS


_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")


def _of_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(
            f"A picture is neither a path, an address nor base64 ({text[:24]!r}...): give one of these, or bytes."
        ) from error


def _is_given(value: Any) -> bool:
    # What pandas puts where a row has nothing: None, NaN, or an empty text.
    return value is not None and value == value and (not hasattr(value, "__len__") or len(value) > 0)


def log_pyfunc(client: "MlflowClient", registration: Registration, run_id: str | None) -> tuple[str, str | None]:
    """Store a version's code and addresses beside its run, or in an experiment of their own.

    Args:
        client: of the registry and tracking server.
        registration: where the weights are, and their marks.
        run_id: run that made them, or None.

    Returns:
        Address of what was stored, and MLflow's id of it where the version can be tied to it.
    """
    experiment = client.get_run(run_id).info.experiment_id if run_id else experiment_id(client, EXPERIMENT)
    logged = client.create_logged_model(experiment, _NAME, source_run_id=run_id, tags=dict(registration.tags))
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / _NAME
        write_pyfunc(folder, registration)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    # A registry in a database of ours would look for the id in the process's own tracking store.
    behind_server = client.tracking_uri.startswith(("http://", "https://"))
    return logged.artifact_location, logged.model_id if behind_server else None


def write_pyfunc(folder: Path, registration: Registration) -> None:
    """Write what MLflow loads: script, signature, example, and where the weights are."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    inputs = [ColSpec(AnyType(), "image")]
    inputs += [ColSpec(AnyType(), column, required=False) for column in ("task", *COLUMNS.values())]
    outputs = [ColSpec(AnyType(), column, required=False) for column in (*_ANSWER, "error")]
    params = [ParamSpec(key, "boolean" if isinstance(value, bool) else "long", value) for key, value in _PARAMS.items()]
    # It tells of every step of a saving that takes none of the user's time.
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    script = folder.with_name("padt_pyfunc.py")
    script.write_text(_SCRIPT, encoding="utf-8")
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(script),
        signature=ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(params)),
        input_example=example(),
        pip_requirements=list(_requirements()),
        model_config={
            "name": registration.name,
            "weights": registration.weights,
            "tags": dict(registration.tags),
            "device": None,
            "dtype": None,
            "batch_size": 8,
        },
    )


def example() -> pd.DataFrame:
    """A question about a small red square."""
    picture = Image.new("RGB", (84, 56), "white")
    picture.paste((200, 30, 30), (14, 14, 42, 42))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    return pd.DataFrame([{"image": image, "task": "refer", "sentence": "the red square"}])


def _requirements() -> Iterator[str]:
    """What the model library needs, without its own name: that is on no index."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    for requirement in map(Requirement, requires("padt") or ()):
        if requirement.marker is None:
            yield str(requirement)
    yield "mlflow>=3.13,<4"
