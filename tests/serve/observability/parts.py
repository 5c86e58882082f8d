"""Requests to be told of, and somebody who counts without Ray."""

from typing import Any

from PIL import Image

from padt.data.rle import encode
from padt.inference.events import Times
from padt.inference.requests import GenerationSettings, Request, caption_request
from padt.inference.results import Frame, PredictedObject, Prediction
from serve.messages import Job, Outcome
from serve.observability.metrics import METRICS, Meters


class CountedMeters(Meters):
    """Keeps what is counted; refuses what the table does not have."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, dict[str, str]]] = []

    def add(self, name: str, value: float, **labels: str) -> None:
        assert set(labels) == set(METRICS[name].labels), name
        assert all(isinstance(label, str) for label in labels.values()), labels
        self.seen.append((name, value, labels))

    def total(self, name: str, **labels: str) -> float:
        return sum(value for one, value, about in self.seen if one == name and labels.items() <= about.items())


def found(label: str, box=(10.0, 5.0, 40.0, 35.0), patches=(0, 1), mask: bool = True) -> PredictedObject:
    import numpy as np

    painted = np.zeros((40, 60), bool)
    painted[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    return PredictedObject(label, 0.75, box, encode(painted) if mask else None, patches, (2, 4), 0.9, True)


def job(request: Request | None = None, *images: Image.Image, request_id: str = "r-1", **about: Any) -> Job:
    pictures = images or (Image.new("RGB", (60, 40), "red"),)
    return Job(pictures, request or caption_request(), GenerationSettings(), request_id=request_id, **about)


def outcome(*objects: PredictedObject, text: str = "a cat <|VRT_0|><|VRT_1|>.", **about: Any) -> Outcome:
    prediction = Prediction(text, objects or (found("cat"),), (Frame(60, 40, (2, 3)),))
    values = {"prompt_tokens": 20, "completion_tokens": 8, "version": "padt/7", "fingerprint": "abc", **about}
    return Outcome(prediction.to_dict(), times=Times(0.1, 0.2, 0.4, 0.05), **values)
