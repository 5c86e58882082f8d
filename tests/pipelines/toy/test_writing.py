"""If these break, `padt prepare toy` reads files that are not what COCO, RefCOCO and RIC readers expect."""

import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from padt.data import rle
from padt.errors import UserError
from pipelines.toy.scenes import CATEGORY_NAMES
from pipelines.toy.writing import SPLITS, split_scene, write_dataset

SCENES = 40


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("toy") / "val", scenes=SCENES, seed=4, split="val")


@pytest.fixture(scope="module")
def instances(written):
    return json.loads(written.instances.read_text())


def test_files_hold_what_is_drawn(written, instances):
    assert len(instances["images"]) == SCENES == written.num_images
    assert {category["name"] for category in instances["categories"]} == set(CATEGORY_NAMES)
    names = {category["id"]: category["name"] for category in instances["categories"]}
    for number, image in enumerate(instances["images"]):
        scene, _, _ = split_scene("val", number, seed=4)
        with Image.open(written.images / image["file_name"]) as opened:
            pixels = np.asarray(opened)
        assert pixels.shape == (image["height"], image["width"], 3) == scene.image.shape
        assert np.abs(pixels.astype(int) - scene.image).mean() < 6
        annotations = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
        for annotation, shape in zip(annotations, scene.shapes, strict=True):
            assert np.array_equal(rle.decode(annotation["segmentation"]), shape.mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width, y + height) == shape.box and annotation["area"] == shape.area
            assert names[annotation["category_id"]] == shape.category == shape.kind


def test_the_coco_api_reads_the_instances(written):
    coco = pytest.importorskip("pycocotools.coco")
    api = coco.COCO(str(written.instances))
    assert len(api.anns) == written.num_objects
    assert all(api.annToMask(annotation).sum() == annotation["area"] for annotation in api.anns.values())


def test_refs_have_the_published_fields(written, instances, samples):
    refs = pickle.loads(written.refs.read_bytes())
    published = pickle.loads((samples / "refcoco" / "refcoco" / "refs(unc).p").read_bytes())[0]
    assert written.refs.read_bytes()[:2] == b"\x80\x02"
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    for ref in refs:
        assert set(ref) == set(published)
        assert all(set(sentence) == set(published["sentences"][0]) for sentence in ref["sentences"])
        annotation = annotations[ref["ann_id"]]
        assert (ref["image_id"], ref["category_id"]) == (annotation["image_id"], annotation["category_id"])
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]] != []
    sent_ids = [sent_id for ref in refs for sent_id in ref["sent_ids"]]
    assert sent_ids == list(range(written.num_sentences))
    assert len({ref["ref_id"] for ref in refs}) == len(refs)


def test_captions_name_annotations_of_their_own_image(written, instances):
    content = json.loads(written.captions.read_text())
    assert content["annotations"] == instances["annotations"]
    for image in content["images"]:
        own = {a["id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        assert image["captions"]
        for caption in image["captions"]:
            assert caption.endswith(".")
            assert {int(number) for number in re.findall(r"<box_id: (\d+)/>", caption)} == own


def test_splits_share_no_scene():
    pictures = [split_scene(split, number, seed=4)[0].image for split in SPLITS for number in range(30)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_a_scene_does_not_depend_on_how_many_are_written(written, tmp_path):
    fewer = write_dataset(tmp_path / "val", scenes=3, seed=4, split="val")
    for name in ("000000.jpg", "000002.jpg"):
        assert (fewer.images / name).read_bytes() == (written.images / name).read_bytes()


def test_writing_again_changes_nothing_and_another_request_is_refused(written):
    before = written.instances.stat().st_mtime_ns
    assert write_dataset(written.folder, scenes=SCENES, seed=4, split="val") == written
    assert written.instances.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another folder"):
        write_dataset(written.folder, scenes=SCENES, seed=5, split="val")


def test_nothing_half_written_is_left(tmp_path):
    def give_up(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "val", scenes=5, seed=4, split="val", progress=give_up)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "named"), [({"split": "dev"}, "train, val"), ({"scenes": 0}, "scenes"), ({"seed": -1}, "seed")]
)
def test_wrong_values_are_named(tmp_path, wrong, named):
    with pytest.raises(UserError, match=named):
        write_dataset(tmp_path / "x", **{"scenes": 2, "seed": 0, "split": "val", **wrong})
