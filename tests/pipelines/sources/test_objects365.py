"""Objects365 is published with misspelt names, turned sizes, missing images and other people's folders."""

import json

import pytest

from pipelines.prepare.run import PrepareOptions
from pipelines.sources.objects365 import Objects365Source, mended_name
from tests.pipelines.coco_files import annotation, image_bytes, prepare_here, rejects_of, rows_of


@pytest.mark.parametrize(
    ("published", "right"),
    [
        ("Moniter/TV", "Monitor/TV"),
        ("Bakset", "Basket"),
        ("Dinning Table", "Dining Table"),
        ("Tea pot", "Teapot"),
        ("Hotair ballon", "Hot air balloon"),
        ("Hamimelon", "Hami melon"),
        ("Tape Measur/ Ruler", "Tape Measure/Ruler"),
        ("Table Teniis paddle", "Table Tennis paddle"),
        (" cosmetics  brush/eyeliner pencil", "cosmetics brush/eyeliner pencil"),
        ("moniter/tv", "monitor/tv"),
        ("Person", "Person"),
        ("SUV", "SUV"),
    ],
)
def test_names_are_spelt_right_and_keep_their_capitals(published, right):
    assert mended_name(published) == right


def _box(ann_id, image_id, category=2, **fields):
    return annotation(ann_id, image_id, category_id=category, isfake=0, isreflected=0, segmentation=None, **fields)


@pytest.fixture
def published(tmp_path):
    """A file of the published layout with something of everything that is known to be wrong."""
    folder = tmp_path / "train" / "patch0"
    folder.mkdir(parents=True)
    (folder / "objects365_v1_1.jpg").write_bytes(image_bytes(120, 90))
    (folder / "objects365_v1_2.jpg").write_bytes(image_bytes(120, 90, orientation=6))
    (folder / "objects365_v1_3.jpg").write_bytes(image_bytes(120, 90)[:-300])
    images = [
        {"id": number, "file_name": f"images/v1/patch0/objects365_v1_{number}.jpg", "width": 120, "height": 90}
        for number in (1, 2, 3, 4)
    ]
    content = {
        "images": images,
        "annotations": [
            _box(1, 1),
            _box(2, 1, iscrowd=1),
            {**_box(3, 1), "isfake": 1},
            _box(4, 2, box=(10, 70, 60, 40)),
            _box(5, 3),
            _box(6, 4),
        ],
        "categories": [{"id": 1, "name": "Person"}, {"id": 2, "name": "Moniter/TV"}],
    }
    (tmp_path / "zhiyuan_objv2_train.json").write_text(json.dumps(content))
    return tmp_path


def _options(published, **more):
    return PrepareOptions(
        source="objects365",
        annotations=str(published / "zhiyuan_objv2_train.json"),
        images=str(published / "train"),
        out=str(published / "set"),
        **more,
    )


def test_what_is_known_to_be_wrong_is_repaired_or_rejected(published):
    manifest = prepare_here(_options(published))
    assert [category.name for category in manifest.categories] == ["Person", "Monitor/TV"]
    assert manifest.counts.repairs == {"category_renamed": 1, "size_swapped": 1}
    first, turned = rows_of(published / "set")
    assert [(item["iscrowd"], item["label"], item["rle"]) for item in first["objects"]] == [
        (False, "Monitor/TV", None),
        (True, "Monitor/TV", None),
        (False, "Monitor/TV", None),
    ]
    # The box lies in the picture as it is seen: 90 wide, 120 high.
    assert (turned["width"], turned["height"]) == (90, 120)
    assert turned["objects"][0]["box"] == pytest.approx([10 / 90, 70 / 120, 70 / 90, 110 / 120])
    reasons = {(row["kind"], row["reason"]) for row in rejects_of(published / "set")}
    assert reasons == {("image", "image_unreadable"), ("image", "image_missing"), ("object", "image_rejected")}


def test_fakes_are_left_out_where_that_is_wanted(published):
    counts = prepare_here(_options(published, drop_fakes=True)).counts
    assert counts.objects == 3 and counts.rejects["object_fake"] == 1
    fake = next(row for row in rejects_of(published / "set") if row["reason"] == "object_fake")
    assert (fake["key"], fake["ann_id"]) == ("objects365/train/1", 3)


def test_the_published_sample_arrives_whole(samples, tmp_path):
    path = samples / "objects365" / "zhiyuan_objv2_val.json"
    published = json.loads(path.read_text())
    options = PrepareOptions(
        source="objects365",
        annotations=str(path),
        images=str(samples / "coco"),
        out=str(tmp_path / "set"),
        split="val",
        images_mode="link",
    )
    counts = prepare_here(options).counts
    assert (counts.rows, counts.objects, counts.rejects) == (40, len(published["annotations"]), {})
    crowds = sum(item["iscrowd"] for row in rows_of(tmp_path / "set") for item in row["objects"])
    assert crowds == sum(item["iscrowd"] for item in published["annotations"])
    assert list(Objects365Source(str(path)).header().categories) == [
        (category["id"], category["name"]) for category in published["categories"]
    ]
