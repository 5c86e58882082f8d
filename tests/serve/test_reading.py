"""What clients send: every mistake gets a 4xx that names the field and the fix, before any model is asked."""

import base64
import io
import json

import pytest
from PIL import Image
from pydantic import ValidationError

from padt.data.image import ResizePolicy
from serve.api.errors import RequestError
from serve.api.reading import decode_base64, read_form, read_image, read_json, within_patches
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
        ({"task": "detect", "names": ["cat", " \u200b"]}, r"names\.1: is blank"),
        ({"task": "detect", "names": ["a" * 1_000_000]}, r"names\.0: String should have at most 200"),
        ({"task": "detect", "names": ["a"] * 10_000}, "names: List should have at most 200"),
        ({"task": "refer", "sentence": " \t"}, "field 'sentence' is blank"),
        ({"task": "refer", "sentence": "a" * 1_000_000}, "sentence: String should have at most"),
        ({"task": "chat", "prompt": "\u200b\n"}, "field 'prompt' is blank"),
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


def test_base64_may_be_wrapped_safe_for_urls_and_without_padding() -> None:
    data = bytes(range(256)) * 3 + b"\xfb\xff"
    for text in (
        base64.encodebytes(data).decode(),
        base64.encodebytes(data).decode().replace("\n", "\r\n  "),
        base64.urlsafe_b64encode(data).decode(),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
    ):
        assert decode_base64(text) == data
    for text in ("not base64!", "aé==", "A", "AAAA=AAA"):
        with pytest.raises(ValueError):
            decode_base64(text)


@pytest.mark.parametrize(
    ("width", "height"), [(7300, 5440), (5000, 100), (1793, 1793), (1792, 1792), (640, 480), (5, 5)]
)
def test_a_picture_has_at_most_so_many_patches_and_is_cut_as_the_model_would(width: int, height: int) -> None:
    image = within_patches(Image.new("RGB", (width, height)), max_patches=4096)
    model, limited = ResizePolicy(), ResizePolicy(max_pixels=4096 * 784)
    assert model.grid(image.height, image.width) == limited.grid(height, width)
    assert image.width * image.height <= 1.02 * 4096 * 784
    if width * height < 4096 * 700:
        assert image.size == (width, height)


def test_a_picture_too_thin_for_the_model_is_refused() -> None:
    with pytest.raises(RequestError, match="too long and thin") as caught:
        within_patches(Image.new("RGB", (1000, 1)), max_patches=4096)
    assert caught.value.status == 422


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


def test_a_largest_picture_that_could_never_be_asked_about_is_refused() -> None:
    with pytest.raises(ValidationError, match="raise max_length"):
        AppArgs(model="m", max_length=2048)
