"""Names of pictures as tools write them: each finds its own picture below the given folders, or none."""

import os
import tarfile
import unicodedata
import zipfile

import pytest

from padt.errors import ImageError, UserError
from pipelines.images import listing
from pipelines.images.contents import ImagesAhead, read_first
from pipelines.images.folders import ImageFolders
from pipelines.images.locate import locate_images
from pipelines.images.names import readings
from pipelines.io import transport
from pipelines.io.images import read_image
from pipelines.sources.base import Header, ImageEntry
from tests.pipelines.coco_files import image_bytes, options_for, prepare_here, write_coco
from tests.pipelines.web_server import serving


def _put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return str(folder)


def _located(folders, *names):
    """Content of the pictures of some names, or None where one is not found; and why."""
    header = Header(images=[ImageEntry(str(number), name, 9, 9) for number, name in enumerate(names)])
    planned, rejects, _ = locate_images(header, folders)
    assert not rejects
    return [_content(image) for image in planned], [image.missing for image in planned]


def _content(image):
    if image.missing:
        return None
    try:
        return read_first(image.places[0])[1].decode()
    except ImageError as error:
        assert error.reason == "image_missing"
        return None


@pytest.mark.parametrize(
    ("name", "lies"),
    [
        ("..\\..\\label-studio\\media\\upload\\4\\ab12-shot.png", "ab12-shot.png"),
        ("..\\media\\4\\x.png", "media/4/x.png"),
        ("C:\\Users\\me\\data\\images\\a.png", "a.png"),
        ("D:/data/train/a.png", "train/a.png"),
        ("\\\\server\\share\\set\\a.png", "set/a.png"),
        ("/home/someone/images/a.png", "a.png"),
        ("/images/1.png", "1.png"),
        ("https://labels.example.com/data/upload/1/942a-x.png", "942a-x.png"),
        ("https://host/a/b.png?X-Signature=q%2Fw.e#top", "a/b.png"),
        ("https://host/o/set%2Fb.png?alt=media&token=1.2", "set/b.png"),
        ("s3://bucket/set/x.png", "set/x.png"),
        ("file:///C:/data/x%20y.png", "x y.png"),
        ("/data/local-files/?d=dataset1/0.png", "dataset1/0.png"),
        ("/data/local-files/?d=dataset1%5C0%20a.png", "dataset1/0 a.png"),
        ("a\\b\\c.png", "a/b/c.png"),
        ("./a/../b/c.png", "b/c.png"),
        ("Capture_d%C3%A9cran%201.png", "Capture_d\u00e9cran 1.png"),
        ("a%2520b.png", "a b.png"),
        ("a b.png", "a%20b.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("cafe\u0301/\u00fcber.png", "caf\u00e9/u\u0308ber.png"),
        ("IMG_0001.jpg", "IMG_0001.JPG"),
        ("Train/IMG_0001.jpg", "train/img_0001.JPEG.jpg".replace(".JPEG", "")),
        ("b?x=1.png", "b?x=1.png"),
        ("shot 10:20::a.png", "shot 10:20::a.png"),
        ("50%.png", "50%.png"),
        ("images/1.png", "images\\1.png"),
        ("train/set/1.png", "train\\set\\1.png"),
    ],
)
def test_names_of_other_systems_find_their_picture(tmp_path, name, lies):
    folders = ImageFolders([_put(tmp_path / "images", lies, "other.png")])
    assert _located(folders, name)[0] == [lies]


def test_what_is_there_as_it_is_written_comes_before_any_other_reading(tmp_path):
    names = ["a%20b.png", "a b.png", "X.png", "x.png", "b/1.png", "1.png", "c?d=1.png", "1.PNG"]
    folders = ImageFolders([_put(tmp_path, *names)])
    assert _located(folders, *names)[0] == names


def test_the_longest_tail_wins(tmp_path):
    folders = ImageFolders([_put(tmp_path, "1.png", "b/1.png", "a/b/1.png")])
    assert _located(folders, "x/a/b/1.png")[0] == ["a/b/1.png"]
    assert _located(folders, "/y/c/b/1.png")[0] == ["b/1.png"]


def test_a_spelling_that_may_mean_two_files_means_none(tmp_path):
    folders = ImageFolders([_put(tmp_path, "IMG.jpg", "img.JPG")])
    contents, why = _located(folders, "Img.Jpg", "img.JPG")
    assert contents == [None, "img.JPG"] and "may be IMG.jpg or img.JPG" in why[0]


@pytest.mark.parametrize(
    "names",
    [
        ("a/1.png", "b/1.png"),
        ("C:\\x\\1.png", "D:\\x\\1.png"),
        ("https://host/1/1.png", "https://host/2/1.png"),
        ("A.png", "a.PNG"),
        ("a%201.png", "a%20%31.png"),
    ],
)
def test_two_names_never_get_one_file(tmp_path, names):
    folders = ImageFolders([_put(tmp_path, "1.png", "a.png", "a 1.png")])
    contents, why = _located(folders, *names)
    assert contents == [None, None]
    assert all(name in each for name in names for each in why)


def test_the_name_that_is_the_files_own_keeps_it(tmp_path):
    root = _put(tmp_path, "a/1.png", "a/2.png")
    for roots in ([root, f"{root}/a"], [f"{root}/a", root]):
        contents, why = _located(ImageFolders(roots), "a/1.png", "b/1.png", "a/1.png")
        assert contents == ["a/1.png", None, "a/1.png"] and "b/1.png" in why[1] and "a/1.png" in why[1]
        # Nor does the folder of others hold one that only looks like it.
        contents, why = _located(ImageFolders(roots), "a/1.png", "b/2.png")
        assert contents == ["a/1.png", None] and "b/2.png is not there" in why[1]


@pytest.mark.parametrize("there", ["train", "train2017", "photos"])
def test_a_folder_that_is_not_there_is_not_another_one(tmp_path, there):
    folders = ImageFolders([_put(tmp_path, f"{there}/1.png")])
    assert _located(folders, "val/1.png")[0] == [None]
    assert _located(folders, "1.png")[0] == [f"{there}/1.png"]


def test_years_of_coco_are_one_picture(tmp_path):
    folders = ImageFolders([_put(tmp_path, "train2017/000000000009.jpg")])
    names = ("COCO_train2014_000000000009.jpg", "train2014/000000000009.jpg", "val2017/000000000009.jpg")
    assert _located(folders, *names)[0] == ["train2017/000000000009.jpg"] * 3


def test_what_is_not_found_is_told_with_its_name_place_and_neighbour(tmp_path):
    folders = ImageFolders([_put(tmp_path, "x.png", "y.png")])
    _, why = _located(folders, "set/x.jpg", "z.jpg")
    assert (
        why[0] == f"set/x.jpg is not in {tmp_path}, with or without its folders; x.png is: if that is the picture, "
        "rename it or correct the annotations"
    )
    assert why[1] == f"z.jpg is not in {tmp_path}"


def test_links_are_followed_and_those_that_lead_nowhere_are_missing(tmp_path):
    _put(tmp_path / "real", "1.png", "2.png")
    (tmp_path / "images").mkdir()
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / "images" / name).symlink_to(f"../real/{name}")
    (tmp_path / "images" / "round").symlink_to("round")
    (tmp_path / "linked").symlink_to("images")
    for root in ("images", "linked"):
        found = _located(ImageFolders([str(tmp_path / root)]), "1.png", "2.png", "3.png")
        assert found[0] == ["1.png", "2.png", None]


def test_a_hint_says_where_the_pictures_lie(tmp_path):
    raw = write_coco(tmp_path / "raw", count=2)
    (raw / "export" / "valid").mkdir(parents=True)
    (raw / "images").rename(raw / "export" / "train")
    (raw / "images").symlink_to("export")
    with pytest.raises(UserError, match=r"0001\.jpg lies in .*/images/train: give that as --images"):
        prepare_here(options_for(raw, tmp_path / "set"))


def test_each_folder_is_listed_once(tmp_path, monkeypatch):
    names = [f"d{number % 7}/e{number % 3}/{number}.png" for number in range(200)]
    root = _put(tmp_path, *names)
    listed = []
    scan = os.scandir
    monkeypatch.setattr(listing.os, "scandir", lambda path: listed.append(path) or scan(path))
    assert _located(ImageFolders([root]), *names, *[f"x/{number}/no.png" for number in range(50)])[0] == (
        names + [None] * 50
    )
    assert len(listed) == len(set(listed)) == 1 + 7 + 21


def _zip(path, *members):
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            # ZipInfo would change separators on other systems.
            info = zipfile.ZipInfo("x")
            info.filename = member
            archive.writestr(info, member.encode())
    return str(path)


@pytest.mark.parametrize(
    ("members", "names"),
    [
        (["photos/1.png", "__MACOSX/photos/._1.png", "__MACOSX/._photos"], {"1.png": "photos/1.png"}),
        (["images\\1.png", "images\\2.png"], {"images/1.png": "images\\1.png", "2.png": "images\\2.png"}),
        (["./1.png", "./a/2.png"], {"1.png": "./1.png", "a/2.png": "./a/2.png"}),
        (["export/1.png", "README.txt", "data.yaml"], {"1.png": "export/1.png"}),
        (["a/b/images/1.png", "a/b/ann.json"], {"1.png": "a/b/images/1.png"}),
        (["top/train/1.png", "top/val/1.png"], {"train/1.png": "top/train/1.png", "val/1.png": "top/val/1.png"}),
        (["top/train/1.png"], {"/data/train/1.png": "top/train/1.png"}),
        (["u\u0308ber.png"], {"\u00fcber.png": "u\u0308ber.png"}),
        (["x.JPG"], {"x.jpg": "x.JPG"}),
        (["../1.png", "/../2.png", "a::b.png"], {"1.png": None, "2.png": None}),
    ],
)
def test_archives_of_other_systems(tmp_path, members, names):
    folders = ImageFolders([_zip(tmp_path / "photos.zip", *members)])
    assert _located(folders, *names)[0] == list(names.values())


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "euc_kr", "utf-8"])
def test_names_in_zips_that_do_not_tell_their_encoding(tmp_path, encoding):
    name = {"gbk": "\u56fe\u7247.png", "euc_kr": "\uc0ac\uc9c4.png"}.get(encoding, "\u5199\u771f.png")
    raw = name.encode(encoding)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("X" * len(raw), "picture")
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(b"X" * len(raw), raw))
    assert _located(ImageFolders([str(tmp_path / "a.zip")]), name)[0] == ["picture"]


def test_links_and_prefixes_in_tar_files(tmp_path):
    _put(tmp_path / "images", "1.png")
    (tmp_path / "images" / "2.png").symlink_to("1.png")
    os.link(tmp_path / "images" / "1.png", tmp_path / "images" / "3.png")
    (tmp_path / "images" / "4.png").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "images" / "5.png")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "images", ".")
    folders = ImageFolders([str(tmp_path / "a.tar")])
    assert _located(folders, "1.png", "2.png", "3.png")[0] == ["1.png"] * 3
    for name in ("4.png", "5.png"):
        with pytest.raises(ImageError):
            read_image(folders.locate(name).urls[0])


@pytest.mark.parametrize(
    "name", ["%2e%2e/secret.png", "..%2Fsecret.png", "a/%252e%252e/%252e%252e/secret.png", "?d=../secret.png"]
)
def test_escapes_lead_out_of_no_folder(tmp_path, name):
    _put(tmp_path, "secret.png", "images/1.png")
    assert all(".." not in reading.parts for reading in readings(name))
    with pytest.raises(ImageError) as caught:
        found = ImageFolders([str(tmp_path / "images")]).locate(name)
        assert not found.urls
        raise ImageError("image_outside_root", found.why)
    assert caught.value.reason == "image_outside_root"


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setattr(transport, "_FIRST_PAUSE", 0.01)
    with serving(tmp_path) as server:
        yield server


def test_any_name_is_found_on_a_web_server(tmp_path, web):
    names = ["a b.png", "b#c.png", "50%.png", "d?e=1.png", "\u00e9.png", "+f.png", "g&h;i.png", "x:y.png", "j%20k.png"]
    _put(tmp_path, *names, "p q.png")
    folders = ImageFolders([web.url])
    assert _located(folders, *names, "p%20q.png")[0] == [*names, "p q.png"]


def test_keys_in_the_address_of_a_folder_stay_behind_the_name(tmp_path, web):
    _put(tmp_path, "set/1.png")
    (url,) = ImageFolders([f"{web.url}/set/?sig=secret"]).locate("1.png").urls
    assert url == f"{web.url}/set/1.png?sig=secret" and read_image(url) == b"set/1.png"
    with pytest.raises(ImageError) as caught:
        read_image(url.replace("1.png", "2.png"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("lies", ["{0}", "train2017/{0}", "val2014/COCO_val2014_{0}"])
def test_years_of_coco_are_tried_on_the_web_and_the_one_that_worked_comes_first(tmp_path, web, lies):
    numbers = [f"{number:012d}.jpg" for number in range(30)]
    _put(tmp_path, *[lies.format(number) for number in numbers])
    folders = ImageFolders([web.url])
    found = _located(folders, *[f"COCO_train2014_{number}" for number in numbers])[0]
    assert found == [lies.format(number) for number in numbers]
    assert len(web.asked) < 30 + 30


def test_two_names_never_get_one_file_on_the_web(tmp_path, web):
    _put(tmp_path, "1.png", "2.png")
    names = ["C:\\a\\1.png", "C:\\b\\1.png", "C:\\b\\2.png"]
    assert _located(ImageFolders([web.url]), *names)[0] == [None, None, "2.png"]
    assert _located(ImageFolders([web.url]), "1.png", "b/1.png")[0] == ["1.png", None]
    contents, why = _located(ImageFolders([web.url]), "C:\\1.png", "D:\\1.png")
    assert contents == [None, None] and "D:\\1.png" in why[0] and "C:\\1.png" in why[0]


def test_a_store_that_refuses_what_is_not_there_is_asked_for_the_other_forms(tmp_path, web):
    _put(tmp_path, "000000000009.jpg")
    web.refused.add("COCO_train2014_000000000009.jpg")
    assert _located(ImageFolders([web.url]), "COCO_train2014_000000000009.jpg")[0] == ["000000000009.jpg"]
    web.refused |= {"1.png"}
    with pytest.raises(UserError, match="is refused") as caught:
        ImagesAhead([(f"{web.url}/1.png",)]).read((f"{web.url}/1.png",))
    assert not isinstance(caught.value, ImageError)


def test_a_set_of_pictures_under_odd_names_is_that_of_plain_ones(tmp_path, web):
    raw = write_coco(tmp_path / "raw", count=2)
    content = (raw / "instances.json").read_text()
    (raw / "instances.json").write_text(content.replace('"0001.jpg"', '"https://host/x/0001%2Ejpg?a=1"'))
    (raw / "images" / "0002.jpg").rename(raw / "images" / unicodedata.normalize("NFD", "0002.JPG"))
    assert prepare_here(options_for(raw, tmp_path / "set")).counts.rows == 2
    assert image_bytes(seed=1) in [path.read_bytes() for path in (raw / "images").iterdir()]


def test_images_that_share_a_name_are_told_of(tmp_path):
    raw = write_coco(tmp_path / "raw", count=2)
    content = (raw / "instances.json").read_text()
    (raw / "instances.json").write_text(content.replace('"0002.jpg"', '"0001.jpg"'))
    (note,) = prepare_here(options_for(raw, tmp_path / "set")).notes
    assert (note.code, note.count) == ("file_name_repeated", 1) and "image 2 and image 1: 0001.jpg" in note.example
