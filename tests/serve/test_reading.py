"""What clients send: every mistake gets a 4xx that names the field and the fix, before any model is asked."""

import base64
import io
import json

import pytest
from PIL import Image
from pydantic import ValidationError

from serve.reading import RequestError, read_form, read_image, read_json
from serve.settings import AppArgs


def encoded(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, kind)
    return buffer.getvalue()


def body(**fields: object) -> bytes:
    return json.dumps({"image": base64.b64encode(encoded()).decode(), "task": "caption", **fields}).encode()


def test_base64_and_data_url_give_the_same_bytes() -> None:
    text = base64.b64encode(encoded()).decode()
    plain, first = read_json(body(image=text))
    _, second = read_json(body(image=f"data:image/png;base64,{text}"))
    assert first == second == encoded()
    assert plain.task == "caption"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "detect"}, "task 'detect' needs the field 'names'"),
        ({"task": "refer"}, "task 'refer' needs the field 'sentence'"),
        ({"task": "dtect"}, r"task: task 'dtect' is unknown: did you mean detect\?"),
        ({"task": 7}, "task: Input should be a valid string"),
        ({"names": ["cat"]}, "'names' does not belong to task 'caption'"),
        ({"treshold": 0.5}, "treshold: Extra inputs"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"image": ""}, "image"),
        ({"image": "not base64!"}, "not base64"),
        ({"image": "data:image/png,abc"}, "data URL"),
    ],
)
def test_wrong_fields_are_named(fields: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read_json(body(**fields))
    assert caught.value.status == 422


def test_what_is_not_json_is_said_to_be() -> None:
    with pytest.raises(RequestError, match="Invalid JSON") as caught:
        read_json(b"{")
    assert caught.value.status == 422


def test_names_of_a_form_are_separated_by_commas() -> None:
    question = read_form({"task": "detect", "names": "red circle, square,,", "max_new_tokens": "32"})
    assert question.names == ["red circle", "square"]
    assert question.max_new_tokens == 32


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"no picture", 422, "image_unreadable"),
        (b"", 422, "image_unreadable"),
        (encoded()[:60], 422, "image_unreadable"),
        (encoded(300, 300), 413, "image_too_large"),
    ],
)
def test_bad_pictures_are_refused(data: bytes, status: int, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_image(data, max_pixels=50_000)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_a_batch_that_could_never_fill_is_refused() -> None:
    with pytest.raises(ValidationError, match="raise the former"):
        AppArgs(model="m", max_batch_size=32)
