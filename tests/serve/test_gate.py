"""Who may ask: keys that nobody can guess, strangers, pages of elsewhere, and no key that takes all places."""

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve")

from starlette.responses import JSONResponse  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402
from starlette.types import Receive, Scope, Send  # noqa: E402

from padt.errors import UserError  # noqa: E402
from serve.api.errors import RequestError  # noqa: E402
from serve.ingress.admission import LONGEST_WAIT_S, Places  # noqa: E402
from serve.ingress.gate import Gate  # noqa: E402
from serve.ingress.keys import KeyRing, parse_keys  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"


async def behind(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(scope["state"])(scope, receive, send)


def gated(keys: KeyRing | None = None, peer: str = "203.0.113.9", **settings: Any) -> TestClient:
    gate = Gate(behind, ServerArgs(**settings), keys or KeyRing(None, {}))
    return TestClient(gate, client=(peer, 50_000))


@pytest.fixture
def ring() -> KeyRing:
    return KeyRing(None, {"PADT_API_KEYS": f"alice:{ALICE},bob:{BOB}"})


def test_a_key_opens_and_names_its_owner(ring: KeyRing) -> None:
    http = gated(ring)
    assert http.post("/v1/predict", headers={"authorization": f"Bearer {BOB}"}).json()["client"] == "bob"
    assert http.post("/v1/predict", headers={"authorization": f"bearer  {ALICE} "}).json()["client"] == "alice"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", f"Basic {ALICE}", f"Bearer {ALICE}x", f"Bearer {ALICE[:-1]}", "Bearer \xff\xfe"]
)
def test_without_a_valid_key_nothing_is_answered(ring: KeyRing, header: str) -> None:
    answer = gated(ring).post("/v1/predict", headers={"authorization": header.encode("latin-1")} if header else {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer" and answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/docs", "/openapi.json", "/page.js"])
def test_health_and_page_need_no_key(ring: KeyRing, path: str) -> None:
    assert gated(ring).get(path).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/v1/batch", "/nothing", "/healthz/../v1/models", "/Docs"])
def test_everything_else_needs_one(ring: KeyRing, path: str) -> None:
    assert gated(ring).get(path).status_code == 401


def test_keys_of_a_file_change_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("serve.ingress.keys.time.monotonic", lambda: now)
    path = tmp_path / "keys"
    path.write_text(f"# people\nalice: {ALICE}\n\n")
    ring = KeyRing(str(path), {})
    assert ring.name_of(f"Bearer {ALICE}") == "alice"
    path.write_text(f"bob: {BOB}\n")
    os.utime(path, ns=(1, 1))
    now += 2
    assert (ring.name_of(f"Bearer {ALICE}"), ring.name_of(f"Bearer {BOB}")) == (None, "bob")
    # Half an edit, or no file, locks nobody out and lets nobody in.
    path.write_text("bob")
    now += 2
    assert ring.names == ["bob"]
    path.unlink()
    now += 2
    assert (ring.name_of(f"Bearer {BOB}"), ring.needed) == ("bob", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice", "write NAME:KEY"),
        (f"al ice:{ALICE}", "write NAME:KEY"),
        ("alice:short", "at least 16 characters"),
        (f"alice:{ALICE}\nalice:{BOB}", "comes twice"),
        (f"alice:{ALICE}\nbob:{ALICE}", "comes twice"),
        (f"ok:{BOB}\nalice:{ALICE} {ALICE}", "entry 2"),
    ],
)
def test_keys_that_cannot_be_meant_are_refused_without_being_quoted(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_keys(text, "keys")
    assert ALICE not in str(caught.value) and "short" not in str(caught.value)


def test_a_file_of_keys_that_is_not_there_or_empty_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        KeyRing(str(tmp_path / "none"), {})
    (tmp_path / "empty").write_text("# nobody\n")
    with pytest.raises(UserError, match="holds no key"):
        KeyRing(str(tmp_path / "empty"), {})


def test_without_keys_only_this_machine_is_answered() -> None:
    for peer in ("127.0.0.1", "::1"):
        assert gated(peer=peer).get("/v1/models").status_code == 200
    answer = gated().get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "no_keys")
    assert gated(peer="unknown").get("/v1/models").status_code == 403
    assert gated().get("/healthz").status_code == 200
    assert gated(allow_anyone=True).get("/v1/models").status_code == 200


@pytest.mark.parametrize(("own", "kept"), [("a-1:b", True), ("x" * 200, False), ("a b", False), ("", False)])
def test_a_request_keeps_its_id_if_it_is_sane(own: str, kept: bool) -> None:
    answer = gated(peer="127.0.0.1").get("/v1/models", headers={"x-request-id": own})
    assert (answer.headers["x-request-id"] == own) is kept
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_pages_of_elsewhere_are_let_in_by_name_only(ring: KeyRing) -> None:
    ahead = {"origin": "https://app.example", "access-control-request-method": "POST"}
    closed = gated(ring).options("/v1/predict", headers=ahead)
    assert "access-control-allow-origin" not in closed.headers
    http = gated(ring, allow_origins=("https://app.example",))
    asked = http.options("/v1/predict", headers={**ahead, "access-control-request-headers": "authorization"})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://app.example")
    other = http.options("/v1/predict", headers={**ahead, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert http.post("/v1/predict", headers={"origin": "https://app.example"}).status_code == 401


def test_one_key_never_holds_all_places() -> None:
    places = Places(4, retry_after_s=2, share=0.5)
    with ExitStack() as held:
        held.enter_context(places.one("greedy"))
        held.enter_context(places.one("greedy"))
        with pytest.raises(RequestError) as caught, places.one("greedy"):
            pass
        assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (429, "too_many_requests", 2)
        held.enter_context(places.one("other"))
        held.enter_context(places.one("third"))
        with pytest.raises(RequestError) as caught, places.one("fourth"):
            pass
        assert (caught.value.status, places.taken) == (503, 4)
    assert places.taken == 0
    with places.one("greedy"), places.one("greedy"):
        pass


def test_who_is_refused_is_told_how_long_answers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("serve.ingress.admission.time.monotonic", lambda: now)
    places = Places(1, retry_after_s=1)
    with places.one():
        now += 20
    assert places.retry_after_s == 10
    for _ in range(50):
        with places.one():
            now += 1000
    assert places.retry_after_s == LONGEST_WAIT_S


def test_lifespan_passes() -> None:
    passed: list[str] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(Gate(inner, ServerArgs(), KeyRing(None, {}))({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan"]
