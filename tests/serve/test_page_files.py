"""What a browser is sent at /: all files, tied down by headers, and nothing that comes from outside."""

import re
from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("ray.serve")

from serve.page import FILES  # noqa: E402
from serve.settings import ServerArgs  # noqa: E402
from tests.serve.fake_engine import Answers  # noqa: E402
from tests.serve.in_process import connect, listening, served  # noqa: E402


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    keys = "ana:0123456789abcdef"
    with listening(served(Answers(), ServerArgs(), keys)) as url, connect(url) as client:
        yield client


@pytest.mark.parametrize("path", FILES)
def test_every_file_comes_without_a_key_under_a_strict_policy(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200 and answer.content
    kinds = {"css": "text/css", "png": "image/png", "js": "javascript", "html": "text/html"}
    assert kinds[FILES[path].rpartition(".")[2]] in answer.headers["content-type"]
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and again.headers["content-security-policy"]
    assert client.head(path).headers["content-length"] == str(len(answer.content))


def test_what_the_page_names_is_there_and_nothing_is_outside(client: httpx.Client) -> None:
    page = client.get("/").text
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', page)) - {"docs"}
    for script in ("page.js", "drawing.js", "picture.js", "text.js", "masks.js"):
        named |= set(re.findall(r'from "\./([^"]+)"', client.get(f"/{script}").text))
    inside = {f"/{name}" for name in named if not name.startswith("data:")}
    assert inside == set(FILES) - {"/"}
    for path in FILES:
        text = "" if path.endswith(".png") else client.get(path).text
        assert set(re.findall(r"https?://[^'\"]+", text)) <= {"http://www.w3.org/2000/svg"}
        # What people or a model wrote can become text only.
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_the_samples_are_small_and_nothing_else_of_the_folder_is_served(client: httpx.Client) -> None:
    assert sum(len(client.get(path).content) for path in FILES if path.startswith("/samples/")) < 100_000
    for path in ("/index.html", "/__init__.py", "/samples/", "/samples/..%2fpage.js", "/samples/%2e%2e/__init__.py"):
        assert client.get(path).status_code in (401, 404)
