"""Predictions as other code takes them: JSON and back, COCO's results, supervision's detections."""

import builtins
import json
from dataclasses import replace

import numpy as np
import pytest

from padt.data.rle import encode
from padt.errors import UserError
from padt.inference.results import Frame, PredictedObject, Prediction


def found(label: str, box=(1.5, 2.0, 7.25, 6.0), image: int = 0, score: float = 0.1 + 0.2) -> PredictedObject:
    mask = np.zeros((10, 12), bool)
    mask[2:6, 1:7] = True
    return PredictedObject(label, score, box, encode(mask), (3, 4), (5, 7), 1 / 3, True, image)


def prediction(*objects: PredictedObject, pictures: int = 1) -> Prediction:
    return Prediction("a <|VRT_3|><|VRT_4|>", objects, (Frame(12, 10, (2, 3)),) * pictures, (1, 2, 3), True, ("odd",))


def test_json_and_back_gives_the_same_prediction_but_for_its_token_ids() -> None:
    first = prediction(found("cat"), replace(found("dog"), mask=None, image=1), pictures=2)
    for values in (first.to_dict(), json.loads(json.dumps(first.to_dict()))):
        assert Prediction.from_dict(values) == replace(first, token_ids=())
    assert Prediction.from_dict(first.to_dict()).to_dict() == first.to_dict()


@pytest.mark.parametrize("change", [{"objects": None}, {"images": [{}]}, {"objects": [{"box": [1, 2]}]}])
def test_values_that_are_no_prediction_are_refused_in_a_sentence(change: dict) -> None:
    with pytest.raises(UserError, match="no prediction"):
        Prediction.from_dict({**prediction().to_dict(), **change})


def test_coco_records_load_and_score_in_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    answer = prediction(found("Red  cat"), found("dog", (0.0, 0.0, 4.0, 4.0), score=0.9))
    records = json.loads(json.dumps(answer.to_coco(17, {"red cat": 3, "DOG": 8})))
    assert records[0]["bbox"] == [1.5, 2.0, 5.75, 4.0]
    truth = coco.COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": 17, "width": 12, "height": 10}],
        "categories": [{"id": 3, "name": "red cat"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {**records[0], "id": 1, "iscrowd": 0, "area": 24.0},
            {**records[1], "id": 2, "iscrowd": 0, "area": 24.0},
        ],
    }
    truth.createIndex()
    for kind in ("bbox", "segm"):
        scorer = evaluation.COCOeval(truth, truth.loadRes(records), kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        assert scorer.stats[0] == pytest.approx(1.0)


def test_objects_of_several_pictures_get_the_numbers_of_their_own() -> None:
    answer = prediction(found("cat"), found("cat", image=1), pictures=2)
    assert [record["image_id"] for record in answer.to_coco([4, 9], {"cat": 1})] == [4, 9]
    with pytest.raises(UserError, match="1 for 2 pictures"):
        answer.to_coco(4, {"cat": 1})


def test_a_label_without_a_category_is_named_and_not_dropped() -> None:
    answer = prediction(found("cat"), found("catt"))
    with pytest.raises(UserError, match=r"no class 'catt': did you mean cat\?"):
        answer.to_coco(1, {"cat": 1})
    assert len(answer.of_classes({"cat": 1}).to_coco(1, {"cat": 1})) == 1


def test_supervision_gets_boxes_masks_scores_and_names() -> None:
    pytest.importorskip("supervision")
    answer = prediction(found("cat"), found("dog"), found("cat"), found("cat", image=1), pictures=2)
    detections = answer.to_supervision()
    assert detections.xyxy.tolist()[0] == [1.5, 2.0, 7.25, 6.0]
    assert detections.mask.shape == (3, 10, 12) and detections.mask[0].sum() == 24
    assert detections.class_id.tolist() == [0, 1, 0]
    assert detections["class_name"].tolist() == ["cat", "dog", "cat"]
    assert detections.confidence[0] == pytest.approx(0.3)
    assert len(answer.to_supervision(image=1)) == 1
    assert len(prediction().to_supervision()) == 0
    assert prediction(found("cat"), replace(found("cat"), mask=None)).to_supervision().mask is None


def test_without_supervision_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "supervision":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install .*supervision"):
        prediction().to_supervision()
