"""Samples of what was asked and answered, in a folder that ``padt prepare`` reads.

``images/`` holds the pictures as the model saw them, named by their content. Questions with objects go into
``grounded-*.jsonl`` (`padt prepare released`), free ones into ``chat-*.jsonl`` (`padt prepare messages`). Each writer
has files of its own, so that none disturbs another.
"""

import hashlib
import io
import json
import logging
import posixpath
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from padt.data.conversation import ImagePlace, Turn, question
from padt.data.rle import area
from padt.data.tasks import TASKS, asked, detect_answer, refer_answer
from padt.errors import UserError
from serve.messages import Job, Outcome
from serve.observability.background import Background
from serve.observability.metrics import Meters
from serve.observability.records import AnswerRecord, Observer
from serve.observability.sampling import chosen

logger = logging.getLogger("ray.serve")

_RUN = re.compile(r"(?:<\|VRT_\d+\|>)+")
_NUMBER = re.compile(r"\d+")
# Other writers and people work in the folder too: its size is measured anew after so many samples.
_MEASURE_EVERY = 100


class SampleWriter(Observer):
    """Writes the chosen questions with their answers: which ones, the ids of request and pictures decide."""

    def __init__(self, folder: str, share: float, limit_mb: float, meters: Meters) -> None:
        """Get ready.

        Args:
            folder: path or fsspec URL; made if need be.
            share: which part of the questions, 0 to 1.
            limit_mb: nothing is added to a folder that holds so many MB.
            meters: count what was left out.

        Raises:
            UserError: the folder cannot be made.
        """
        from fsspec.core import url_to_fs

        self._share = share
        self._limit = limit_mb * 1e6
        try:
            self._files, self._root = url_to_fs(folder)
            self._files.makedirs(posixpath.join(self._root, "images"), exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"sample_folder {folder} cannot be written ({error}): give another.") from error
        self._local = "file" in self._files.protocol
        self._writer = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
        self._written = 0
        self._used = 0.0
        self._background: Background[tuple[Job, Mapping[str, Any], AnswerRecord]] = Background(
            "samples", self._write, meters
        )

    def answered(self, job: Job, outcome: Outcome, answer: AnswerRecord) -> None:
        """See ``Observer``."""
        # The lines of a batch have one id, and pictures of their own.
        if outcome.prediction is None or not chosen(job.request_id + job.picture_key, self._share):
            return
        self._background.put((job, outcome.prediction, answer))

    def close(self) -> None:
        """See ``Observer``."""
        self._background.close()

    def _write(self, item: tuple[Job, Mapping[str, Any], AnswerRecord]) -> None:
        job, prediction, answer = item
        if self._written % _MEASURE_EVERY == 0:
            self._used = float(self._files.du(self._root))
        encoded = [_encode(image) for image in job.images]
        names = [f"{hashlib.sha256(content).hexdigest()[:24]}.png" for content in encoded]
        kind, values = sample_line(job, prediction, names)
        about = {"version": answer.version, "fingerprint": answer.fingerprint, "result": answer.result}
        line = json.dumps({**values, **about}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if self._used + len(line) + sum(map(len, encoded)) > self._limit:
            raise RuntimeError(f"{self._root} holds {self._used / 1e6:.0f} MB, and sample_mb allows no more")
        for name, content in zip(names, encoded, strict=True):
            path = posixpath.join(self._root, "images", name)
            if not self._files.exists(path):
                self._files.pipe_file(path, content)
                self._used += len(content)
        self._add(kind, line)
        self._used += len(line)
        self._written += 1

    def _add(self, kind: str, line: bytes) -> None:
        """The line comes after its pictures: whoever reads it finds them."""
        stem = posixpath.join(self._root, f"{kind}-{self._writer}")
        if self._local:
            with self._files.open(f"{stem}.jsonl", "ab") as handle:
                handle.write(line)
        else:
            # Object stores do not append.
            self._files.pipe_file(f"{stem}-{self._written:06d}.jsonl", line)


def sample_line(job: Job, prediction: Mapping[str, Any], names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The line of a question and its answer.

    Args:
        job: the question.
        prediction: ``Prediction.to_dict()`` about its pictures.
        names: of the files of its pictures.

    Returns:
        ``grounded`` and a line of the released PaDT data, for one picture and a question in the words of its task; else
        ``chat`` and a row of messages.
    """
    prompt = job.request.prompt
    found = asked(prompt) if isinstance(prompt, str) else None
    if len(names) == 1 and isinstance(prompt, str) and found is not None and TASKS[found[0]].grounded:
        return "grounded", _grounded_line(job.request_id, names[0], prompt, found, prediction)
    turns = (question(prompt, len(names)),) if isinstance(prompt, str) else prompt
    said = {"role": "assistant", "content": _RUN.sub("", prediction["text"])}
    left = list(names)
    return "chat", {"id": job.request_id, "messages": [*(_message(turn, left) for turn in turns), said]}


def _grounded_line(
    request_id: str, name: str, prompt: str, asked_for: tuple[str, Any], prediction: Mapping[str, Any]
) -> dict[str, Any]:
    task, sentence = asked_for
    objects = prediction["objects"]
    places = [f"<|Obj_{number}|>" for number in range(len(objects))]
    if task == "detect":
        by_name: dict[str, list[str]] = {}
        for found, place in zip(objects, places, strict=True):
            by_name.setdefault(found["label"], []).append(place)
        answer = "".join(detect_answer(list(by_name.items())))
    elif task == "refer":
        answer = "".join(refer_answer(sentence, places))
    else:
        answer = _with_places(prediction["text"], objects)
    width, height = prediction["width"], prediction["height"]
    return {
        "id": request_id,
        "image": name,
        "conversations": [{"from": "human", "value": prompt}],
        "answer_template": answer,
        "objects": [_object(found, width, height) for found in objects],
        "task": task,
    }


def _with_places(text: str, objects: Sequence[Mapping[str, Any]]) -> str:
    """An answer with the places of its objects where their VRTs stand; runs that are no object's are left out."""
    left = list(enumerate(objects))

    def place(run: re.Match[str]) -> str:
        patches = set(map(int, _NUMBER.findall(run[0])))
        for position, (number, found) in enumerate(left):
            # A run may have repeats and strays that the object has not.
            if patches.issuperset(found["patches"]):
                del left[: position + 1]
                return f"<|Obj_{number}|>"
        return ""

    return _RUN.sub(place, text)


def _object(found: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    x0, y0, x1, y1 = found["box"]
    values = {
        "bbox": [x0 / width, y0 / height, x1 / width, y1 / height],
        "label": found["label"],
        "iscrowd": 0,
        "area": float(area(found["mask"]) if found["mask"] else (x1 - x0) * (y1 - y0)),
        "patches": list(found["patches"]),
        "score": found["score"],
    }
    return {**values, "rle": found["mask"]} if found["mask"] else values


def _message(turn: Turn, names: list[str]) -> dict[str, Any]:
    """A turn as chat APIs have it; takes its pictures from the front of the names."""
    parts: list[dict[str, Any]] = []
    for piece in turn.content:
        if isinstance(piece, ImagePlace):
            parts.append({"type": "image", "image": names.pop(0)})
        elif isinstance(piece, str):
            parts.append({"type": "text", "text": piece})
    return {"role": turn.role, "content": parts}


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
