"""`padt predict` is the first thing a person tries: it must work with the plain library and name what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jobs.inference.drawing import readable
from jobs.inference.predict import make_request, run_predict
from padt.errors import UserError
from padt.inference.predict import GenerationSettings
from tests.jobs.tiny_model import write_tiny_model
from tests.padt.inference.test_predict import picture as textured

SHORT = GenerationSettings(max_new_tokens=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def picture(path: Path, size=(150, 112)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path)
    return path


def test_each_picture_gets_json_and_a_drawing(tiny, tmp_path):
    paths = [picture(tmp_path / "a" / "cat.jpg"), picture(tmp_path / "b" / "cat.jpg", (112, 300))]
    results = run_predict(tiny, paths, make_request(detect="circle, square"), tmp_path / "out", settings=SHORT)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "cat-2.json",
        "cat-2.png",
        "cat.json",
        "cat.png",
    ]
    record = json.loads(results[1].json_path.read_text())
    assert record == json.loads(json.dumps(results[1].record))
    assert (record["image"], record["width"], record["height"]) == (str(paths[1]), 112, 300)
    assert '["circle", "square"]' in record["prompt"]
    assert Image.open(results[0].picture_path).size == results[0].drawn.size


def test_pictures_are_told_as_they_are_answered_in_their_order(tiny, tmp_path):
    """The first file is there before the last picture is asked about; each answer is that of the picture alone."""
    sizes = [(150, 112), (60, 200), (84, 84), (200, 60), (112, 112)]
    paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        textured(*size).save(path)
    told = []

    def tell(result):
        told.append((result.image, sorted(file.name for file in (tmp_path / "out").glob("*.json"))))

    request = make_request(caption=True)
    results = run_predict(tiny, paths, request, tmp_path / "out", settings=SHORT, batch_size=2, on_result=tell)
    assert [image for image, _ in told] == [result.image for result in results] == [str(path) for path in paths]
    assert told[0][1] == ["0.json"] and len(told[-1][1]) == 5
    for path, result in zip(paths, results, strict=True):
        [alone] = run_predict(tiny, path, request, settings=SHORT)
        assert alone.record["text"] == result.record["text"]
        assert len(alone.objects) == len(result.objects)


def test_only_the_classes_asked_for_are_found(tiny, tmp_path):
    path = picture(tmp_path / "one.png")
    [free] = run_predict(tiny, path, make_request(ask=make_request(detect="circle").prompt), settings=SHORT)
    [listed] = run_predict(tiny, path, make_request(detect="circle"), settings=SHORT)
    # The random model sees something, and calls it by no such name.
    assert free.record["objects"] and not listed.record["objects"]
    assert "not asked for and left out" in listed.record["warnings"][-1]


def test_one_path_without_a_folder_writes_nothing(tiny, tmp_path, monkeypatch):
    path = picture(tmp_path / "one.png")
    monkeypatch.chdir(tmp_path)
    [result] = run_predict(tiny, path, make_request(caption=True), settings=SHORT)
    assert result.json_path is None
    assert result.record["task"] == "caption"
    assert [file.name for file in tmp_path.iterdir()] == ["one.png"]


def test_answers_are_written_for_people():
    assert readable("A cat (<|VRT_7|><|VRT_12|>, <|VRT_3|>) by <|Obj_0|>.") == "A cat (#7 #12, #3) by object 1."
    assert readable("\n\n one \n\n\n two\n") == "one\ntwo"
    assert len(readable("x" * 5000)) == 604


def test_requests_of_the_command_line():
    assert make_request(refer="the red car").task == "refer"
    assert make_request(detect=["cat"]).task == "detect"
    assert make_request(ask="How many?").prompt == "How many?"
    for options in ({}, {"refer": "a", "caption": True}, {"detect": "a", "ask": "b"}):
        with pytest.raises(UserError, match="one thing at a time"):
            make_request(**options)
    for options in ({"detect": "cat,,dog"}, {"detect": ""}, {"refer": " "}, {"ask": ""}):
        with pytest.raises(UserError, match="blank|empty"):
            make_request(**options)


def test_bad_input_is_named_before_the_model_is_loaded(tiny, tmp_path):
    request = make_request(caption=True)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.jpg is not a readable image"):
        run_predict(tmp_path / "no model", tmp_path / "text.jpg", request)
    with pytest.raises(UserError, match=r"gone\.jpg cannot be opened"):
        run_predict(tiny, tmp_path / "gone.jpg", request)
    with pytest.raises(UserError, match="is a URL"):
        run_predict(tiny, "https://example.org/cat.jpg", request)
    with pytest.raises(UserError, match="at least one path"):
        run_predict(tiny, [], request)
    good = picture(tmp_path / "good.png")
    with pytest.raises(UserError, match="no model is not there|is not there"):
        run_predict(tmp_path / "no model", good, request)
    with pytest.raises(UserError, match="is a file"):
        run_predict(tiny, good, request, good)


def test_works_without_the_extras(tiny, tmp_path):
    """With `pip install .` alone there is no Ray, pyarrow, pydantic, MLflow or pycocotools."""
    code = f"""
import sys
missing = ("ray", "pyarrow", "pydantic", "mlflow", "pycocotools", "faster_coco_eval", "deepspeed")
sys.modules.update(dict.fromkeys(missing))  # importing any of them raises ImportError
from jobs.inference.drawing import readable
from jobs.inference.predict import make_request, run_predict
from padt.inference.predict import GenerationSettings
run_predict({tiny!r}, {str(picture(tmp_path / "a.png"))!r}, make_request(refer="the circle"),
            {str(tmp_path / "out")!r}, settings=GenerationSettings(max_new_tokens=4))
from jobs.inference.explain import run_explain
run_explain({tiny!r}, {str(tmp_path / "a.png")!r}, make_request(refer="the circle"), {str(tmp_path / "why")!r},
            settings=GenerationSettings(max_new_tokens=4))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.json").exists() and (tmp_path / "why" / "a.json").exists()


def test_masks_are_refined_where_that_is_asked(tiny, tmp_path):
    from padt.inference.refine import Refinement
    from tests.padt.tiny_sam import write_tiny_sam

    sam = write_tiny_sam(tmp_path / "sam")
    textured(150, 112).save(tmp_path / "one.png")
    request = make_request(caption=True)
    [own] = run_predict(tiny, tmp_path / "one.png", request, settings=SHORT)
    [refined] = run_predict(tiny, tmp_path / "one.png", request, settings=SHORT, refine=Refinement("box", sam))
    assert refined.record["refine"] == {"by": "sam2", "prompt": "box", "model": sam, "boxes": False}
    assert "refine" not in own.record and own.objects
    masks = [[found.pop("mask") for found in result.record["objects"]] for result in (own, refined)]
    assert own.record["objects"] == refined.record["objects"] and masks[0] != masks[1]
    with pytest.raises(UserError, match="is no SAM 2"):
        run_predict(tiny, tmp_path / "one.png", request, settings=SHORT, refine=Refinement("box", tiny))
