"""Images and annotations wherever they lie: folders, zip and tar files, web servers; and nothing outside them."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from padt.errors import ImageError, UserError
from pipelines.images.contents import ImagesAhead
from pipelines.images.folders import ImageFolders
from pipelines.inspection.inspect import inspect
from pipelines.io import reading, transport
from pipelines.io.images import read_image
from pipelines.io.reading import hash_file, open_input
from pipelines.prepare.run import PrepareOptions
from tests.pipelines.coco_files import (
    content_of,
    image_bytes,
    options_for,
    prepare_here,
    rejects_of,
    rows_of,
    write_coco,
)
from tests.pipelines.web_server import serving


def _zipped(folder: Path, top="images") -> Path:
    with zipfile.ZipFile(folder / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "images").iterdir()):
            archive.write(path, f"{top}/{path.name}")
    return folder / "pictures.zip"


def _tarred(folder: Path, name="pictures.tar", mode="w") -> Path:
    with tarfile.open(folder / name, mode) as archive:
        archive.add(folder / "images", "photos")
    return folder / name


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    "place", ["{zip}", "zip://images::{zip}", "zip://images::file://{zip}", "{tar}", "tar://photos::{tar}"]
)
def test_images_in_archives_are_those_of_the_folder(tmp_path, place, link):
    raw = write_coco(tmp_path / "raw", count=4)
    images = place.format(zip=_zipped(raw), tar=_tarred(raw))
    options = PrepareOptions(
        annotations=str(raw / "instances.json"),
        images=images,
        out=str(tmp_path / "set"),
        images_mode="link" if link else "copy",
    )
    assert prepare_here(options).counts.rejects == {}
    for row, path in zip(rows_of(tmp_path / "set"), sorted((raw / "images").iterdir()), strict=True):
        image = row["image"]
        assert (read_image(image["path"]) if link else image["bytes"]) == path.read_bytes()
    assert link == (row["image"]["bytes"] is None)
    if link and "://" not in place:
        assert inspect(options.out, count=2, out=str(tmp_path / "sheet.png"))


def test_annotations_in_a_zip_are_named_or_the_only_ones(tmp_path):
    raw = write_coco(tmp_path / "raw", count=2)
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.write(raw / "instances.json", "instances.json")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.write(raw / "instances.json", "annotations/instances.json")
        archive.writestr("annotations/captions.json", "{}")
    whole = (raw / "instances.json").read_bytes()
    for url in (tmp_path / "one.zip", f"zip://annotations/instances.json::{tmp_path}/two.zip"):
        with open_input(str(url), "File") as handle:
            assert handle.read() == whole
    with pytest.raises(UserError, match=r"zip of 2 files .*zip://annotations/instances\.json::"):
        open_input(str(tmp_path / "two.zip"), "File")
    with pytest.raises(UserError, match=r"is not a file"):
        hash_file(f"zip://nothing.json::{tmp_path}/two.zip", "File")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", b"PK nothing of the kind", "cannot be read as a zip"),
        ("a.tar", b"nothing of the kind" * 99, "cannot be read as a tar"),
        ("a.tar.gz", b"", r"compressed tar.*unpack it \(tar -xf a\.tar\.gz\)"),
        ("missing.zip", None, "is not a file"),
    ],
)
def test_archives_that_cannot_be_used_are_an_error_before_work_starts(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        ImageFolders([str(tmp_path / name)])


def test_a_zip_bomb_is_unpacked_no_further_than_an_image_may_be_large(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(20_000_000))
    found = ImageFolders([str(tmp_path / "bomb.zip")]).locate("bomb.jpg")
    assert found.size == 20_000_000
    with pytest.raises(ImageError, match="more than 1,000,000 bytes") as caught:
        read_image(found.urls[0], most=1_000_000)
    assert caught.value.reason == "image_too_large"


@pytest.mark.parametrize("change", [("size", 10), ("cut", None), ("password", None)])
def test_a_zip_whose_member_lies_or_is_damaged_costs_that_image_only(tmp_path, change):
    kind, _ = change
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", os.urandom(5000))
        archive.writestr("b.jpg", b"whole")
    content = bytearray(buffer.getvalue())
    entry = content.index(b"PK\x01\x02")
    if kind == "size":
        content[entry + 24 : entry + 28] = (10).to_bytes(4, "little")  # What it claims to unpack to.
    elif kind == "cut":
        content[100:4000] = bytes(3900)
    else:
        content[entry + 8] |= 1
        content[6] |= 1
    (tmp_path / "lying.zip").write_bytes(content)
    folders = ImageFolders([str(tmp_path / "lying.zip")])
    with pytest.raises(ImageError) as caught:
        read_image(folders.locate("a.jpg").urls[0])
    assert caught.value.reason == "image_unreadable"
    assert read_image(folders.locate("b.jpg").urls[0]) == b"whole"


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "..\\secret.jpg", "C:\\secret.jpg", "file:///etc/passwd"]
    + ["..", ".", "http://host/a.jpg", "a.jpg::/etc/passwd", "//host/share/a.jpg", "/images-of-others/a.jpg"],
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").write_bytes(image_bytes())
    for place in (str(tmp_path / "images"), f"file://{tmp_path}/images", "memory://images"):
        if place.startswith("memory"):
            reading.resolve(place)[0].makedirs("/images", exist_ok=True)
        with pytest.raises(ImageError) as caught:
            ImageFolders([place]).locate(name)
        assert caught.value.reason == "image_outside_root"


def test_a_name_with_a_meaning_in_urls_is_just_a_name_on_disk(tmp_path):
    for name in ("x#1?.jpg", "a*[b].jpg", "100%25 (1).jpg", "~.jpg"):
        (tmp_path / name).write_bytes(name.encode())
        assert read_image(ImageFolders([str(tmp_path)]).locate(name).urls[0]) == name.encode()


def test_images_that_are_folders_are_rejected_one_by_one(tmp_path):
    raw = write_coco(tmp_path / "raw", count=3)
    (raw / "images" / "0002.jpg").unlink()
    (raw / "images" / "0002.jpg").mkdir()
    assert prepare_here(options_for(raw, tmp_path / "set")).counts.rows == 2
    assert [(row["key"], row["reason"]) for row in rejects_of(tmp_path / "set") if row["kind"] == "image"] == [
        ("coco/train/2", "image_unreadable")
    ]


def test_a_pipe_in_the_place_of_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(str(tmp_path / "a.jpg"))


def test_names_that_are_not_utf8_are_rejected_one_by_one(tmp_path):
    raw = write_coco(tmp_path / "raw", count=2)
    content = json.loads((raw / "instances.json").read_text())
    content["images"][0]["file_name"] = "caf\udce9.jpg"
    (raw / "instances.json").write_text(json.dumps(content))
    (Path(os.fsdecode(os.fsencode(raw / "images") + b"/caf\xe9.jpg"))).write_bytes(image_bytes())
    assert prepare_here(options_for(raw, tmp_path / "set")).counts.rejects["image_malformed"] == 1


def test_images_fetched_ahead_are_those_that_are_asked_for():
    """Also where some are passed over, stand twice, are missing, or are asked for out of order."""
    fs, _ = reading.resolve("memory://ahead")
    urls = [f"memory://ahead/{number}.jpg" for number in range(40)]
    for number in range(0, 40, 2):
        fs.pipe(f"/ahead/{number}.jpg", str(number).encode())
    images = ImagesAhead([(url,) for url in (*urls, urls[2])], ahead=4)
    for number in (0, 2, 3, 10, 11, 4, 38):
        if number % 2:
            with pytest.raises(ImageError, match=f"{number}.jpg does not exist"):
                images.read((urls[number],))
        else:
            assert images.read((urls[number],)) == (urls[number], str(number).encode())
    assert images.read((urls[2],)) == (urls[2], b"2")


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A local web server over ``tmp_path``."""
    monkeypatch.setattr(transport, "_FIRST_PAUSE", 0.01)
    with serving(tmp_path) as server:
        yield server


def test_annotations_and_images_on_the_web_are_those_of_the_folder(tmp_path, web):
    raw = write_coco(tmp_path / "raw", count=4)
    (raw / "images" / "0003.jpg").unlink()
    local = prepare_here(options_for(raw, tmp_path / "local"))
    web.moods += [None, 503, 500]
    remote = prepare_here(
        PrepareOptions(
            annotations=f"{web.url}/raw/instances.json",
            images=f"{web.url}/raw/images",
            out=str(tmp_path / "remote"),
            rows_per_shard=3,
        )
    )
    assert remote.counts == local.counts and remote.fingerprint == local.fingerprint
    assert remote.counts.rejects["image_missing"] == 1
    shards = [
        {name: value for name, value in content_of(tmp_path / out).items() if "shards" in name}
        for out in ("local", "remote")
    ]
    assert shards[0] == shards[1]
