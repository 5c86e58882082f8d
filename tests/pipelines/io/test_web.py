"""Files on web servers: what is tried again and what is not, and files that come in parts."""

import gzip
import zipfile
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from padt.errors import ImageError, UserError
from pipelines.io import transport, web
from pipelines.io.images import read_image
from pipelines.io.reading import hash_file, open_input
from pipelines.prepare.options import PrepareOptions
from tests.pipelines.coco_files import prepare_here, write_coco
from tests.pipelines.web_server import serving


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(transport, "_FIRST_PAUSE", 0.01)
    with serving(tmp_path) as web_:
        yield web_


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that were waited, without waiting."""
    waited = []
    monkeypatch.setattr(transport.time, "sleep", waited.append)
    return waited


def _text(handle):
    with handle:
        return handle.read()


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_codes_that_pass_are_tried_again(tmp_path, server, code):
    (tmp_path / "a.bin").write_bytes(b"12345")
    for read in (read_image, lambda url: _text(open_input(url, "File"))):
        server.moods += [code, code]
        assert read(f"{server.url}/a.bin") == b"12345"
        assert not server.moods
    server.moods += [code]
    assert hash_file(f"{server.url}/a.bin", "File")[0] == 5


@pytest.mark.parametrize("code", [401, 403])
def test_a_server_that_refuses_stops_the_run_and_its_keys_are_not_told(tmp_path, server, code):
    (tmp_path / "a.bin").write_bytes(b"12345")
    for read in (read_image, lambda url: open_input(url, "File"), lambda url: hash_file(url, "File")):
        server.moods += [code]
        with pytest.raises(UserError, match=rf"/a\.bin is refused \({code} .*signed for a time") as caught:
            read(f"{server.url}/a.bin?key=secret")
        assert not isinstance(caught.value, ImageError) and "secret" not in str(caught.value)
    assert len(server.asked) == 3


@pytest.mark.parametrize("code", [404, 410])
def test_what_is_not_there_is_that_image_only_and_is_asked_for_once(server, code):
    server.moods += [code]
    with pytest.raises(ImageError, match="does not exist") as caught:
        read_image(f"{server.url}/a.jpg")
    assert caught.value.reason == "image_missing" and len(server.asked) == 1
    with pytest.raises(UserError, match=r"File http.*/a\.json is not a file"):
        open_input(f"{server.url}/a.json", "File")


def test_a_server_that_stays_down_is_an_error_after_some_tries(server, pauses):
    server.moods += [503] * 5
    with pytest.raises(UserError, match=r"a\.jpg could not be read in 5 tries \(503 Service Unavailable\)"):
        read_image(f"{server.url}/a.jpg")
    assert len(server.asked) == 5 and [0.8 < b / a < 4 for a, b in zip(pauses, pauses[1:], strict=False)] == [True] * 3
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/a\.json could not be read in 5 tries"):
        hash_file("http://127.0.0.1:9/a.json", "File")


def test_a_server_is_left_alone_as_long_as_it_asks_within_reason(tmp_path, server, pauses):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    server.moods += [(429, {"Retry-After": value}) for value in ("7", soon, "86400", "in a while")]
    assert read_image(f"{server.url}/a.jpg") == b"12345"
    assert pauses[0] == 7 and 15 < pauses[1] <= 20 and pauses[2] == 60 and pauses[3] < 1


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 350])
def test_a_file_comes_whole_in_parts_that_are_each_tried_again(tmp_path, server, monkeypatch, ranges, size):
    monkeypatch.setattr(web, "_BLOCK_BYTES", 100)
    server.ranges = ranges
    content = bytes(number % 251 for number in range(size))
    (tmp_path / "a.bin").write_bytes(content)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(content))
    server.moods += [503, None, 503, 503, None, 429, None, 500]
    assert _text(open_input(f"{server.url}/a.bin", "File")) == content
    assert hash_file(f"{server.url}/a.bin", "File")[0] == size
    assert _text(open_input(f"{server.url}/a.json.gz?sig=x", "File")) == content


def test_a_zip_of_one_file_on_the_web_is_that_file(tmp_path, server):
    with zipfile.ZipFile(tmp_path / "ann.zip", "w") as archive:
        archive.writestr("ann.json", "{}")
    server.ranges = True
    assert _text(open_input(f"{server.url}/ann.zip", "File")) == b"{}"


def test_a_signed_address_is_used_and_not_kept(tmp_path, server):
    folder, out = write_coco(tmp_path / "raw", count=4), tmp_path / "set"
    plans = []
    options = PrepareOptions(f"{server.url}/raw/instances.json?sig=secret", str(folder / "images"), str(out))
    prepare_here(options, on_plan=lambda plan: plans.append((out / ".work" / "plan.json").read_text()))
    assert any("sig=secret" in path for path in server.asked)
    for text in (plans[0], *(path.read_text() for path in (out / "manifest.json", out / "report.html"))):
        assert "/raw/instances.json" in text and "secret" not in text
