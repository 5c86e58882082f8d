"""``/v1/predict`` on an engine in this process: answers, formats of masks, streams, and who goes away early."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.serve")

from padt.inference.events import ObjectFound, TextPiece  # noqa: E402
from padt.inference.results import Frame, Prediction  # noqa: E402
from serve.api import events  # noqa: E402
from serve.api.events import merged  # noqa: E402
from serve.client import Client  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402
from tests.serve.fake_engine import TEXT, Answers  # noqa: E402
from tests.serve.in_process import connect, listening, served  # noqa: E402
from tests.serve.test_reading import encoded  # noqa: E402

ARGS = ServerArgs(max_patches=16, max_new_tokens=64, max_rows=4, max_queued_requests=0, max_body_mb=0.3, max_images=3)
IMAGE = base64.b64encode(encoded()).decode()
LARGE = base64.b64encode(encoded(240, 160)).decode()
QUESTIONS = [{"task": "caption"}, {"task": "detect", "names": ["cat"]}, {"task": "chat", "prompt": "cut"}]


@pytest.fixture
def engine() -> Answers:
    return Answers()


@pytest.fixture
def http(engine: Answers) -> Iterator[httpx.Client]:
    with listening(served(engine, ARGS)) as url, connect(url) as client:
        yield client


def ask(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/predict", json={"image": IMAGE, "task": "caption", **fields})


def read_events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def settled(done: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether something comes true; waits for long, since machines that test are slow and stall."""
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.01)
    return done()


def test_an_answer_says_who_answered_how_long_it_is_and_where_the_time_went(http: httpx.Client) -> None:
    answer = ask(http).json()
    assert (answer["model"], answer["version"], answer["fingerprint"]) == ("padt", "fake/1", "f00")
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert (answer["finish_reason"], answer["truncated"]) == ("stop", False)
    times = answer["milliseconds"]
    assert [times[phase] for phase in ("queue", "prefill", "steps", "objects")] == [1, 2, 3, 4]
    assert times["total"] >= times["decode"] > 0 and times["encode"] >= 0
    assert ask(http, task="chat", prompt="cut").json()["finish_reason"] == "length"


def test_how_to_answer_reaches_the_engine(http: httpx.Client, engine: Answers) -> None:
    ask(http, temperature=0.5, top_p=0.9, seed=-3, max_new_tokens=9, mask="none")
    (job,) = engine.jobs
    assert (job.settings.temperature, job.settings.top_p, job.seed) == (0.5, 0.9, -3)
    assert (job.settings.max_new_tokens, job.settings.masks) == (9, False)
    assert job.request_id


def test_several_questions_about_one_picture_are_answered_in_order_and_it_is_decoded_once(
    http: httpx.Client, engine: Answers
) -> None:
    answer = ask(http, task=None, questions=QUESTIONS).json()
    assert set(answer) == {"model", "version", "fingerprint", "answers"}
    assert [each["task"] for each in answer["answers"]] == ["caption", "detect", "chat"]
    assert [each["truncated"] for each in answer["answers"]] == [False, False, True]
    first, *others = [job.images[0] for job in engine.jobs]
    assert all(other is first for other in others)
    # One question in a list is answered by a list.
    assert len(ask(http, task=None, questions=QUESTIONS[:1]).json()["answers"]) == 1


def test_each_question_takes_a_place_and_one_that_fails_ends_the_others(http: httpx.Client, engine: Answers) -> None:
    many = ask(http, task=None, questions=QUESTIONS * 2)
    assert (many.status_code, many.json()["error"]["code"]) == (503, "overloaded")
    assert not engine.jobs
    bad = ask(http, task=None, questions=[{"task": "chat", "prompt": "silent"}, {"task": "chat", "prompt": "refuse"}])
    assert (bad.status_code, bad.json()["error"]["code"]) == (422, "invalid_request")
    crash = ask(http, task=None, questions=[{"task": "chat", "prompt": "silent"}, {"task": "chat", "prompt": "crash"}])
    assert (crash.status_code, crash.json()["error"]["type"]) == (500, "server_error")
    assert engine.cancelled == 2


def test_several_pictures_share_the_patches_and_keep_their_sizes(http: httpx.Client, engine: Answers) -> None:
    answer = ask(http, image=None, images=[IMAGE, LARGE]).json()
    assert [(one["width"], one["height"]) for one in answer["images"]] == [(60, 40), (240, 160)]
    small, large = answer["objects"]
    assert (small["box"], large["image"]) == ([0, 0, 60, 40], 1)
    assert large["box"] == pytest.approx([0, 0, 240, 160]) and large["mask"]["size"] == [160, 240]
    assert engine.jobs[0].images[1].size < (240, 160)
    assert ask(http, image=None, images=[IMAGE] * 4).json()["error"]["code"] == "too_many_images"
    bad = ask(http, image=None, images=[IMAGE, "AAAA"]).json()["error"]
    assert (bad["param"], bad["code"]) == ("images.1", "image_unreadable")


def test_text_only_questions_need_no_picture_and_others_do(http: httpx.Client) -> None:
    answer = ask(http, image=None, task="chat", prompt="hello").json()
    assert (answer["images"], answer["objects"], answer["width"], answer["grid"]) == ([], [], 0, [0, 0])
    assert Prediction.from_dict(answer).text == TEXT
    assert ask(http, image=None).json()["error"]["code"] == "missing_image"


def test_objects_below_the_threshold_are_left_out(http: httpx.Client) -> None:
    fields = {"image": None, "images": [IMAGE, IMAGE], "score_threshold": 0.5}
    assert len(ask(http, **fields).json()["objects"]) == 1
    names = [name for name, _ in read_events(ask(http, **fields, stream=True).text)]
    assert names.count("object") == 1


def test_masks_come_as_run_lengths_polygons_or_pngs(http: httpx.Client) -> None:
    masks = {kind: ask(http, image=LARGE, mask=kind).json()["objects"][0]["mask"] for kind in ("rle", "polygon", "png")}
    assert masks["rle"]["size"] == [160, 240]
    assert masks["polygon"] == [[0, 0, 240, 0, 240, 160, 0, 160]]
    head, _, content = masks["png"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (head, picture.mode, picture.size) == ("data:image/png;base64", "1", (240, 160))
    assert np.asarray(picture).all()


def test_a_stream_is_text_objects_and_the_whole_answer(http: httpx.Client) -> None:
    whole = ask(http, image=LARGE).json()
    response = ask(http, image=LARGE, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
    assert response.text.startswith(":") and response.headers["x-request-id"]
    (first, found, second, done) = read_events(response.text)
    assert first == ("text", {"answer": 0, "text": "one thing ("})
    assert found == ("object", {"answer": 0, "number": 0, "at": 11, "object": whole["objects"][0]})
    assert second == ("text", {"answer": 0, "text": "), and an ö."})
    assert done[0] == "done"
    for answer in (whole, done[1]):
        answer.pop("milliseconds")
    assert done[1] == whole


def test_a_stream_of_several_answers_says_which_is_which(http: httpx.Client) -> None:
    found = read_events(ask(http, task=None, questions=QUESTIONS, stream=True).text)
    texts = ["", "", ""]
    for name, data in found[:-1]:
        assert name in ("text", "object")
        texts[data["answer"]] += data.get("text", "")
    assert texts == ["one thing (), and an ö."] * 3
    name, data = found[-1]
    assert name == "done" and [each["task"] for each in data["answers"]] == ["caption", "detect", "chat"]


def test_the_first_byte_comes_at_once_and_a_comment_while_nothing_else_does(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events.merged, "__defaults__", (0.05,))
    body = {"image": IMAGE, "task": "chat", "prompt": "silent", "stream": True}
    # The engine says nothing, ever.
    with http.stream("POST", "/v1/predict", json=body) as response:
        parts = response.iter_bytes()
        sent = b""
        while sent.count(b": still here\n\n") < 4:
            sent += next(parts)
    assert b"event" not in sent


@pytest.mark.parametrize(("prompt", "code"), [("refuse", "invalid_request"), ("crash", "internal_error")])
def test_what_fails_on_the_way_is_the_last_event(http: httpx.Client, prompt: str, code: str) -> None:
    response = ask(http, task="chat", prompt=prompt, stream=True)
    ((name, data),) = read_events(response.text)
    assert (response.status_code, name, data["error"]["code"]) == (200, "error", code)
    assert "secret" not in response.text


def test_what_takes_too_long_is_told_and_cancelled(engine: Answers) -> None:
    hasty = ARGS.model_copy(update={"request_timeout_s": 0.2})
    with listening(served(engine, hasty)) as url, connect(url) as http:
        whole = ask(http, task="chat", prompt="silent")
        response = ask(http, task="chat", prompt="silent", stream=True)
    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "timeout")
    ((name, data),) = read_events(response.text)
    assert (response.status_code, name, data["error"]["code"]) == (200, "error", "timeout")
    assert engine.running == 0


def test_what_is_wrong_before_is_no_stream(http: httpx.Client) -> None:
    response = ask(http, image="AAAA", stream=True)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "image_unreadable")


def test_who_leaves_a_stream_ends_the_work_and_frees_the_place(engine: Answers) -> None:
    app = served(engine, ARGS)
    with listening(app) as url, connect(url) as http:
        body = {"image": IMAGE, "task": "chat", "prompt": "endless", "stream": True}
        for number in range(1, 6):
            with http.stream("POST", "/v1/predict", json=body) as response:
                for part in response.iter_bytes():
                    if b"event: text" in part:
                        break
            # The next one finds its place whatever the machine does.
            assert settled(lambda: engine.running == 0)
            assert engine.cancelled == number
        (desk,) = app.desks  # type: ignore[attr-defined]
        assert settled(lambda: desk.questions.taken == 0)
        assert desk.bodies.taken == 0


def test_the_client_reads_what_the_endpoint_streams(engine: Answers) -> None:
    with listening(served(engine, ARGS)) as url, Client(url, api_key="") as client:
        *events_, prediction = client.stream(encoded(), "hello")
        first, found, second = events_
    assert (first, second) == (TextPiece("one thing ("), TextPiece("), and an ö."))
    assert isinstance(found, ObjectFound) and prediction.objects == (found.object,)
    assert prediction.images == (Frame(60, 40, (2, 3)),)


def test_merged_iterators_are_all_closed_when_one_of_them_fails() -> None:
    closed = []
    last = asyncio.Event()

    async def items(number: int) -> Any:
        try:
            for value in range(3):
                if number == 2:
                    await asyncio.Event().wait()
                if number == 1 and value == 1:
                    await last.wait()
                    raise ValueError("one of them")
                yield value
        finally:
            closed.append(number)

    async def run() -> list[Any]:
        found = []
        with pytest.raises(ValueError, match="one of them"):
            async for item in merged([items(0), items(1), items(2)]):
                found.append(item)
                if len(found) == 4:
                    last.set()
        while len(closed) < 3:
            await asyncio.sleep(0.01)
        return found

    assert sorted(asyncio.run(run())) == [(0, 0), (0, 1), (0, 2), (1, 0)]
