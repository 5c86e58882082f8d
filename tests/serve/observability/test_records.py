"""Each request has one record, whatever becomes of it, and no observer can harm it."""

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request as HttpRequest  # noqa: E402
from starlette.responses import JSONResponse, StreamingResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from padt.errors import UserError  # noqa: E402
from padt.inference.requests import detect_request, refer_request  # noqa: E402
from serve.api.errors import error_response  # noqa: E402
from serve.messages import Outcome  # noqa: E402
from serve.observability import records  # noqa: E402
from serve.observability.metrics import METRICS, CountRequests  # noqa: E402
from serve.observability.observers import observers_of  # noqa: E402
from serve.observability.recorder import Recorder  # noqa: E402
from serve.observability.records import MOST_KEPT, Observer, Observers, RequestRecord  # noqa: E402
from serve.observability.request_log import RequestLog, line  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402
from tests.serve.observability.parts import CountedMeters, job, outcome  # noqa: E402


class Remember(Observer):
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def ended(self, record: RequestRecord) -> None:
        self.records.append(record)


class Fail(Observer):
    def answered(self, *_: Any) -> None:
        raise RuntimeError("the observer's own trouble")

    def ended(self, record: RequestRecord) -> None:
        raise RuntimeError("the observer's own trouble")


async def predict(request: HttpRequest) -> JSONResponse:
    request.state.request_id, request.state.client = "r-7", "alice"
    with records.timed("preprocess"):
        await asyncio.sleep(0.02)

    def in_thread() -> None:
        with records.timed("encode"):
            records.answered(job(), outcome())

    await asyncio.to_thread(in_thread)
    return JSONResponse({})


async def stream(request: HttpRequest) -> StreamingResponse:
    async def pieces():
        yield b"one"
        records.answered(job(), outcome())
        records.failed("engine_lost")
        yield b"two"

    return StreamingResponse(pieces())


async def refuse(request: HttpRequest):
    return error_response(429, "too_many", "Wait a little.")


async def crash(request: HttpRequest):
    raise RuntimeError("nobody foresaw this")


def served(*observers: Observer) -> TestClient:
    paths = {"/v1/predict": predict, "/stream": stream, "/refuse": refuse, "/crash": crash, "/healthz": refuse}
    app = Starlette(routes=[Route(path, function) for path, function in paths.items()])
    return TestClient(Recorder(app, Observers(observers)), raise_server_exceptions=False)


def record_of(path: str) -> RequestRecord:
    remember = Remember()
    served(remember).get(path)
    (record,) = remember.records
    return record


def test_a_record_holds_who_asked_what_and_how_long_it_took() -> None:
    record = record_of("/v1/predict")
    assert (record.method, record.path, record.status, record.code) == ("GET", "/v1/predict", 200, "")
    assert (record.request_id, record.client, record.task, record.version) == ("r-7", "alice", "caption", "padt/7")
    assert 0.02 <= record.seconds["preprocess"] < record.seconds["total"]
    (answer,) = record.answers
    assert (answer.result, answer.prompt_tokens, answer.completion_tokens, answer.objects) == ("stop", 20, 8, 1)


def test_errors_have_their_code_before_and_within_a_stream() -> None:
    assert (record_of("/refuse").status, record_of("/refuse").code) == (429, "too_many")
    assert (record_of("/stream").status, record_of("/stream").code) == (200, "engine_lost")
    assert (record_of("/crash").status, record_of("/crash").code) == (500, "internal_error")
    assert record_of("/nothing").status == 404


def test_a_client_that_goes_away_leaves_a_record() -> None:
    remember = Remember()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    async def gone() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": []}
        task = asyncio.create_task(Recorder(slow, Observers([remember]))(scope, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(gone())
    assert [(record.status, record.code) for record in remember.records] == [(499, "disconnected")]


def test_a_stream_whose_client_goes_away_says_so() -> None:
    remember = Remember()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"

    async def send(_: Any) -> None:
        pass

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": []}
    asyncio.run(Recorder(app, Observers([remember]))(scope, receive, send))
    (record,) = remember.records
    assert (record.status, record.code) == (200, "disconnected")


def test_health_checks_are_not_told_of() -> None:
    remember = Remember()
    served(remember).get("/healthz")
    assert not remember.records


def test_an_observer_that_fails_harms_neither_the_request_nor_the_others(caplog: pytest.LogCaptureFixture) -> None:
    remember = Remember()
    logging.getLogger("ray.serve").propagate = True
    assert served(Fail(), remember).get("/v1/predict").status_code == 200
    assert len(remember.records) == 1
    assert "Fail failed over a request" in caplog.text


def test_two_requests_at_a_time_do_not_mix() -> None:
    remember = Remember()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["request_id"] = scope["path"]
        await asyncio.sleep(0.01 if scope["path"] == "/a" else 0.0)
        records.answered(job(request_id=scope["path"]), outcome(text=scope["path"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def both() -> None:
        async def send(_: Any) -> None:
            pass

        recorder = Recorder(app, Observers([remember]))
        scopes = [{"type": "http", "method": "GET", "path": path, "headers": []} for path in ("/a", "/b")]
        await asyncio.gather(*(recorder(scope, None, send) for scope in scopes))  # type: ignore[arg-type]

    asyncio.run(both())
    assert [(record.request_id, [a.text for a in record.answers]) for record in remember.records] == [
        ("/b", ["/b"]),
        ("/a", ["/a"]),
    ]


def test_requests_are_counted_by_task_status_and_version() -> None:
    meters = CountedMeters()
    client = served(CountRequests(meters))
    client.get("/v1/predict")
    client.get("/v1/predict")
    client.get("/refuse")
    client.get("/made-up-by-a-stranger")
    assert meters.total("padt_requests_total", task="caption", status="200", version="padt/7") == 2
    assert meters.total("padt_requests_total", task="", status="429", path="other") == 1
    assert meters.total("padt_requests_total", status="404", path="other") == 1
    assert meters.total("padt_completion_tokens_total", task="caption", version="padt/7") == 16
    assert meters.total("padt_objects_total") == 2
    assert meters.total("padt_stage_seconds", stage="queue") == pytest.approx(0.2)
    assert meters.total("padt_stage_seconds", stage="decode") == pytest.approx(0.8)
    assert {about["stage"] for name, _, about in meters.seen if name == "padt_stage_seconds"} == {
        *("preprocess", "queue", "prefill", "decode", "objects", "encode")
    }


def test_answers_that_did_not_come_are_counted_as_such() -> None:
    meters = CountedMeters()
    record = RequestRecord("POST", "/v1/predict", Observers([CountRequests(meters)]))
    record.observers.answered(record, job(), Outcome(trouble="busy", message="full", version="padt/7"))
    record.observers.answered(record, job(detect_request(["cat"])), outcome(reason="length"))
    assert meters.total("padt_answers_total", result="busy", task="caption") == 1
    assert meters.total("padt_answers_total", result="length", task="detect") == 1
    assert (record.task, record.version) == ("several", "padt/7")
    assert all(name == "padt_answers_total" for name, _, about in meters.seen if about["task"] == "caption")


def test_refining_is_a_stage_of_those_answers_that_were_refined() -> None:
    meters = CountedMeters()
    record = RequestRecord("POST", "/v1/predict", Observers([CountRequests(meters)]))
    record.observers.answered(record, job(), outcome())
    record.observers.answered(record, job(), replace(outcome(), times=replace(outcome().times, refine=0.25)))
    refined = [value for name, value, about in meters.seen if about.get("stage") == "refine"]
    assert refined == [0.25] and record.engine.refine == 0.25
    assert line(record)["milliseconds"]["refine"] == 250


def test_a_batch_of_any_length_is_summed_up_and_not_kept() -> None:
    record = RequestRecord("POST", "/v1/batch", Observers())
    for number in range(1000):
        record.observers.answered(record, job(), outcome(completion_tokens=number))
    assert (record.count, record.completion_tokens, len(record.answers)) == (1000, 499_500, MOST_KEPT)
    assert record.engine.decode == pytest.approx(400)


def test_every_row_of_the_table_is_whole() -> None:
    for metric in METRICS.values():
        assert metric.help.endswith("."), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name


def test_the_log_has_one_line_of_json_a_request_and_no_words(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    log = RequestLog(str(path))
    client = served(log)
    client.get("/v1/predict")
    # As logrotate does.
    path.rename(tmp_path / "old.jsonl")
    client.get("/refuse")
    log.close()
    (first,) = map(json.loads, (tmp_path / "old.jsonl").read_text().splitlines())
    (second,) = map(json.loads, path.read_text().splitlines())
    assert {"request_id": "r-7", "key": "alice", "task": "caption", "status": 200, "code": ""}.items() <= first.items()
    assert {"prompt_tokens": 20, "completion_tokens": 8, "objects": 1, "version": "padt/7"}.items() <= first.items()
    assert first["milliseconds"]["queue"] == 100.0 and first["milliseconds"]["engine"] == 650.0
    assert first["milliseconds"]["total"] >= first["milliseconds"]["preprocess"] >= 20
    assert (second["status"], second["code"]) == (429, "too_many")
    assert "cat" not in json.dumps(first) and "describe" not in json.dumps(first)


def test_a_log_that_cannot_be_written_is_told_of_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="request_log .* cannot be written"):
        RequestLog(str(tmp_path / "nothing" / "requests.jsonl"))


def test_words_are_logged_where_that_is_asked_for(tmp_path: Path) -> None:
    log = RequestLog(str(tmp_path / "requests.jsonl"), text=True)
    record = RequestRecord("POST", "/v1/predict", Observers([log]))
    record.observers.answered(record, job(refer_request('the "red" cät')), outcome())
    record.observers.ended(record)
    log.close()
    (values,) = map(json.loads, (tmp_path / "requests.jsonl").read_text("utf-8").splitlines())
    assert 'the "red" cät' in values["prompts"][0] and values["texts"] == ["a cat <|VRT_0|><|VRT_1|>."]


def test_by_default_nothing_is_kept_or_traced() -> None:
    assert [type(each).__name__ for each in observers_of(ServerArgs(), CountedMeters())._observers] == [
        "CountRequests",
        "RequestLog",
    ]


def test_steps_of_an_engine_are_counted_as_they_were() -> None:
    pytest.importorskip("torch")
    from padt.inference.engine import Engine, EngineLimits
    from padt.inference.requests import GenerationSettings, caption_request
    from serve.observability.metrics import CountSteps
    from tests.padt.tiny import tiny_model

    meters = CountedMeters()
    count = CountSteps(meters, "padt/7")
    engine = Engine(tiny_model(), EngineLimits(max_rows=2, max_length=256), on_step=count)
    count.watch(engine)
    picture = job().images[0]
    for _ in range(3):
        engine.submit(picture, caption_request(), GenerationSettings(max_new_tokens=6))
    engine.run_until_idle()
    rows = [value for name, value, _ in meters.seen if name == "padt_step_rows"]
    assert len(rows) == engine.steps and set(rows) <= {1, 2} and sum(rows) >= 3
    assert all(value > 0 for name, value, _ in meters.seen if name == "padt_step_seconds")
    assert [value for name, value, _ in meters.seen if name == "padt_running_rows"][-1] == 0
    assert [value for name, value, _ in meters.seen if name == "padt_waiting_rows"][-1] == 0
    # The second and the third question find the picture that the first one brought.
    assert meters.total("padt_cache_hits_total", version="padt/7") == engine.cache.hits > 0
    assert meters.total("padt_cache_misses_total", version="padt/7") == engine.cache.misses > 0
