"""gRefCOCO as it is published: references in JSON, to several objects, to one, or to none."""

import json

import pytest

from padt.errors import UserError
from pipelines.sources.base import Piece
from pipelines.sources.refcoco import load_refs, published_name, reference_pieces
from tests.pipelines.coco_files import annotation, options_for, prepare_here, rows_of, write_coco


def _ref(number, ann_id, *texts, **fields):
    sentences = [
        {"tokens": text.split(), "raw": text, "sent": text, "sent_id": 10 * number + place, "exist": ann_id != [-1]}
        for place, text in enumerate(texts)
    ]
    ids = [each["sent_id"] for each in sentences]
    ref = {"ref_id": number, "ann_id": ann_id, "image_id": 1, "split": "train", "sentences": sentences, "sent_ids": ids}
    return (
        ref | {"category_id": [3], "file_name": "COCO_train2014_000000000001.jpg", "no_target": ann_id == [-1]} | fields
    )


REFS = [
    _ref(0, [11], "left cat"),
    _ref(1, [11, 12], "both cats", "all of them"),
    _ref(2, [-1], "a red dragon"),
    _ref(3, [12], "right cat", split="val"),
]


def _written(folder, refs, name="grefs(unc).json"):
    path = folder / name
    path.write_text(json.dumps(refs))
    return str(path)


def test_a_set_of_it_has_references_to_several_objects_and_to_none(tmp_path):
    write_coco(tmp_path, 1, annotations=[annotation(11, 1), annotation(12, 1, (60, 20, 50, 40))])
    references = _written(tmp_path, REFS)
    manifest = prepare_here(options_for(tmp_path, tmp_path / "set", source="refcoco", references=references))
    (row,) = rows_of(tmp_path / "set")
    ids = [item["ann_id"] for item in row["objects"]]
    found = [(each["text"], [ids[place] for place in each["objects"]]) for each in row["references"]]
    assert found == [("left cat", [11]), ("both cats", [11, 12]), ("all of them", [11, 12]), ("a red dragon", [])]
    assert row["key"] == "grefcoco/train/1" and not manifest.counts.rejects


def _targets(*refs):
    pieces = list(reference_pieces(list(refs), None))
    return [json.loads(each.text)["ann_ids"] if isinstance(each, Piece) else each.reason for each in pieces]


@pytest.mark.parametrize(
    ("ref", "targets"),
    [
        (_ref(1, -1, "it", no_target=True), []),
        (_ref(1, None, "it", no_target=True), []),
        (_ref(1, [], "it", no_target=True), []),
        (_ref(1, [-1], "it", no_target=False), []),
        (_ref(1, ["11", 12.0, 11], "it", no_target=False), [11, 12]),
        (_ref(1, [11], "it", no_target=True), "reference_malformed"),
        (_ref(1, None, "it", no_target=False), "reference_malformed"),
        (_ref(1, ["cat"], "it", no_target=False), "reference_malformed"),
    ],
)
def test_targets_are_numbers_or_said_to_be_none(ref, targets):
    assert _targets(ref) == [targets]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "does not hold a list of references"),
        ([{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]}], "no reference with sentences.*COCO results"),
        ('[{"ref_id": 1', "cut off"),
    ],
)
def test_other_json_is_refused(tmp_path, content, message):
    path = tmp_path / "grefs.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_refs(str(path))


def test_a_set_is_called_after_its_folder_or_file():
    assert published_name("data/grefcoco/grefs(unc).json") == published_name("grefs(unc).json") == "grefcoco"
    assert published_name("data/refcoco+/refs(unc).json") == "refcoco+" and published_name("refs.p") == "refcoco"
