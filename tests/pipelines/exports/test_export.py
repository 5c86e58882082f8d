"""What goes in must come out: a set that was prepared serves other tools too, and can be taken back."""

import json
import pickle
from typing import Any

import pytest
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO

from padt.errors import UserError
from pipelines.exports.run import export_data
from pipelines.prepare.run import PrepareOptions
from pipelines.sources.refcoco import load_refs
from tests.pipelines.coco_files import annotation, coco_options, options_for, prepare_here, rows_of, write_coco
from tests.pipelines.mini_set import write_mini_set


def _json(path):
    return json.loads(path.read_text())


def test_coco_comes_back_as_it_went_in(samples, tmp_path):
    options = coco_options(samples, "val", tmp_path / "set")
    prepare_here(options)
    exported = export_data(str(tmp_path / "set"), str(tmp_path / "out"))
    assert exported.files == {"images/": 40, "captions.json": 200, "instances.json": 348} and not exported.renumbered
    before, after = _json(samples / "coco/annotations/instances_val2017.json"), _json(tmp_path / "out/instances.json")
    assert after["categories"] == [{"id": each["id"], "name": each["name"]} for each in before["categories"]]
    for field in ("file_name", "width", "height"):
        assert {each["id"]: each[field] for each in after["images"]} == {
            each["id"]: each[field] for each in before["images"]
        }
    api = COCO(str(samples / "coco/annotations/instances_val2017.json"))
    assert {each["id"] for each in after["annotations"]} == set(api.anns)
    for each in after["annotations"]:
        source = api.anns[each["id"]]
        for field in ("image_id", "category_id", "iscrowd", "area"):
            assert each[field] == source[field]
        assert each["bbox"] == pytest.approx(source["bbox"], abs=0.01)
        assert mask_tools.decode(each["segmentation"]).tobytes() == api.annToMask(source).tobytes()
    captions = _json(samples / "coco/annotations/captions_val2017.json")["annotations"]
    assert {each["id"]: each for each in _json(tmp_path / "out/captions.json")["annotations"]} == {
        each["id"]: each for each in captions
    }
    for image in before["images"]:
        original = samples / "coco/val2017" / image["file_name"]
        assert (tmp_path / "out/images" / image["file_name"]).read_bytes() == original.read_bytes()
    assert COCO(str(tmp_path / "out/instances.json")).getImgIds() == [each["id"] for each in after["images"]]


def test_what_came_out_can_be_prepared_again_and_is_the_same(samples, tmp_path):
    """Once more around: rows are equal in everything but the rounding of boxes."""
    prepare_here(coco_options(samples, "val", tmp_path / "set"))
    export_data(str(tmp_path / "set"), str(tmp_path / "out"))
    again = {"annotations": "instances.json", "captions": "captions.json", "images": "images"}
    paths: dict[str, Any] = {name: str(tmp_path / "out" / file) for name, file in again.items()}
    prepare_here(PrepareOptions(out=str(tmp_path / "again"), split="val", rows_per_shard=16, **paths))
    for ours, theirs in zip(rows_of(tmp_path / "set"), rows_of(tmp_path / "again"), strict=True):
        for item in theirs["objects"]:
            item["box"] = pytest.approx(item["box"], abs=1e-5)
        assert ours == theirs


def test_sentences_come_back_as_refcoco_writes_them(samples, tmp_path):
    folder = samples / "refcoco" / "refcoco"
    files = {"annotations": str(folder / "instances.json"), "references": str(folder / "refs(unc).p")}
    options: dict[str, Any] = {"source": "refcoco", "split": "val", "images": str(samples / "coco"), **files}
    prepare_here(PrepareOptions(out=str(tmp_path / "set"), **options))
    exported = export_data(str(tmp_path / "set"), str(tmp_path / "out"), images=False)
    assert not (tmp_path / "out" / "images").exists()
    before = {each["ref_id"]: each for each in load_refs(files["references"]) if each["split"] == "val"}
    after = {each["ref_id"]: each for each in load_refs(str(tmp_path / "out" / "refs.p"))}
    assert after == {each["ref_id"]: each for each in pickle.loads((tmp_path / "out" / "refs.p").read_bytes())}
    assert exported.files["refs.p"] == len(before) == len(after)
    for ref_id, ref in before.items():
        for field in ("ann_id", "image_id", "category_id", "split"):
            assert after[ref_id][field] == ref[field]
        said = [[(each["sent_id"], each["sent"]) for each in one["sentences"]] for one in (ref, after[ref_id])]
        assert said[0] == said[1]


def test_grounded_captions_come_back_with_their_tags(samples, tmp_path):
    file = samples / "ric" / "ric_instances_val2017.json"
    options: dict[str, Any] = {
        "source": "ric",
        "split": "val",
        "annotations": str(file),
        "images": str(samples / "coco" / "val2017"),
    }
    prepare_here(PrepareOptions(out=str(tmp_path / "set"), **options))
    export_data(str(tmp_path / "set"), str(tmp_path / "out"))
    before = {image["id"]: image["captions"] for image in _json(file)["images"]}
    after = {image["id"]: image["captions"] for image in _json(tmp_path / "out" / "instances.json")["images"]}
    assert sum(len(captions) for captions in after.values()) == 60  # the others are cut off, and rejected
    for image_id, captions in after.items():
        assert [caption for caption in before[image_id] if caption in captions] == captions
    again: dict[str, Any] = {
        "annotations": str(tmp_path / "out/instances.json"),
        "images": str(tmp_path / "out/images"),
    }
    prepare_here(PrepareOptions(out=str(tmp_path / "again"), **{**options, **again}))
    for ours, theirs in zip(rows_of(tmp_path / "set"), rows_of(tmp_path / "again"), strict=True):
        assert ours["captions"] == theirs["captions"]


def test_the_released_lines_come_back_as_the_same_set(samples, tmp_path):
    """Detection and sentences as the published files have them, read by the source that reads those."""
    folder = samples / "refcoco" / "refcoco"
    files = {"annotations": str(folder / "instances.json"), "references": str(folder / "refs(unc).p")}
    options: dict[str, Any] = {"source": "refcoco", "split": "val", "images": str(samples / "coco"), **files}
    prepare_here(PrepareOptions(out=str(tmp_path / "set"), **options))
    exported = export_data(str(tmp_path / "set"), str(tmp_path / "out"), to="released")
    rows = {int(row["image_id"]): row for row in rows_of(tmp_path / "set")}
    assert exported.files == {
        "images/": 14,
        "ovd.jsonl": 14,
        "rec.jsonl": sum(len(r["references"]) for r in rows.values()),
    }
    lines = [json.loads(line) for line in (tmp_path / "out" / "ovd.jsonl").read_text().splitlines()]
    for line in lines:
        assert {"id", "image", "conversations", "answer_template", "objects", "task"} == set(line)
        assert line["conversations"][0]["from"] == "human" and line["task"] == "ovd"
        assert line["answer_template"].count("<|Obj_") == len(line["objects"])
        for item in line["objects"]:
            source = next(each for each in rows[line["id"]]["objects"] if each["ann_id"] == item["ann_id"])
            assert (item["rle"], item["label"], item["bbox"]) == (source["rle"], source["label"], source["box"])
            assert item["patches"] and f'"{item["label"]}"' in line["conversations"][0]["value"]
    both = tmp_path / "both.jsonl"
    both.write_text("".join((tmp_path / "out" / name).read_text() for name in ("ovd.jsonl", "rec.jsonl")))
    again: dict[str, Any] = {"source": "released", "annotations": str(both), "images": str(tmp_path / "out" / "images")}
    prepare_here(PrepareOptions(out=str(tmp_path / "again"), name="refcoco", split="val", **again))
    for row in rows_of(tmp_path / "again"):
        ours = rows[int(row["image_id"])]
        visible = {item["ann_id"]: item for item in ours["objects"] if any(item["patches"])}
        for item in row["objects"]:
            source = visible[item["ann_id"]]
            for field in ("label", "area", "iscrowd", "rle", "patches"):
                assert item[field] == source[field]
        said = [
            [
                (each["sent_id"], each["text"], [one["objects"][place]["ann_id"] for place in each["objects"]])
                for each in one["references"]
            ]
            for one in (row, ours)
        ]
        assert said[0] == said[1]


def test_sets_whose_images_number_their_own_objects_are_numbered_anew(tmp_path):
    url = write_mini_set(tmp_path / "set", 4)
    exported = export_data(url, str(tmp_path / "out"))
    content = _json(tmp_path / "out" / "instances.json")
    numbers = [each["id"] for each in content["annotations"]]
    assert exported.renumbered and numbers == list(range(1, len(numbers) + 1))
    rows = {row["image_id"]: row for row in rows_of(tmp_path / "set")}
    assert [image["captions"] != [] for image in content["images"]] == [row["captions"] != [] for row in rows.values()]
    for ref in pickle.loads((tmp_path / "out" / "refs.p").read_bytes()):
        target = content["annotations"][ref["ann_id"] - 1]
        assert target["image_id"] == ref["image_id"] and target["category_id"] == ref["category_id"]


def test_odd_ids_names_and_texts_survive(tmp_path):
    folder = write_coco(
        tmp_path / "raw", 2, annotations=[annotation(5, "a-1"), annotation(6, "007", segmentation=None)]
    )
    content = _json(folder / "instances.json")
    for image, image_id in zip(content["images"], ("a-1", "007"), strict=True):
        image["id"] = image_id
    (folder / "instances.json").write_text(json.dumps(content))
    captions = [
        {"id": 9, "image_id": "007", "caption": " two  spaces\n"},
        {"id": 4, "image_id": "a-1", "caption": "Ä \U0001f600"},
    ]
    (folder / "captions.json").write_text(json.dumps({"annotations": captions}))
    prepare_here(options_for(folder, tmp_path / "set", captions=str(folder / "captions.json"), images_mode="link"))
    export_data(str(tmp_path / "set"), str(tmp_path / "out"))
    after = _json(tmp_path / "out" / "instances.json")
    assert {image["id"]: image["file_name"] for image in after["images"]} == {"a-1": "0001.jpg", "007": "0002.jpg"}
    assert [("segmentation" in each) for each in sorted(after["annotations"], key=lambda each: each["id"])] == [
        True,
        False,
    ]
    assert sorted(_json(tmp_path / "out" / "captions.json")["annotations"], key=lambda each: -each["id"]) == captions
    assert (tmp_path / "out" / "images" / "0001.jpg").read_bytes() == (folder / "images" / "0001.jpg").read_bytes()


def test_what_cannot_be_exported_is_a_clear_error(tmp_path):
    url = write_mini_set(tmp_path / "set", 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="full exists and is not empty"):
        export_data(url, str(tmp_path / "full"))
    with pytest.raises(UserError, match=r"mine\.txt exists and is not empty"):
        export_data(url, str(tmp_path / "full" / "mine.txt"))
    with pytest.raises(UserError, match="exists and is not empty"):
        export_data(url, url)
    with pytest.raises(UserError, match="'yolo' is unknown: .*nown are coco, released"):
        export_data(url, str(tmp_path / "out"), to="yolo")
    with pytest.raises(UserError, match="does not exist"):
        export_data(str(tmp_path / "nothing"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
