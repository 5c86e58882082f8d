"""What clients send: every mistake gets a 4xx that names the field and the fix, before any model is asked."""

import base64
import io
import json

import pytest
from PIL import Image
from pydantic import ValidationError

from padt.data.image import ResizePolicy
from padt.errors import ImageError
from serve.api.bodies import Body
from serve.api.errors import RequestError
from serve.api.pictures import decode_base64, open_picture, picture_bytes, within_patches
from serve.api.schemas import read_predict
from serve.api.strict_json import parse_object
from serve.settings import AppArgs


def encoded(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, kind)
    return buffer.getvalue()


def body(**fields: object) -> bytes:
    return json.dumps({"image": base64.b64encode(encoded()).decode(), "task": "caption", **fields}).encode()


def read(**fields: object) -> list[bytes]:
    """Pictures of a JSON request that is as it should be."""
    _, sources = read_predict(Body(parse_object(body(**fields))))
    return [picture_bytes(source) for source in sources]


def form(**fields: str) -> Body:
    return Body(fields, [encoded()], form=True)


def test_base64_and_data_url_give_the_same_bytes() -> None:
    text = base64.b64encode(encoded()).decode()
    assert read(image=text) == read(image=f"data:image/png;base64,{text}") == [encoded()]
    assert read(image=None, images=[text, text]) == [encoded()] * 2


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
        ({"max_new_tokens": "8"}, "max_new_tokens: Input should be a valid integer"),
        ({"max_new_tokens": 10**30}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": True}, "seed"),
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"mask": "bitmap"}, "mask"),
        ({"stream": "yes"}, "stream"),
        ({"images": ["AAAA"]}, "either 'image' or 'images'"),
        ({"image": None, "images": []}, "images: List should have at least 1"),
        ({"image": None}, "A picture is missing"),
        ({"task": None}, "name a 'task'"),
        ({"questions": [{"task": "caption"}]}, "stand within 'questions'"),
        ({"task": None, "questions": []}, "questions: List should have at least 1"),
        ({"task": None, "questions": [{"task": "caption"}] * 33}, "questions: List should have at most 32"),
        ({"task": None, "questions": [{"task": "caption"}, {"task": "refer"}]}, r"questions\.1: task 'refer' needs"),
        ({"task": None, "questions": [{"task": "caption", "mask": "rle"}]}, r"questions\.0\.mask: Extra inputs"),
    ],
)
def test_wrong_fields_are_named(fields: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read(**fields)
    assert caught.value.status == 422


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"a": 1} x', "Extra data"),
        (b'[{"a": 1}]', "no object"),
        (b"null", "no object"),
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' comes twice"),
        (b'{"a": {"b": [{"c": 1, "c": 1}]}}', "key 'c' comes twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "number 1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b'{"a": "\xff"}', "no UTF-8"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"\\udfff": "a"}', "half a surrogate pair"),
        (b'{"a": ["x", {"b": "\\ud83d \\ude00"}]}', "half a surrogate pair"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "no UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
    ],
)
def test_what_is_not_json_or_means_two_things_is_said_to_be(text: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_object(text)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    json.dumps(caught.value.body).encode()


def test_text_of_any_kind_stays_text() -> None:
    told = {"a": "😀 \x00 <|im_start|> <|VRT_3|>", "b": [1, 2.5, None, True]}
    assert (
        parse_object(json.dumps(told).encode()) == parse_object(json.dumps(told, ensure_ascii=False).encode()) == told
    )


def test_thousands_of_wrong_labels_need_no_thousands_of_sentences() -> None:
    with pytest.raises(RequestError, match=r"; and 192 more\.$") as caught:
        read(task="detect", names=[" "] * 200)
    assert caught.value.param is None and len(str(caught.value)) < 1000


def test_names_of_a_form_are_separated_by_commas_and_questions_are_json() -> None:
    asked, sources = read_predict(form(task="detect", names="red circle, square,,", max_new_tokens="32", stream="true"))
    assert (asked.names, asked.max_new_tokens, asked.stream) == (["red circle", "square"], 32, True)
    assert sources == [encoded()]
    asked, _ = read_predict(form(questions='[{"task": "caption"}, {"task": "refer", "sentence": "it"}]'))
    assert [question.words for question in asked.asked] == [None, "it"]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"questions": "[", "task": "caption"}, 400, "JSON"),
        ({"questions": '[], "task": "caption"'}, 422, "questions"),
        ({"task": "caption", "image": "AAAA"}, 422, "as a file and as text"),
        ({"task": "caption", "images": "AAAA"}, 422, "a form has files 'image'"),
        ({"task": "caption", "max_new_tokens": "NaN"}, 422, "max_new_tokens"),
        ({"task": "caption", "temperature": "nan"}, 422, "temperature"),
        ({"task": "caption", "temperature": "inf"}, 422, "temperature"),
    ],
)
def test_wrong_fields_of_forms_are_named(fields: dict, status: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read_predict(form(**fields))
    assert caught.value.status == status


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
    with pytest.raises(ImageError, match="too long and thin"):
        within_patches(Image.new("RGB", (1000, 1)), max_patches=4096)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"no picture", 422, "image_unreadable"),
        (b"", 422, "image_unreadable"),
        (encoded()[:60], 422, "image_unreadable"),
        (encoded(1000, 1), 422, "image_aspect_ratio"),
        (encoded(300, 300), 413, "image_too_large"),
    ],
)
def test_bad_pictures_are_refused(data: bytes, status: int, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        open_picture(data, max_pixels=50_000, max_patches=16)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_a_largest_picture_that_could_never_be_asked_about_is_refused() -> None:
    with pytest.raises(ValidationError, match="raise max_length"):
        AppArgs(model="m", max_length=2048)
