"""Traces name the version that answered, and a tracking server that is down costs the requests nothing."""

import time
from pathlib import Path

import pytest

mlflow = pytest.importorskip("mlflow")

from padt.errors import UserError  # noqa: E402
from serve.observability.background import Background  # noqa: E402
from serve.observability.records import Observers, RequestRecord  # noqa: E402
from serve.observability.traces import TraceWriter  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402
from tests.serve.observability.parts import CountedMeters, job, outcome  # noqa: E402


def asked(writer: TraceWriter, **about: str) -> RequestRecord:
    """A request that was answered, as the observers hear of it."""
    record = RequestRecord("POST", "/v1/predict", Observers([writer]), request_id="r-1", client="alice", **about)
    record.observers.answered(record, job(), outcome())
    record.status, record.seconds["total"] = 200, 1.0
    record.observers.ended(record)
    return record


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        # Set here so that they are gone after the test, as the writer leaves its own.
        monkeypatch.setenv(name, {"MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"}.get(name, "1"))
    # A writer sets the address for its whole process, in the environment too; tests share theirs.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite://")
    yield f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(None)


def traces(uri: str, experiment: str) -> list:
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return client.search_traces([found.experiment_id]) if found else []


@pytest.mark.slow
def test_a_trace_is_tied_to_the_version_and_shows_the_stages_without_words(store: str) -> None:
    writer = TraceWriter(1.0, store, "requests", False, CountedMeters())
    asked(writer)
    writer._background.close(wait_s=120)
    (trace,) = traces(store, "requests")
    tags = {"padt.version": "padt/7", "padt.fingerprint": "abc", "padt.task": "caption", "padt.request_id": "r-1"}
    assert tags.items() <= trace.info.tags.items()
    spans = {span.name: span for span in trace.data.spans}
    assert set(spans) == {"POST /v1/predict", "caption", "queue", "prefill", "decode", "objects"}
    lengths = {name: (span.end_time_ns - span.start_time_ns) / 1e9 for name, span in spans.items()}
    assert lengths["POST /v1/predict"] == pytest.approx(1.0, abs=1e-3)
    assert lengths["decode"] == pytest.approx(0.4, abs=1e-3) and lengths["caption"] == pytest.approx(0.75, abs=1e-3)
    assert spans["caption"].parent_id == spans["POST /v1/predict"].span_id
    assert "describe" not in str(trace.to_dict()) and "a cat" not in str(trace.to_dict())

    with_words = TraceWriter(1.0, store, "words", True, CountedMeters())
    asked(with_words)
    with_words._background.close(wait_s=120)
    (trace,) = traces(store, "words")
    assert "describe this image" in str(trace.to_dict()) and "a cat" in str(trace.to_dict())


def test_a_server_that_is_down_costs_requests_nothing_and_is_counted(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meters = CountedMeters()
    writer = TraceWriter(1.0, "http://127.0.0.1:9", "requests", False, meters)
    # Its library tries for minutes: whoever waited for it would not come to an end.
    for _ in range(100):
        asked(writer)
    assert meters.total("padt_left_out_total", observer="traces") >= 100 - 16 - 1
    # It must not set the address of a later test.
    while not writer._background._items.empty():
        writer._background._items.get_nowait()
    writer._background.close(wait_s=60)
    assert not writer._background._thread.is_alive()


def test_a_request_that_was_not_chosen_has_no_trace(store: str) -> None:
    writer = TraceWriter(1e-9, store, "requests", False, CountedMeters())
    asked(writer)
    assert writer._background._thread is None


def test_what_traces_need_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="trace_uri or MLFLOW_TRACKING_URI"):
        TraceWriter(1.0, "", "requests", False, CountedMeters())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        TraceWriter(1.0, "http://127.0.0.1:9", "requests", False, CountedMeters())
    with pytest.raises(ValueError, match="sample_folder"):
        ServerArgs(sample_share=0.5)


def test_work_that_fails_or_finds_no_room_is_counted_and_goes_on() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.05)
        if item == 1:
            raise OSError("the disk is full")
        done.append(item)

    meters = CountedMeters()
    background: Background[int] = Background("test", work, meters, most=3)
    for number in range(8):
        background.put(number)
    background.close(wait_s=10)
    assert done == sorted(done) and 2 <= len(done) < 7
    assert meters.total("padt_left_out_total", observer="test") == 8 - len(done)
