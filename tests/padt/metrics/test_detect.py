"""Detection: AP must be the number that pycocotools gives on the published annotations, crowds and all."""

import contextlib
import io
import json

import numpy as np
import pytest

from padt.errors import UserError
from padt.metrics.detect import TrueImage, TrueObject, coco_results, score_detect
from padt.metrics.overlap import released_box
from padt.metrics.records import FoundObject
from padt.metrics.table import COCO_SUMMARY

mask_tools = pytest.importorskip("pycocotools.mask")
pytest.importorskip("faster_coco_eval")

CATEGORIES = [(3, "Cat"), (90, "traffic  light")]


def image(name: str, number: int, *objects: TrueObject, side: int = 100) -> TrueImage:
    return TrueImage(name, number, side, side, objects)


def cat(*box: float, **values) -> TrueObject:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return TrueObject(3, box, area, **values)


def found(label: str, score: float, *box: float, mask=None) -> FoundObject:
    return FoundObject(label, score, box, mask)


def coco_truth(samples, split: str) -> tuple[dict, list[TrueImage]]:
    """The published file, and the same as this module takes it (masks in compressed runs)."""
    truth = json.loads((samples / "coco" / "annotations" / f"instances_{split}2017.json").read_text())
    images = []
    for entry in truth["images"]:
        height, width = entry["height"], entry["width"]
        objects = []
        for one in truth["annotations"]:
            if one["image_id"] != entry["id"]:
                continue
            x, y, w, h = one["bbox"]
            code = mask_tools.frPyObjects(one["segmentation"], height, width)
            code = mask_tools.merge(code) if isinstance(code, list) else code
            box, crowd = (x, y, x + w, y + h), bool(one["iscrowd"])
            objects.append(TrueObject(one["category_id"], box, one["area"], crowd, dict(code)))
        images.append(TrueImage(f"coco/{entry['id']}", entry["id"], height, width, tuple(objects)))
    return truth, images


def jittered(images: list[TrueImage], names: dict[int, str], rng: np.random.Generator) -> dict[str, list[FoundObject]]:
    """Answers that are good, middling, doubled, of the wrong class, on crowds, or missing."""
    answers: dict[str, list[FoundObject]] = {}
    for true_image in images[:-3]:
        objects = []
        for true in true_image.objects:
            for _ in range(rng.integers(0, 3)):
                width, height = true.box[2] - true.box[0], true.box[3] - true.box[1]
                shift = rng.normal(0, rng.choice([0.01, 0.06, 0.2]), 4) * [width, height, width, height]
                box = np.asarray(true.box) + shift
                box = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
                polygon = [box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]
                code = mask_tools.frPyObjects([polygon], true_image.height, true_image.width)[0]
                if rng.random() < 0.5:
                    code = true.mask
                label = names[true.category_id] if rng.random() < 0.9 else str(rng.choice(list(names.values())))
                # Few different scores: ties must be broken alike.
                objects.append(found(f" {label.upper()} ", float(rng.integers(1, 40)) / 40, *box, mask=code))
        answers[true_image.id] = objects
    return answers


@pytest.mark.parametrize("split", ["train", "val"])
def test_ap_equals_pycocotools_on_published_annotations(samples, split):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, images = coco_truth(samples, split)
    categories = [(one["id"], one["name"]) for one in truth["categories"]]
    answers = jittered(images, dict(categories), np.random.default_rng(5))
    scores, detections = score_detect(images, answers, categories)
    assert scores.counts["crowd_regions"] > 0
    assert scores.counts["unknown_labels"] == 0
    assert json.loads(json.dumps(detections.results)) == detections.results

    official = COCO()
    official.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):
        official.createIndex()
        for kind in ("bbox", "segm"):
            results = [dict(entry) for entry in detections.results]
            if kind == "segm":
                for entry in results:
                    del entry["bbox"]
            evaluator = COCOeval(official, official.loadRes(results), kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100")
            for name, value in zip(names, evaluator.stats, strict=False):
                assert scores.metrics[f"{kind}_{name}"] == pytest.approx(value, abs=1e-9), (kind, name)
    assert 0.2 < scores.metrics["bbox_AP"] < 0.9


def test_perfect_and_missing_answers_by_hand():
    images = [image("a", 1, cat(10, 10, 50, 50)), image("b", 2, cat(10, 10, 50, 50))]
    scores, _ = score_detect(images, {"a": [found("cat", 0.9, 10, 10, 50, 50)]}, CATEGORIES)
    # Half of the recall at full precision: 51 of COCO's 101 recall points.
    assert scores.metrics["bbox_AP"] == pytest.approx(51 / 101)
    assert scores.metrics["bbox_AR_100"] == pytest.approx(0.5)
    assert "bbox_AP_large" not in scores.metrics  # no large object: nothing can be said
    assert "segm_AP" not in scores.metrics  # no masks in the source


def test_no_answer_at_all_is_zero_not_an_error():
    scores, detections = score_detect([image("a", 1, cat(10, 10, 50, 50))], {}, CATEGORIES)
    assert scores.metrics["bbox_AP"] == 0.0
    assert detections.results == []


def test_crowd_regions_swallow_detections_without_reward_or_harm():
    crowd = cat(0, 0, 90, 90, iscrowd=True)
    answers = {"a": [found("cat", 0.5, 10, 10, 50, 50), found("cat", 0.9, 60, 60, 80, 80)]}
    scores, _ = score_detect([image("a", 1, cat(10, 10, 50, 50), crowd)], answers, CATEGORIES)
    assert scores.metrics["bbox_AP"] == pytest.approx(1.0)
    assert scores.counts["crowd_regions"] == 1


def test_labels_are_matched_without_case_and_spaces_and_unknown_ones_are_reported():
    answers = {
        "a": [found(" CAT", 0.5, 0, 0, 1, 1), found("traffic light", 0.5, 0, 0, 1, 1), found("dog", 1, 0, 0, 1, 1)]
    }
    detections = coco_results([image("a", 7)], answers, CATEGORIES)
    assert [entry["category_id"] for entry in detections.results] == [3, 90]
    assert detections.unknown_labels == {"dog": 1}
    assert detections.results[0]["image_id"] == 7


@pytest.mark.parametrize("seed", range(4))
def test_more_than_a_hundred_detections_count_as_pycocotools_counts_them(seed):
    """Two classes of 90 and 130 detections in an image: the cap is for a class in an image, not for the image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(seed)
    objects, answers = [], []
    for number, (category, name) in ((90, CATEGORIES[0]), (130, CATEGORIES[1])):
        for x, y in rng.uniform(0, 700, (number, 2)):
            box = (x, y, x + rng.uniform(8, 110), y + rng.uniform(8, 110))
            objects.append(TrueObject(category, box, (box[2] - box[0]) * (box[3] - box[1])))
            answers.append(found(name, round(rng.random(), 2), *(np.array(box) + rng.normal(0, 6, 4))))
    scores, detections = score_detect([image("a", 1, *objects, side=900)], {"a": answers}, CATEGORIES)
    assert len(detections.results) == 220 and scores.counts["detections_beyond_100"] == 30
    truth = {
        "images": [{"id": 1, "height": 900, "width": 900}],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
        "annotations": [
            {
                "id": place,
                "image_id": 1,
                "category_id": one.category_id,
                "bbox": [one.box[0], one.box[1], one.box[2] - one.box[0], one.box[3] - one.box[1]],
                "area": one.area,
                "iscrowd": 0,
            }
            for place, one in enumerate(objects, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        published = COCO()
        published.dataset = truth
        published.createIndex()
        theirs = COCOeval(published, published.loadRes(detections.results), "bbox")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    for name, value in zip(COCO_SUMMARY, theirs.stats.tolist(), strict=True):
        assert scores.metrics[f"bbox_{name}"] == pytest.approx(value, abs=1e-6), name


def test_an_object_without_a_mask_costs_mask_ap_its_own_image_only_and_is_counted():
    mask = mask_tools.encode(np.asfortranarray(np.pad(np.ones((40, 40), np.uint8), 30)))
    images = [
        image("a", 1, cat(30, 30, 70, 70, mask=mask)),
        image("b", 2, cat(30, 30, 70, 70, mask=mask), cat(1, 1, 9, 9)),
    ]
    answers = {name: [found("cat", 0.9, 30, 30, 70, 70, mask=mask)] for name in "ab"}
    scores, _ = score_detect(images, answers, CATEGORIES)
    assert scores.metrics["segm_AP"] == pytest.approx(1.0)
    assert scores.counts["images_without_masks"] == 1


def test_the_released_protocol_counts_a_class_before_it_drops_objects_without_patches():
    crowded = [cat(0, 0, 9, 9, has_patch=index >= 10) for index in range(55)]
    scores, _ = score_detect([image("a", 1, *crowded)], {}, CATEGORIES, protocol="released")
    assert scores.counts["objects"] == 0


def test_released_boxes_are_those_of_the_source_although_sets_keep_them_in_single_precision():
    rng = np.random.default_rng(0)
    for _ in range(5000):
        side = int(rng.integers(300, 1288))
        x, y, w, h = (int(value) / 2 for value in rng.integers(1, side, 4))
        corners = np.array([x, y, x + w, y + h]) / side
        stored = [float(value) * side for value in corners.astype(np.float32)]
        left, top, right, bottom = released_box(stored)
        assert (left, top, right - left, bottom - top) == (round(x), round(y), round(w), round(h))
    assert released_box((10.4, 0.501, 20.4, 7.0)) == (10, 1, 20, 7)


def test_released_protocol_filters_the_ground_truth_and_rounds_boxes():
    images = [
        image("a", 1, cat(10.4, 10, 50, 50), cat(90, 90, 92, 92, has_patch=False)),
        image("big", 2, cat(0, 0, 9, 9), side=1300),
        image("crowded", 3, *(cat(0, 0, 9, 9) for _ in range(51))),
    ]
    answers = {"a": [found("cat", 0.9, 10, 10, 50.3, 50)], "big": [found("cat", 0.99, 30, 30, 40, 40)]}
    released, _ = score_detect(images, answers, CATEGORIES, protocol="released")
    official, _ = score_detect(images, answers, CATEGORIES)
    assert released.metrics["released_bbox_AP"] == pytest.approx(1.0)
    assert official.metrics["bbox_AP"] < 0.1
    assert (released.counts["images"], released.counts["objects"]) == (2, 1)


def test_categories_with_one_name_are_refused_and_ids_checked():
    with pytest.raises(UserError, match="both named 'cat'"):
        coco_results([], {}, [(1, "Cat"), (2, "cat")])
    with pytest.raises(ValueError, match="more than once: a"):
        score_detect([image("a", 1), image("a", 2)], {}, CATEGORIES)
    with pytest.raises(ValueError, match="Image numbers"):
        score_detect([image("a", 1), image("b", 1)], {}, CATEGORIES)


def test_detections_where_the_truth_is_empty_are_no_error_and_give_no_figure():
    scores, detections = score_detect([image("a", 1)], {"a": [found("cat", 0.5, 0, 0, 9, 9)]}, CATEGORIES)
    assert scores.metrics == {} and len(detections.results) == 1 and scores.counts["objects"] == 0
