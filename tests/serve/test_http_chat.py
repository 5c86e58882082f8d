"""``/v1/chat/completions`` as OpenAI's own client sees it, and what is refused with the field's name."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("ray.serve")
openai = pytest.importorskip("openai")

from padt.data.conversation import IMAGE_PLACE, Turn  # noqa: E402
from padt.inference.results import Prediction  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402
from tests.serve.fake_engine import TEXT, Answers  # noqa: E402
from tests.serve.in_process import connect, listening, served  # noqa: E402
from tests.serve.test_http_predict import settled  # noqa: E402
from tests.serve.test_reading import encoded  # noqa: E402

ARGS = ServerArgs(max_patches=16, max_new_tokens=64, max_body_mb=0.3, max_prompt_bytes=400, retry_after_s=1)
URL = f"data:image/png;base64,{base64.b64encode(encoded()).decode()}"
LARGE = f"data:image/png;base64,{base64.b64encode(encoded(240, 160)).decode()}"
CONTENT = "one thing (), and an ö."


def picture(url: str = URL) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


ASKED = [user(picture(), words("What is there?"))]


@pytest.fixture(scope="module")
def engine() -> Answers:
    return Answers()


@pytest.fixture(scope="module")
def url(engine: Answers) -> Iterator[str]:
    with listening(served(engine, ARGS)) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    http = httpx.Client(timeout=60, trust_env=False)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http) as made:
        yield made


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with connect(url) as made:
        yield made


def send(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"model": "padt", "messages": ASKED, **fields})


def test_openais_client_gets_text_objects_and_usage(client: Any, engine: Answers) -> None:
    answer = client.chat.completions.create(
        model="padt", messages=ASKED, max_tokens=9, temperature=0.5, top_p=0.5, seed=4, n=1, stop=None
    )
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (CONTENT, "assistant", "stop")
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "padt", "f00")
    assert answer.id.startswith("chatcmpl-") and answer.created > 1_700_000_000
    assert answer.usage.total_tokens == 12
    prediction = Prediction.from_dict(choice.message.padt)
    assert prediction.text == TEXT and prediction.objects[0].box == (0, 0, 60, 40)
    job = engine.jobs[-1]
    assert (job.settings.max_new_tokens, job.settings.temperature, job.settings.top_p, job.seed) == (9, 0.5, 0.5, 4)
    assert client.models.list().data[0].id == "padt"


def test_a_conversation_goes_on_with_the_message_that_was_given(client: Any, engine: Answers) -> None:
    first = client.chat.completions.create(model="padt", messages=ASKED).choices[0].message
    messages = [
        {"role": "developer", "content": "Be brief."},
        *ASKED,
        first,
        user(words("<|im_end|> and <image> "), words("here?"), picture(LARGE)),
    ]
    client.chat.completions.create(model="padt", messages=messages)
    job = engine.jobs[-1]
    assert job.request.prompt == (
        Turn("system", ("Be brief.",)),
        Turn("user", (IMAGE_PLACE, "What is there?")),
        Turn("assistant", (CONTENT,)),
        Turn("user", ("<|im_end|> and <image> ", "here?", IMAGE_PLACE)),
    )
    assert len(job.images) == 2


def test_openais_client_gets_a_stream_with_objects_where_they_belong(client: Any) -> None:
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="padt", messages=ASKED, stream=True, stream_options=options))
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].choices[0].delta.role == "assistant"
    *pieces, usage = chunks
    assert (usage.choices, usage.usage.completion_tokens) == ([], 5)
    deltas = [chunk.choices[0].delta for chunk in pieces]
    assert "".join(delta.content or "" for delta in deltas) == CONTENT
    found = [delta.padt for delta in deltas if hasattr(delta, "padt")]
    assert (found[0]["number"], found[0]["at"], found[0]["object"]["label"]) == (0, 11, "thing")
    assert Prediction.from_dict(found[-1]["answer"]).text == TEXT
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * (len(pieces) - 1) + ["stop"]


def test_a_stream_ends_with_done_and_has_usage_only_where_asked_for(http: httpx.Client) -> None:
    text = send(http, stream=True).text
    assert text.endswith("data: [DONE]\n\n") and "prompt_tokens" in text
    assert all('"choices":[]' not in line for line in text.splitlines())


def test_openais_client_raises_its_own_errors(client: Any) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        create(model="padt", messages=ASKED, n=2)
    assert (bad.value.code, bad.value.param, bad.value.type) == ("unsupported_parameter", "n", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt", messages=ASKED)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.InternalServerError) as failed:
        create(model="padt", messages=[user(words("crash"))])
    assert "secret" not in str(failed.value)
    with pytest.raises(openai.APIError, match="The prompt says so"):
        list(create(model="padt", messages=[user(words("refuse"))], stream=True))
    with pytest.raises(openai.BadRequestError, match="The prompt says so"):
        create(model="padt", messages=[user(words("refuse"))])


def test_an_answer_that_was_cut_says_so(client: Any) -> None:
    answer = client.chat.completions.create(model="padt", messages=[user(words("cut"))])
    assert answer.choices[0].finish_reason == "length"


def test_who_leaves_a_stream_ends_the_work(client: Any, engine: Answers) -> None:
    before = engine.cancelled
    with client.chat.completions.create(model="padt", messages=[user(words("endless"))], stream=True) as chunks:
        for chunk in chunks:
            if chunk.choices[0].delta.content:
                break
    assert settled(lambda: engine.cancelled == before + 1)


def test_masks_and_scores_are_chosen_in_the_field_padt(client: Any) -> None:
    def objects(**grounding: Any) -> list[dict[str, Any]]:
        answer = client.chat.completions.create(model="padt", messages=ASKED, extra_body={"padt": grounding})
        return answer.choices[0].message.padt["objects"]

    assert objects(mask="polygon")[0]["mask"] == [[0, 0, 60, 0, 60, 40, 0, 40]]
    assert objects(mask="none")[0]["mask"] is None
    assert objects(score_threshold=0.95) == []


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"logprobs": 0}, "logprobs", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"stop": ["."]}, "stop", "not supported"),
        ({"n": True}, "n", "not supported"),
        ({"temprature": 1}, "temprature", "Extra inputs"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"max_tokens": 65}, "max_new_tokens", "at most 64"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, None, "differ"),
        ({"stream_options": {"include_usage": True}}, None, "needs 'stream'"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'system', 'developer'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "Field required"),
        ({"messages": [user({"type": "input_audio"})]}, "messages.0.content.0", "input_audio"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages.0", "'tool_calls'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "do not go user"),
        ({"messages": [user(words("a")), user(words("b"))]}, "messages", "do not go user"),
        ({"messages": [user(words(" \u200b"))]}, "messages", "blank"),
        ({"messages": [user(picture())]}, "messages", "blank"),
        ({"messages": [user(words("a" * 500))]}, None, "500 bytes"),
        ({"messages": [user(words("a"), picture("cat.png"))]}, "messages.0.content.1.image_url.url", "no data URL"),
        (
            {"messages": [user(words("a"), picture("data:image/png;base64,AAAA"))]},
            "messages.0.content.1.image_url.url",
            "readable",
        ),
        ({"messages": [user(words("a"), picture("https://a.test/b.png"))]}, None, "fetches no pictures"),
        ({"messages": [{"role": "system", "content": [picture()]}, *ASKED]}, "messages.0", "picture"),
        ({"model": None}, "model", "string"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str | None, message: str
) -> None:
    answer = send(http, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["param"] == param and message in error["message"], error


def test_streams_are_for_waiting_and_not_for_errors_that_are_known_before(http: httpx.Client) -> None:
    answer = send(http, messages=[user(words("a"), picture("data:image/png;base64,AAAA"))], stream=True)
    assert answer.status_code == 400
    assert json.loads(answer.text)["error"]["code"] == "image_unreadable"
