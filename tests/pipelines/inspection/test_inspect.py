"""People look at their data before they train on it: counts must be true and pictures must be of the rows asked for."""

import html
import json
import re

import pytest
from PIL import Image

from jobs.cli.main import main
from padt.errors import UserError
from pipelines.dataset.read import spread_rows
from pipelines.inspection.inspect import inspect
from pipelines.prepare.execute import execute_here
from pipelines.prepare.run import PrepareOptions, prepare
from pipelines.prepare.toy import prepare_toy
from tests.pipelines.coco_files import annotation, options_for, prepare_here, write_coco


@pytest.fixture
def prepared(tmp_path):
    broken = [annotation(100, 1, (0, 0, 0, 0)), annotation(101, 1), annotation(102, 9, iscrowd=1, segmentation=None)]
    folder = write_coco(tmp_path / "raw", annotations=broken)
    options = PrepareOptions(
        annotations=str(folder / "instances.json"),
        images=str(folder / "images"),
        out=str(tmp_path / "set"),
        rows_per_shard=4,
    )
    prepare(options, execute=execute_here)
    return str(tmp_path / "set")


def test_counts_are_those_of_the_set(prepared):
    report = inspect(prepared, count=3)
    nothing = [("references", 0, 0, 0, 0), ("captions", 0, 0, 0, 0)]
    assert report.kept == [("images", 10, 10, 0, 0), ("objects", 3, 2, 1, 0), *nothing]
    assert [(reason, count) for reason, count, _ in report.rejects] == [("box_degenerate", 1)]
    assert report.classes == [("cat", 2)]
    assert dict(report.facts)["shards"].startswith("3 ")
    assert [row["image_id"] for row in report.rows] == ["10", "5", "8"]
    assert all(row["image"]["bytes"] is None for row in report.rows)


def test_the_picture_is_written_and_shows_one_row_large(prepared, tmp_path):
    sheet = inspect(prepared, count=4, out=str(tmp_path / "sheet.png"))
    assert sheet.picture is not None and sheet.picture_path is not None
    assert Image.open(sheet.picture_path).size == sheet.picture.size
    for key in ("coco/train/9", "9"):
        assert [row["key"] for row in inspect(prepared, key=key).rows] == ["coco/train/9"]


def test_a_picture_is_always_made_and_its_place_said(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", prepared]) == 0
    assert "picture: runs/inspect/coco-train.png" in capsys.readouterr().out
    assert main(["inspect", prepared, "--key", "9"]) == 0
    assert "picture: runs/inspect/coco-train-9.png" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("runs/inspect/*")} == {"coco-train.png", "coco-train-9.png"}
    assert Image.open("runs/inspect/coco-train.png").size != Image.open("runs/inspect/coco-train-9.png").size


def test_ids_are_names_and_bear_no_separators(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = write_coco(tmp_path / "raw", annotations=[annotation(1234567, 1)])
    prepare_here(options_for(folder, tmp_path / "set"))
    assert main(["inspect", "set", "--key", "1"]) == 0
    shown = capsys.readouterr().out
    assert "1234567" in shown and "1,234" not in shown


def test_rows_are_spread_over_all_shards(prepared):
    manifest = inspect(prepared).manifest
    assert len(spread_rows(prepared, manifest, 99)) == 10
    assert len({row["key"] for row in spread_rows(prepared, manifest, 10)}) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": "coco/train/77"}, "no row 'coco/train/77'"),
        ({"count": 0}, "at least 1"),
        ({"out": "x/y.png"}, "x/y.png"),
    ],
)
def test_what_cannot_be_shown_is_a_clear_error(prepared, arguments, message):
    with pytest.raises(UserError, match=message):
        inspect(prepared, **arguments)


def test_folders_that_are_no_sets_and_broken_sets_are_clear_errors(prepared, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        inspect(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no manifest\.json"):
        inspect(str(tmp_path / "raw"))
    shard = tmp_path / "set" / "shards" / "shard-00001-of-00003.parquet"
    shard.write_bytes(b"broken")
    with pytest.raises(UserError, match="shard-00001-of-00003.parquet .*damaged"):
        inspect(prepared)
    shard.unlink()
    with pytest.raises(UserError, match="shard-00001-of-00003.parquet .*missing"):
        inspect(prepared)
    path = tmp_path / "set" / "manifest.json"
    for change, message in (({"schema_version": 2}, "schema version 2"), ({"shards": None}, "damaged")):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(UserError, match=message):
            inspect(prepared)
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 1}))
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        inspect(prepared)


def test_the_report_stands_alone_and_escapes_what_it_shows(prepared, tmp_path):
    page = (tmp_path / "set" / "report.html").read_text()
    assert "box_degenerate" in page and "data:image/jpeg;base64," in page
    assert "http://" not in page and "https://" not in page and "<script" not in page


_EVIL = "<script>alert(1)</script>'\" onload=x"


_TAGS = {"html", "head", "meta", "title", "style", "body", "header", "nav", "ul", "li", "a", "main", "section", "div"}
_TAGS |= {"h1", "h2", "h3", "p", "code", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img"}
_TAGS |= {"svg", "rect"}


def test_what_users_files_say_is_shown_and_never_run(tmp_path):
    """Names, ids, file names and details come from files of the internet."""
    categories = [{"id": 3, "name": f"{_EVIL} [/red]"}]
    images = [{"id": f"<b>{number}</b>", "file_name": f"{number:04d}.jpg"} for number in (1, 2)]
    notes = [annotation(1, "<b>1</b>"), annotation(2, "<b>1</b>", bbox=f"<i>{_EVIL}"), annotation(3, "<b>2</b>")]
    folder = write_coco(tmp_path / "raw<u>", 2, annotations=notes, images=images, categories=categories)
    prepare_here(options_for(folder, tmp_path / "set", name="<img src=x onerror=y>"))
    page = (tmp_path / "set" / "report.html").read_text()
    assert html.escape(_EVIL) in page and "&lt;b&gt;1&lt;/b&gt;" in page and "raw&lt;u&gt;" in page
    for tag in ("<script", "<b>", "<i>", "<u>", "<img src=x"):
        assert tag not in page
    assert set(re.findall(r"<(\w+)", page)) <= _TAGS
    sources = re.findall(r"(?:src|url)\s*[=(]\s*['\"]?(\S{5})", page)
    assert sources and set(sources) == {"data:"} and set(re.findall(r'href="(.)', page)) == {"#"}
    # Brackets are no markup of the terminal either.
    assert main(["inspect", str(tmp_path / "set"), "--out", str(tmp_path / "sheet.png")]) == 0


def test_the_report_shows_counts_sizes_and_examples(prepared, tmp_path):
    page = (tmp_path / "set" / "report.html").read_text()
    for words in (
        "Objects by class",
        "Size of objects",
        "Size of images",
        "Objects per image",
        "Foreground patches per object",
    ):
        assert words in page
    assert "coco/train/1" in page and "object 100" in page and "Images that the set holds more than once" in page
    assert page.count("data:image/jpeg;base64,") == 8
    sections = {section.title: section for section in inspect(prepared).sections}
    assert sections["Size of images (longer side in pixels)"].rows == (("128", 10),)
    assert sections["Size of objects (square root of the box's area in pixels)"].rows == (("64", 2),)
    assert sections["Examples of rejects"].rows[0][:3] == ("box_degenerate", "coco/train/1", "object 100")


def test_one_image_is_shown_or_its_absence_explained(tmp_path, capsys):
    folder = write_coco(tmp_path / "raw", 3)
    (folder / "images" / "0002.jpg").write_bytes(b"broken")
    prepare_here(options_for(folder, tmp_path / "set"))
    url, out = str(tmp_path / "set"), str(tmp_path / "one.png")
    report = inspect(url, key="2", out=out)
    assert [(each.what, each.reason) for each in report.left_out] == [("image", "image_unreadable")]
    assert (report.rows, report.picture, report.picture_path) == ([], None, None)
    assert main(["inspect", url, "--key", "coco/train/2", "--out", out]) == 0
    assert "image_unreadable" in capsys.readouterr().out and not (tmp_path / "one.png").exists()
    assert main(["inspect", url, "--key", "1", "--out", out]) == 0
    assert "cat" in capsys.readouterr().out and Image.open(out).width >= 120
    assert main(["inspect", url, "--key", "4"]) == 2


def test_a_set_without_rows_says_what_became_of_them(tmp_path):
    folder = write_coco(tmp_path / "raw", 2)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"broken")
    prepare_here(options_for(folder, tmp_path / "set", allow_empty=True))
    report = inspect(str(tmp_path / "set"))
    assert report.picture is None and report.kept[0] == ("images", 2, 0, 2, 0)


def test_the_toy_set_takes_the_road_of_real_data(tmp_path):
    sets = prepare_toy(str(tmp_path / "toy"), scenes=12, heldout=4, seed=3, rows_per_shard=5, execute=execute_here)
    assert (sets.train.counts.rows, sets.val.counts.rows) == (12, 4)
    for manifest in (sets.train, sets.val):
        counts = manifest.counts
        assert counts.rejects == {} and counts.objects_with_patches == counts.objects >= counts.rows
        assert counts.references > counts.rows and counts.captions >= counts.rows
    assert sets.train.class_names == sets.val.class_names and len(sets.train.shards) == 3
    again = prepare_toy(str(tmp_path / "toy"), scenes=12, heldout=4, seed=3, rows_per_shard=5, execute=execute_here)
    assert again == sets
    for row in spread_rows(str(tmp_path / "toy" / "train"), sets.train, 12):
        for caption in row["captions"]:
            assert caption["objects"] and caption["text"].count("<|Obj_") == len(caption["objects"])
        # A sentence that names a class means an object of that class.
        for item in row["references"]:
            (place,) = item["objects"]
            named = [name for name in sets.train.class_names if name in item["text"].split()]
            assert named in ([], [row["objects"][place]["label"]])


def test_the_report_keeps_short_cells_whole_and_lets_wide_tables_scroll(tmp_path):
    """On a phone the first column was one letter wide: a cell that may break anywhere has no least width."""
    folder = write_coco(tmp_path / "raw", 2)
    (folder / "images" / "0002.jpg").write_bytes(b"broken")
    prepare_here(options_for(folder, tmp_path / "set"))
    page = (tmp_path / "set" / "report.html").read_text()
    cells = re.findall(r'<td( class="long")?>([^<]*)', page)
    assert cells and all(bool(long) == (len(text) > 24) for long, text in cells if "&" not in text)
    assert not re.search(r"(^|[ ,])td[^{.]*\{[^}]*anywhere", page)
    assert page.count("<table>") == page.count('<div class="wide"') > 0
