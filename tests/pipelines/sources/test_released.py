"""The authors' JSON lines: what was one row for each question becomes one row for each image, with nothing lost."""

import json

import numpy as np
import pytest
from PIL import Image

from padt.data.patches import unpack_patches
from padt.errors import UserError
from pipelines.prepare.run import PrepareOptions
from pipelines.sources.released import UNLABELLED, ReleasedSource
from tests.pipelines.coco_files import image_bytes, prepare_here, rejects_of, rows_of

DETECT = 'Please carefully check the image and detect the following objects: ["cat", "dog"].'
REFER = 'Please carefully check the image and detect the object this sentence describes: "the left cat".'
DESCRIBE = "Please describe this image."


def _line(question, answer, objects, image="000000000007.jpg", line_id=7, **more):
    turns = [{"from": "human", "value": question}]
    content = {"id": line_id, "image": image, "conversations": turns, "answer_template": answer, "objects": objects}
    return {**content, **more}


def _object(box, label, **more):
    return {"patches": [0], "bbox": box, "iscrowd": 0, "area": 12.5, "label": label, **more}


LEFT, RIGHT = [0.1, 0.2, 0.4, 0.9], [0.5, 0.2, 0.8, 0.9]


@pytest.fixture
def prepared(tmp_path):
    """Prepare lines about an image that lies there, and return the folder of the set."""

    def prepare(*lines, name="lines.jsonl"):
        (tmp_path / "000000000007.jpg").write_bytes(image_bytes())
        (tmp_path / name).write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
        out = tmp_path / "set"
        prepare_here(
            PrepareOptions(
                source="released", annotations=str(tmp_path / name), images=str(tmp_path), out=str(out), overwrite=True
            )
        )
        return out

    return prepare


def test_lines_about_one_image_become_one_row(prepared):
    out = prepared(
        _line(REFER, 'The "the left cat" refers to <|Obj_0|> in this image.', [_object(LEFT, "the left cat")]),
        _line(DETECT, "...", [_object(RIGHT, "dog"), _object(LEFT, "cat")]),
        _line(
            DESCRIBE,
            "A dog (<|Obj_1|>) and a cat (<|Obj_0|>), both (<|Obj_0|>, <|Obj_1|>).",
            [_object(LEFT, ""), _object(RIGHT, "")],
        ),
    )
    (row,) = rows_of(out)
    assert row["key"] == "released/train/7"
    assert [(item["ann_id"], item["label"]) for item in row["objects"]] == [(1, "cat"), (2, "dog")]
    assert row["objects"][0]["box"] == pytest.approx(LEFT) and row["objects"][0]["area"] == 12.5
    assert [(item["text"], item["objects"]) for item in row["references"]] == [("the left cat", [0])]
    (caption,) = row["captions"]
    assert caption["text"] == "A dog (<|Obj_0|>) and a cat (<|Obj_1|>), both (<|Obj_2|>, <|Obj_3|>)."
    assert caption["objects"] == [1, 0, 0, 1]


def test_lines_that_cannot_be_used_are_rejected_one_by_one(prepared):
    out = prepared(
        _line(
            DETECT, "...", [_object(LEFT, "cat"), _object([0.5, 0.5, 0.5, 0.9], "dog"), _object([2, 2, 3, 3], "dog")]
        ),
        {"id": 3, "image": "a.jpg"},
        _line("What is this?", "A cat (<|Obj_0|>).", [_object(LEFT, "")]),
        _line(REFER, "It refers to <|Obj_5|> in this image.", [_object(LEFT, "")]),
        _line(DESCRIBE, "A caption (<|Obj_0|>) that does not end", [_object(LEFT, "")]),
    )
    (row,) = rows_of(out)
    assert len(row["objects"]) == 1 and not row["references"] and not row["captions"]
    assert sorted((reject["kind"], reject["reason"]) for reject in rejects_of(out)) == [
        ("caption", "caption_unfinished"),
        ("conversation", "question_unknown"),
        ("image", "image_malformed"),
        ("object", "box_degenerate"),
        ("object", "box_outside_image"),
        ("reference", "object_missing"),
    ]


def test_images_whose_lines_have_other_ids_go_by_their_file_names(tmp_path):
    lines = [
        _line(REFER, "...", [], "COCO_train2014_000000000790.jpg", 1),
        _line(REFER, "...", [], "COCO_train2014_000000000790.jpg", 2),
        _line(REFER, "...", [], "mine/b.png", 3),
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    header = ReleasedSource(str(path)).header()
    assert [entry.image_id for entry in header.images] == ["790", "mine/b"]


def test_objects_without_a_class_are_no_class_of_detection(prepared):
    out = prepared(_line(REFER, "It refers to <|Obj_0|>.", [_object(LEFT, "the left cat")]))
    (row,) = rows_of(out)
    assert [item["label"] for item in row["objects"]] == [UNLABELLED]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1}\n{"id": 2, "ima', r"lines\.jsonl is not JSON in line 2 .*cut off"),
        ('{"images": [], "annotations": []}', r"has no line with 'image'"),
        ("", "has no line"),
    ],
)
def test_a_file_that_is_not_of_the_format_is_an_error_before_work_starts(tmp_path, text, message):
    path = tmp_path / "lines.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        ReleasedSource(str(path)).header()


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_released_preparation_arrives_with_its_objects_and_patches(reference_fixture, tmp_path, split):
    source = json.loads((reference_fixture / "coco_in.json").read_text())
    for image in source["images"]:
        blank = np.zeros((image["height"], image["width"], 3), np.uint8)
        Image.fromarray(blank).save(tmp_path / image["file_name"])
    path = reference_fixture / f"coco_out_{split}.jsonl"
    prepare_here(
        PrepareOptions(source="released", annotations=str(path), images=str(tmp_path), out=str(tmp_path / "set"))
    )
    lines = {str(line["id"]): line for line in map(json.loads, path.read_text().splitlines())}
    rows = rows_of(tmp_path / "set")
    assert {row["image_id"] for row in rows} == set(lines)
    for row in rows:
        for ours, released in zip(row["objects"], lines[row["image_id"]]["objects"], strict=True):
            cells = unpack_patches(ours["patches"], row["grid_h"] * row["grid_w"])
            assert np.flatnonzero(cells).tolist() == sorted(released["patches"])
            assert ours["box"] == pytest.approx(released["bbox"], abs=1e-6)
            assert (ours["rle"], ours["label"]) == (released.get("rle"), released["label"])
            assert (ours["area"], ours["iscrowd"]) == (pytest.approx(released["area"]), bool(released["iscrowd"]))
