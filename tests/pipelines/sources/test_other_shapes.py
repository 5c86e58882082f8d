"""Sections and ids in other shapes than COCO's: joined where they are clear, refused with the fix where not."""

import json

import pytest

from padt.errors import UserError
from pipelines.sources.coco import CocoSource
from tests.pipelines.coco_files import (
    CATEGORIES,
    annotation,
    image_bytes,
    options_for,
    prepare_here,
    rejects_of,
    rows_of,
    write_coco,
)


def _prepare(folder, images=None, annotations=None, **sections):
    images = [{"id": 1, "file_name": "a.jpg"}] if images is None else images
    write_coco(folder, 0, images=images, annotations=annotations or [annotation(1, 1)], **sections)
    for name in ("a.jpg", "b.jpg"):
        (folder / "images" / name).write_bytes(image_bytes(seed=ord(name[0])))
    manifest = prepare_here(options_for(folder, folder / "set"))
    return manifest, {row["image_id"]: row for row in rows_of(folder / "set")}


@pytest.mark.parametrize(
    ("listed", "written"),
    [
        ("000000000139", 139),
        (139, "000000000139"),
        ("139", 139.0),
        (139, "139.0"),
        ("0", 0),
        ("000", 0),
        (" 139", 139),
        ("a-7", "a-7"),
    ],
)
def test_ids_that_mean_one_number_are_joined(tmp_path, listed, written):
    manifest, rows = _prepare(tmp_path, [{"id": listed, "file_name": "a.jpg"}], [annotation(1, written)])
    (row,) = rows.values()
    assert len(row["objects"]) == 1 and not manifest.counts.rejects


def test_ids_that_could_mean_two_images_are_not_joined(tmp_path):
    images = [{"id": "7", "file_name": "a.jpg"}, {"id": "007", "file_name": "b.jpg"}]
    manifest, rows = _prepare(tmp_path, images, [annotation(1, "07"), annotation(2, 7), annotation(3, "007")])
    assert manifest.counts.rejects == {"image_not_listed": 1}
    assert [[item["ann_id"] for item in rows[image]["objects"]] for image in ("7", "007")] == [[2], [3]]


def test_an_image_id_that_is_a_file_name_is_told(tmp_path):
    _prepare(tmp_path, annotations=[annotation(1, "a.jpg"), annotation(2, "c.jpg"), annotation(3, 1)])
    details = [reject["detail"] for reject in rejects_of(tmp_path / "set")]
    assert details == ["image_id a.jpg is the file name of an image: write its id, 1", None]


def test_objects_of_two_files_with_one_id_never_meet_in_one_row(tmp_path):
    images = [{"id": number, "file_name": name} for number, name in ((1, "a.jpg"), (1, "b.jpg"), (2, "b.jpg"))]
    manifest, rows = _prepare(tmp_path, images, [annotation(1, 1), annotation(2, 1), annotation(3, 2)])
    assert manifest.counts.rejects == {"duplicate_image_id": 1, "image_ambiguous": 2}
    assert rows["1"]["objects"] == [] and len(rows["2"]["objects"]) == 1
    assert all("a.jpg" in reject["detail"] and "b.jpg" in reject["detail"] for reject in rejects_of(tmp_path / "set"))


def test_an_image_that_is_listed_twice_keeps_its_objects(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}] * 2
    manifest, rows = _prepare(tmp_path, images, [annotation(1, 1), annotation(2, 1)])
    assert manifest.counts.rejects == {"duplicate_image_id": 1} and len(rows["1"]["objects"]) == 2


def test_lvis_names_its_images_by_their_address(tmp_path):
    images = [{"id": 1, "coco_url": "http://images.cocodataset.org/train2017/a.jpg", "height": 90, "width": 120}]
    manifest, rows = _prepare(tmp_path, images)
    assert rows["1"]["image"]["path"] == "train2017/a.jpg" and not manifest.counts.rejects


@pytest.mark.parametrize(
    ("categories", "category_id", "label"),
    [
        ([{"id": 3, "name": 7}], 3, "7"),
        ([{"id": "3", "name": "cat"}], 3.0, "cat"),
        ({"3": "cat", "4": "dog"}, 3, "cat"),
        ({"cat": 3}, 3, "cat"),
        ({"3": {"name": "cat"}}, "3", "cat"),
        ([{"id": "3f2b-0c", "name": "cat"}, {"id": "3f2b-0d", "name": "dog"}], "3f2b-0c", "cat"),
    ],
)
def test_categories_are_read_in_other_shapes(tmp_path, categories, category_id, label):
    manifest, rows = _prepare(tmp_path, annotations=[annotation(1, 1, category_id=category_id)], categories=categories)
    (item,) = rows["1"]["objects"]
    assert item["label"] == label and (item["category_id"], label) in manifest.categories


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": {"1": {"id": 1}}}, r"an object as its section 'images'.*list\(d\['images'\]\.values\(\)\)"),
        ({"annotations": {"1": annotation(1, 1)}}, r"an object as its section 'annotations'.*\.values\(\)"),
        ({"images": "images.json"}, r"has str as its section 'images'"),
        ({"categories": ["cat"]}, r"category without a usable 'id'.*mend its section 'categories'"),
        ({"annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": []}]}, r"panoptic.*instances_"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg", "annotations": [annotation(1, 1)]}], "annotations": []},
            r"'annotations' inside of its images",
        ),
        ({"images": [{"id": 1, "path": "a.jpg"}]}, r"lists no usable image.*no usable file_name: .*'path'"),
    ],
)
def test_shapes_that_cannot_be_read_are_refused_with_the_fix(tmp_path, content, message):
    path = tmp_path / "instances.json"
    good = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [annotation(1, 1)], "categories": CATEGORIES}
    path.write_text(json.dumps(good | content))
    with pytest.raises(UserError, match=message):
        CocoSource(str(path)).header()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": "5.5", "shapes": [], "imagePath": "a.jpg", "imageData": None}, r"'images'.*LabelMe"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, r"'images'.*VIA"),
        ({"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": []}}, r"'images'.*VIA"),
        ({"info": {}, "categories": {}, "items": []}, r"Datumaro"),
        ({"version": "2.0", "item": {}, "annotations": []}, r"V7"),
        ({"classes": ["cat"], "labels": {}}, r"FiftyOne"),
        ({"metainfo": {}, "data_list": []}, r"MMEngine"),
        ({"images": [], "annotations": [annotation(1, 1)]}, r"no section 'categories'[^-]*$"),
        ({"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "A cat."}]}, r"captions file.*--captions"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.9}], r"not a JSON object.*COCO results"),
        ([{"ref_id": 1, "sentences": []}], r"--references"),
        ([{"id": 1, "conversations": []}], r"padt prepare messages"),
        ([{"id": 1, "data": {}, "annotations": []}], r"Label Studio"),
        ([{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {}}]}], r"CreateML"),
        ([], r"not a JSON object.*Check the file"),
        ("<annotation><folder>x</folder></annotation>", r"XML"),
    ],
)
def test_a_file_of_another_layout_is_named_with_the_fix(tmp_path, content, message):
    path = tmp_path / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        CocoSource(str(path)).header()
