"""Users' own COCO files: every tool writes the format in its own way."""

import json
from pathlib import Path

import pytest

from padt.data.patches import unpack_patches
from padt.errors import UserError
from pipelines.prepare.run import PrepareOptions
from pipelines.sources.coco import CocoSource
from tests.pipelines.coco_files import annotation, image_bytes, prepare_here, rejects_of, rows_of


def _prepare(folder: Path, content: dict, images: dict[str, bytes], **more):
    for name, data in images.items():
        (folder / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "raw" / name).write_bytes(data)
    (folder / "export.json").write_text(json.dumps(content))
    options = {"annotations": str(folder / "export.json"), "images": str(folder / "raw"), **more}
    manifest = prepare_here(PrepareOptions(out=str(folder / "set"), name="mine", **options))
    return manifest, rows_of(folder / "set")


def test_roboflow_counts_from_zero_and_lists_the_project_as_a_category(tmp_path):
    content = {
        "images": [{"id": 0, "file_name": "a_jpg.rf.0d.jpg", "height": 90, "width": 120}],
        "annotations": [annotation(0, 0, category_id=1, segmentation=[])],
        "categories": [
            {"id": 0, "name": "fruit", "supercategory": "none"},
            {"id": 1, "name": "apple", "supercategory": "fruit"},
        ],
    }
    manifest, (row,) = _prepare(tmp_path, content, {"a_jpg.rf.0d.jpg": image_bytes()})
    assert row["key"] == "mine/train/0" and row["objects"][0]["ann_id"] == 0 and row["objects"][0]["rle"] is None
    assert [category.name for category in manifest.categories] == ["apple"]
    assert manifest.counts.repairs == {"category_heading_left_out": 1}


def test_a_category_above_others_that_has_objects_of_its_own_stays(tmp_path):
    path = tmp_path / "export.json"
    content = {
        "images": [{"id": 0, "file_name": "a.jpg"}],
        "annotations": [annotation(0, 0, category_id=0)],
        "categories": [
            {"id": 0, "name": "fruit", "supercategory": "none"},
            {"id": 1, "name": "apple", "supercategory": "fruit"},
        ],
    }
    path.write_text(json.dumps(content))
    assert len(CocoSource(str(path)).header().categories) == 2


def test_label_studio_and_cvat_write_folders_and_leave_fields_out(tmp_path):
    box = {key: value for key, value in annotation(5, 1).items() if key not in ("iscrowd", "area")}
    content = {
        "images": [
            {"id": 1, "file_name": "images\\0a1b-one.jpg", "width": 120, "height": 90},
            {"id": 2, "file_name": "default/deep/two.jpg", "width": 120, "height": 90},
            {"id": 3, "file_name": str(tmp_path / "raw" / "three.jpg"), "width": 120, "height": 90},
        ],
        "annotations": [box, {**box, "id": 6, "image_id": 2, "segmentation": [[]]}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    pictures = {"0a1b-one.jpg": image_bytes(), "deep/two.jpg": image_bytes(), "three.jpg": image_bytes()}
    manifest, (one, two, three) = _prepare(tmp_path, content, pictures)
    assert manifest.counts.rejects == {}
    assert one["objects"][0]["area"] == 60 * 40 and one["objects"][0]["iscrowd"] is False
    assert two["objects"][0]["rle"] is None and three["objects"] == []


def test_ids_in_text_are_kept_as_numbers_that_are_always_the_same(tmp_path):
    content = {
        "images": [{"id": "img-7", "file_name": "a.jpg", "width": 120, "height": 90}],
        "annotations": [
            annotation("41", "img-7", category_id="3"),
            annotation("b1946ac9-2492", "img-7"),
            annotation("b1946ac9-2492", "img-7"),
        ],
        "categories": [{"id": "3", "name": "cat"}],
    }
    manifest, (row,) = _prepare(tmp_path, content, {"a.jpg": image_bytes()})
    numbers = [item["ann_id"] for item in row["objects"]]
    assert row["image_id"] == "img-7" and numbers[0] == 41 and 0 <= numbers[1] < 10**18
    assert manifest.counts.repairs == {"annotation_id_numbered": 1}
    assert [(reject["reason"], reject["ann_id"]) for reject in rejects_of(tmp_path / "set")] == [
        ("duplicate_annotation_id", numbers[1])
    ]


def test_a_missing_box_is_that_of_the_mask(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [annotation(1, 1, bbox=None), annotation(2, 1, bbox=[])],
        "categories": [{"id": 3, "name": "cat"}],
    }
    manifest, (row,) = _prepare(tmp_path, content, {"a.jpg": image_bytes()})
    for item in row["objects"]:
        assert item["box"] == pytest.approx([10 / 120, 20 / 90, 70 / 120, 60 / 90])
        assert unpack_patches(item["patches"], row["grid_h"] * row["grid_w"]).any()
    assert manifest.counts.repairs == {"box_from_mask": 2}


@pytest.mark.parametrize("name", ["images/x.jpg", "x.jpg"])
def test_photographs_of_the_years_are_found_by_number(tmp_path, name):
    """A file of 2017 beside a folder of 2014, whose names have a prefix."""
    content = {
        "images": [{"id": 9, "file_name": name.replace("x", "000000000009")}],
        "annotations": [],
        "categories": [{"id": 3, "name": "cat"}],
    }
    manifest, _ = _prepare(tmp_path, content, {"images/val2014/COCO_val2014_000000000009.jpg": image_bytes()})
    assert manifest.counts.rows == 1


def test_the_three_sets_of_references_get_their_own_names(samples):
    for name, file in (("refcoco", "refs(unc).p"), ("refcoco+", "refs(unc).p"), ("refcocog", "refs(umd).p")):
        folder = samples / "refcoco" / name
        options = PrepareOptions(
            source="refcoco", annotations="i.json", references=str(folder / file), images="images", out="out"
        )
        assert options.set_name == name
    assert (
        PrepareOptions("i.json", "images", "out", source="refcoco", references="refs(google).p").set_name == "refcoco"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty"),
        (b'{"images": [], "annotations": []} {"a": 1}', r"goes on after its JSON object.*padt prepare released"),
        (b'{"images": [], "annotations": []}', r"captions file: give it as --captions"),
        (b'{"id": 1, "conversations": [], "answer_template": ""}', r"padt prepare released"),
        (b"\x80\x02]q\x00.", r"looks like a pickle.*--references"),
        (b"(lp0\n.", r"looks like a pickle.*--references"),
        (b"PK\x03\x04\xff\xff", r"looks like a zip"),
        (b"\x1f\x8b\x08\x00\xff", r"looks like gzip"),
        (b'{"images": [' + b"9" * 5000 + b"]}", r"is not valid JSON at character"),
        (b"[" * 100_000, r"is not a JSON object"),
        (b'{"a":' + b"[" * 100_000, r"nested|recursion"),
    ],
)
def test_a_file_of_another_kind_is_named_with_the_fix(tmp_path, content, message):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        CocoSource(str(path)).header()


def test_instances_given_as_references_are_named_with_the_fix(tmp_path):
    path = tmp_path / "refs.p"
    path.write_text('{"images": []}')
    with pytest.raises(UserError, match=r"looks like JSON.*--annotations"):
        list(CocoSource("instances.json", references=str(path), only_referred=True).pieces())
