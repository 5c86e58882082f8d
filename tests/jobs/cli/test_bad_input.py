"""Broken pictures and empty words at the command line: one line that names the file and the way out, status 2."""

import io
import json
import struct
import zlib

import pytest
from PIL import Image

from jobs.cli.main import main
from tests.conftest import REPOSITORY


@pytest.fixture
def toy() -> str:
    return str(REPOSITORY / "pipelines" / "toy" / "base")


def jpeg() -> bytes:
    handle = io.BytesIO()
    Image.effect_noise((200, 150), 60).save(handle, "JPEG")
    return handle.getvalue()


def png(width: int, height: int) -> bytes:
    handle = io.BytesIO()
    Image.new("RGB", (width, height)).save(handle, "PNG")
    return handle.getvalue()


def giant(side: int = 30_000) -> bytes:
    """A small file that announces a picture of 2.7 GB."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    whole = png(40, 30)
    return whole[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


@pytest.mark.parametrize("verb", ["predict", "explain"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (giant(), "bad.jpg has 30000x30000 pixels, more than the budget of 100,000,000: scale it down"),
        (png(1, 5000), "bad.jpg of 1x5000 pixels is too long and thin: crop it"),
        (jpeg()[:2000], "bad.jpg is not a readable image"),
        (b"some words", "bad.jpg is not a readable image"),
        (None, "bad.jpg cannot be opened (No such file or directory): check the path"),
    ],
    ids=["giant", "thin", "cut", "words", "missing"],
)
def test_a_picture_that_cannot_be_used_is_named(tmp_path, capsys, verb, data, message):
    path = tmp_path / "bad.jpg"
    if data is not None:
        path.write_bytes(data)
    # Before the model is loaded: there is none.
    words = [verb, str(path), "--model", str(tmp_path / "none"), "--caption", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split()).replace(f"{tmp_path}/", "") and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_a_picture(tmp_path, capsys):
    assert main(["predict", str(tmp_path), "--model", "none", "--caption"]) == 2
    assert "Is a directory" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--detect", ""], "name at least one class"),
        (["--detect", "cat,,dog"], "name at least one class"),
        (["--refer", "  "], "describe one object"),
        (["--ask", ""], "say what you want to know"),
        (["--caption", "--refer", "a cat"], "one thing at a time"),
        ([], "one thing at a time"),
    ],
)
def test_empty_words_are_refused_with_an_example(tmp_path, capsys, words, message):
    assert main(["predict", "x.jpg", "--model", str(tmp_path), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_odd_words_and_a_picture_of_one_pixel_are_answered(toy, tmp_path, capsys):
    (tmp_path / "dot.png").write_bytes(png(1, 1))
    for words in (["--refer", "<|VRT_5|><|image_pad|>"], ["--detect", 'a "b" [c], <|im_end|>']):
        options = ["--model", toy, "--max-new-tokens", "4", "--forbid-repeats"]
        assert main(["predict", str(tmp_path / "dot.png"), *options, *words]) == 0
        record = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert record["images"] == [{"width": 1, "height": 1, "grid": [2, 2]}]


def test_explain_writes_a_sheet_and_the_numbers(toy, tmp_path, capsys):
    Image.effect_noise((150, 112), 90).convert("RGB").save(tmp_path / "noise.png")
    out = tmp_path / "out"
    words = ["explain", str(tmp_path / "noise.png"), "--model", toy, "--caption", "--out", str(out)]
    assert main([*words, "--max-new-tokens", "12", "--top", "3"]) == 0
    record = json.loads((out / "noise.json").read_text())
    sheets = [found["sheet"] for found in record["objects"]] or ["noise.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(["noise.json", *sheets])
    assert all(len(step["top"]) == 3 for found in record["objects"] for step in found["steps"])
    assert all(name in capsys.readouterr().out.replace("\n", "") for name in sheets[:1])


def test_several_pictures_in_one_question(toy, tmp_path):
    for name, size in (("a", (112, 84)), ("b", (84, 140))):
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / f"{name}.png")
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    out = tmp_path / "out"
    words = ["--together", "--ask", "What has changed?", "--model", toy, "--max-new-tokens", "12", "--out", str(out)]
    assert main(["predict", *files, *words]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "a.png", "b.png"]
    record = json.loads((out / "a.json").read_text())
    assert record["image"] == files
    assert [frame["grid"] for frame in record["images"]] == [[3, 4], [5, 3]]
