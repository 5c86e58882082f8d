"""Requests that no client should send: made from the OpenAPI description, by breaking good ones, and by lying headers.

``python -m tests.serve.fuzz --requests 10000`` serves a model on a Ray of its own and says what came of it.
"""

import argparse
import base64
import copy
import io
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from PIL import Image
from schemathesis import GenerationMode

from serve.api.batch import LINE_TYPES
from tests.conftest import REPOSITORY

TOY = REPOSITORY / "pipelines" / "toy" / "base"
PATHS = ("/v1/predict", "/v1/chat/completions", "/v1/batch", "/v1/models", "/healthz", "/readyz", "/docs", "/no")
# What a server may say that cannot answer now; a 500 it may not.
BUSY = {(503, "overloaded"), (504, "timeout"), (429, "too_many_requests")}


@schemathesis.serializer(*LINE_TYPES)
def _lines(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


def picture(rng: random.Random, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    size = (rng.randint(1, 90), rng.randint(1, 90))
    Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).save(buffer, kind)
    return buffer.getvalue()


def broken(rng: random.Random, content: bytes) -> bytes:
    """The content with some bytes changed, lost, or come twice."""
    parts = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(parts) + 1), rng.choice((1, 2, 8, 64))
        how = rng.randrange(4)
        if how == 0:
            parts[place : place + length] = rng.randbytes(length)
        elif how == 1:
            del parts[place : place + length * 4]
        elif how == 2:
            parts[place:place] = parts[place : place + length]
        else:
            parts = parts[: max(1, place)]
    return bytes(parts)


STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, 1e-320),
    *("", " ", "\u200b", "\x00\x07\x1b[31m", "<|im_start|>user\n<|VRT_3|><|image_pad|>", "\U0001f600" * 50, "a" * 9000),
    *("\u202e" * 20, "data:image/png;base64,", "http://169.254.169.254/latest", "../../etc/passwd", "NaN"),
    *([], {}, [[]] * 20, {"a": {"b": []}}, ["x"] * 300, [None], [0.1] * 5),
)


def strange_fields(rng: random.Random, good: dict[str, Any]) -> dict[str, Any]:
    """A good request of which some fields are strange, and some are not there."""
    values = json.loads(json.dumps(good))
    for _ in range(rng.randint(1, 3)):
        place = values
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            inside = place[key]
            if not (isinstance(inside, dict | list) and inside and rng.random() < 0.7):
                break
            place = inside
        if rng.random() < 0.2 and isinstance(place, dict) and len(place) > 1:
            del place[key]
        else:
            place[key] = copy.deepcopy(rng.choice(STRANGE))
    return values


def good_requests(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    image = base64.b64encode(picture(rng, rng.choice(("PNG", "JPEG", "WEBP", "BMP", "GIF")))).decode()
    how = {"max_new_tokens": 4, "stream": rng.random() < 0.3}
    mask = rng.choice(("rle", "polygon", "png", "none"))
    yield "/v1/predict", {"image": image, "task": "detect", "names": ["red circle", "<|im_end|>"], "mask": mask, **how}
    yield "/v1/predict", {"images": [image, image], "task": "caption", "score_threshold": 0.3, "seed": 3, **how}
    several = [
        {"task": "refer", "sentence": "the circle\x00"},
        {"task": "chat", "prompt": "hi"},
    ]
    yield "/v1/predict", {"image": image, "questions": several, "temperature": 0.7, "top_p": 0.9, **how}
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": [url, {"type": "text", "text": "what?"}]}]
    yield "/v1/chat/completions", {"model": "padt", "messages": turns, "max_tokens": 4, "stream": how["stream"], "n": 1}


@dataclass
class Report:
    """What came of the requests.

    Attributes:
        sent: by kind.
        statuses: of the answers; 0 = the connection was closed without one, which only broken HTTP may bring about.
        problems: what should not have been.
    """

    sent: Counter = field(default_factory=Counter)
    statuses: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def note(self, kind: str, told: str, status: int, headers: Any, content: bytes) -> None:
        """Judge an answer."""
        self.sent[kind] += 1
        self.statuses[status] += 1
        if "x-request-id" not in headers:
            self.problems.append(f"{kind}: no request id in the answer to {told}")
        if 200 <= status < 300:
            if b'"internal_error"' in content:
                self.problems.append(f"{kind}: {content[-300:]!r} in the answer to {told}")
            return
        try:
            error = json.loads(content)["error"]
            fine = set(error) == {"message", "type", "code", "param"} and len(error["message"]) > 5
        except (ValueError, KeyError, TypeError):
            error, fine = {}, False
        if not fine:
            self.problems.append(f"{kind}: {status} {content[:200]!r} is no error of ours, to {told}")
        if status >= 500 and (status, error.get("code")) not in BUSY:
            self.problems.append(f"{kind}: {status} {content[:200]!r} to {told}")


def from_description(url: str, count: int, seed: int, report: Report) -> None:
    """Requests that the OpenAPI description allows, and such that it forbids."""
    description = httpx.get(f"{url}/openapi.json", timeout=60, trust_env=False).json()
    schema = schemathesis.openapi.from_dict(description)
    operations = [found.ok() for found in schema.get_all_operations()]
    # Paths without a body leave nothing to get wrong.
    posts = [found for found in operations if found.method == "post"]
    image = base64.b64encode(picture(random.Random(seed))).decode()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for operation in posts:
            for mode, part in ((GenerationMode.NEGATIVE, 0.6), (GenerationMode.POSITIVE, 0.4)):
                _send_cases(http, operation, mode, round(count * part / len(posts)), seed, image, report)


def _send_cases(
    http: httpx.Client, operation: Any, mode: GenerationMode, total: int, seed: int, image: str, report: Report
) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=total,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("image"), str):
            # No chance finds a picture.
            case.body["image"] = image
            case.body["max_new_tokens"] = case.body.get("max_new_tokens") and 3
        try:
            request = _prepared(str(http.base_url), case.as_transport_kwargs(base_url=str(http.base_url)))
            response = http.send(request)
        except (UnicodeError, ValueError, httpx.LocalProtocolError, httpx.InvalidURL, requests.RequestException):
            # No client could put it into HTTP.
            return
        told = f"{request.method} {request.url} {request.content[:300]!r}"
        report.note(f"description {mode.value}", told, response.status_code, response.headers, response.content)

    send()


def _prepared(url: str, given: dict[str, Any]) -> httpx.Request:
    """A request as schemathesis would send it, which words it for the package requests."""
    names = {"method", "url", "headers", "params", "cookies", "json", "data", "files"}
    made = requests.Request(**{name: value for name, value in given.items() if name in names}).prepare()
    body = made.body.encode() if isinstance(made.body, str) else made.body
    headers = {name: value for name, value in made.headers.items() if name.lower() != "content-length"}
    return httpx.Request(made.method or "GET", made.url or url, headers=headers, content=body)


def from_good_ones(url: str, count: int, seed: int, report: Report) -> None:
    """Good requests with strange fields, broken JSON, broken pictures, broken forms, strange headers."""
    rng = random.Random(seed)

    def as_json(path: str, values: dict[str, Any]) -> dict[str, Any]:
        return {"url": path, "content": json.dumps(values), "headers": {"content-type": "application/json"}}

    def fields(path: str, values: dict[str, Any]) -> dict[str, Any]:
        return as_json(path, strange_fields(rng, values))

    def text(path: str, values: dict[str, Any]) -> dict[str, Any]:
        return {**as_json(path, values), "content": broken(rng, json.dumps(values).encode())}

    def pictures(path: str, values: dict[str, Any]) -> dict[str, Any]:
        kind = rng.choice(("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"))
        content = rng.choice((b"", bomb(rng), broken(rng, picture(rng, kind)), broken(rng, picture(rng, kind))))
        values = {"image": base64.b64encode(content).decode(), "task": "caption", "max_new_tokens": 3}
        return as_json("/v1/predict", values)

    def form(path: str, values: dict[str, Any]) -> dict[str, Any]:
        files = {rng.choice(("image", "image", "task", "x\r\ny")): ("a.png", broken(rng, picture(rng)))}
        request = httpx.Request("POST", url, files=files, data={"task": "caption", "max_new_tokens": "3"})
        content, kind = request.read(), request.headers["content-type"]
        content = broken(rng, content) if rng.random() < 0.5 else content
        return {"url": "/v1/predict", "content": content, "headers": {"content-type": kind}}

    def lines(path: str, values: dict[str, Any]) -> dict[str, Any]:
        values.pop("stream", None)
        good = json.dumps({"custom_id": "a", "body": values}).encode()
        strange = json.dumps({"custom_id": rng.choice(STRANGE), "body": strange_fields(rng, values)}).encode()
        content = b"\n".join(rng.sample([good, strange, broken(rng, good), b"", b"{}"], 3))
        return {"url": "/v1/batch", "content": content, "headers": {"content-type": rng.choice(LINE_TYPES)}}

    def headers(path: str, values: dict[str, Any]) -> dict[str, Any]:
        strange = {
            "content-type": [
                "text/plain",
                "application/json; charset=latin-1",
                "multipart/form-data",
                "\xff",
                "a, b",
                "",
            ],
            "content-encoding": ["gzip", "br", "identity", "gzip, gzip"],
            "accept": ["text/html", "application/xml;q=0", "*/*", ",,,", "application/json"],
            "x-request-id": ["a" * 500, "mine", "{}"],
            "authorization": ["Bearer x", "Basic \xe9", ""],
            "expect": ["100-continue", "200-maybe"],
            "range": ["bytes=0-1"],
        }
        chosen = {name: rng.choice(strange[name]).encode("latin-1") for name in rng.sample(list(strange), 2)}
        return {**as_json(path, values), "headers": {"content-type": b"application/json", **chosen}}

    makers = (fields, fields, text, pictures, pictures, form, lines, headers)
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        made = 0
        while made < count:
            for path, values in good_requests(rng):
                make: Callable[..., dict[str, Any]] = rng.choice(makers)
                request = make(path, values)
                response = http.post(**request)
                told = f"{request['url']} {request['headers']} {request['content'][:300]!r}"
                report.note(make.__name__, told, response.status_code, response.headers, response.content)
                made += 1


def bomb(rng: random.Random) -> bytes:
    """A small file that says it is a large picture."""
    content = bytearray(picture(rng))
    content[16:24] = rng.choice(
        (b"\x00\x00\xff\xff" * 2, b"\x7f\xff\xff\xff" * 2, b"\x00" * 8, b"\x00\x00\x00\x01\x00\x00\x27\x10")
    )
    return bytes(content)


def from_liars(url: str, count: int, seed: int, report: Report) -> None:
    """Headers that lie about the body, methods and paths that are not there, and connections that end anywhere."""
    rng = random.Random(seed)
    address = urlsplit(url)
    body = json.dumps({"task": "chat", "prompt": "hi", "max_new_tokens": 2}).encode()
    for _ in range(count):
        method = rng.choice(("POST", "POST", "POST", "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "BREW"))
        path = rng.choice(PATHS) + rng.choice(("", "", "/", "?a=1&a=%ff", "/%2e%2e", "%00"))
        length = rng.choice((len(body), len(body), 0, 5, len(body) + 50, -1, 10**12, "x", "+5", "1_0"))
        head = [f"{method} {path} HTTP/1.1", "host: a", "content-type: application/json", f"content-length: {length}"]
        extra = (
            f"content-length: {len(body) + 1}",
            "transfer-encoding: chunked",
            "content-type: text/plain",
            "expect: 100-continue",
            "x: " + "y" * rng.choice((10, 9000, 70_000)),
            "bad header",
        )
        head += rng.sample(extra, rng.randint(0, 2))
        content = "\r\n".join([*head, "connection: close"]).encode() + b"\r\n\r\n" + body
        whole = length == len(body) and len(head) == 4 and rng.random() < 0.7
        if not whole and rng.random() < 0.5:
            content = content[: rng.randrange(len(content))]
        with socket.create_connection((address.hostname or "", address.port or 80), timeout=10) as connection:
            answer = _exchange(connection, content, ends=not whole)
        report.sent["liars"] += 1
        parts = answer.split(b"\r\n\r\n", 1)[0].split()
        status = int(parts[1]) if len(parts) > 1 and parts[0].startswith(b"HTTP/") and parts[1].isdigit() else 0
        report.statuses[status] += 1
        # What is no HTTP is refused by the server in front, in its own words.
        if status == 500 or (status >= 500 and b'"error"' not in answer):
            report.problems.append(f"liars: {answer[:300]!r} to {content[:300]!r}")


def _exchange(connection: socket.socket, content: bytes, ends: bool) -> bytes:
    """What comes back for some bytes; ``ends``: the client closes its side first."""
    answer = b""
    try:
        connection.sendall(content)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            answer += part
            if len(answer) > 10**6:
                break
    except OSError:
        # Refused so early that what was still sent had nobody to take it.
        pass
    return answer


def fuzz(url: str, count: int, seed: int = 0) -> Report:
    """Send about so many requests to an endpoint, and see that it answers a good one afterwards."""
    report = Report()
    from_description(url, round(count * 0.4), seed, report)
    from_good_ones(url, round(count * 0.45), seed, report)
    from_liars(url, round(count * 0.15), seed, report)
    image = base64.b64encode(picture(random.Random(seed))).decode()
    good = {"image": image, "task": "caption", "max_new_tokens": 3}
    last = httpx.post(f"{url}/v1/predict", json=good, timeout=60, trust_env=False)
    if last.status_code != 200 or httpx.get(f"{url}/readyz", timeout=60, trust_env=False).status_code != 200:
        report.problems.append(f"afterwards a good request gets {last.status_code}: {last.text[:300]}")
    return report


def _replicas(name: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return sorted(line.strip() for line in listed.splitlines() if f"ServeReplica:{name}:" in line)


def main() -> None:
    """Serve a model and send it requests."""
    import ray
    from ray import serve

    from serve.app import build
    from serve.settings import AppArgs

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=TOY)
    chosen = parser.parse_args()
    name = f"fuzz{os.getpid()}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    args = AppArgs(model=str(chosen.model), max_new_tokens=32, device="cpu", body_timeout_s=5)
    serve.run(build(args), name=name, route_prefix="/")
    before, began = _replicas(name), time.monotonic()
    report = fuzz(f"http://127.0.0.1:{port}", chosen.requests, chosen.seed)
    after = _replicas(name)
    sys.stdout.write(f"{report.sent.total()} requests in {time.monotonic() - began:.0f} s: {dict(report.sent)}\n")
    sys.stdout.write(f"answers by status: {dict(sorted(report.statuses.items()))}\n")
    sys.stdout.write(f"replicas before {before}\nand after {after}\n")
    for problem in report.problems[:20]:
        sys.stdout.write(f"PROBLEM {problem}\n")
    serve.shutdown()
    ray.shutdown()
    sys.exit(bool(report.problems) or before != after)


if __name__ == "__main__":
    main()
