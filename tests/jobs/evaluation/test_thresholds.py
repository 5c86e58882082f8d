"""Thresholds from a held-out set: of what is wrong alone, kept with the model, and used when somebody asks."""

import shutil
from dataclasses import dataclass

import pytest

from jobs.evaluation.calibrate import run_calibrate
from jobs.evaluation.thresholds import run_thresholds
from jobs.inference.predict import run_predict
from padt.errors import UserError
from padt.inference.requests import detect_request
from padt.inference.results import Frame, PredictedObject, Prediction
from padt.pretrained.config import PaDTConfig
from tests.jobs.evaluation.oracle import predict_truth
from tests.jobs.evaluation.test_calibrate import Stutterer
from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.mini_set import write_mini_set

pytest.importorskip("faster_coco_eval")


@dataclass(frozen=True)
class Imaginer:
    """Answers with the truth at 0.9, and with an object of every class that is not there, each picture's surer."""

    url: str

    def load(self):
        from jobs.evaluation.samples import open_eval_set

        data = open_eval_set(self.url)
        names = [category.name for category in data.manifest.categories]
        rows = sorted(data.truth)

        def answer(images, samples):
            answers = []
            for image, sample in zip(images, samples, strict=True):
                found = predict_truth(data.truth[sample.row], sample, image)
                true = [{**thing, "score": 0.9, "confidence": 0.5, "image": 0} for thing in found["objects"]]
                shown = {thing["label"] for thing in true}
                score = (1 + rows.index(sample.row)) / 100
                made_up = [
                    {**true[0], "label": name, "score": score, "box": [0, 0, 1, 1]}
                    for name in names
                    if name not in shown
                ]
                answers.append({**found, "objects": true + made_up})
            return answers

        return answer


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> str:
    return write_mini_set(tmp_path_factory.mktemp("mini") / "set", scenes=24)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny(model, tmp_path) -> str:
    return str(shutil.copytree(model, tmp_path / "model"))


def test_thresholds_are_of_mistakes_alone(mini, tiny):
    result = run_thresholds(tiny, mini, answerer=Imaginer(mini), progress=False)
    assert (result.images, result.thresholds.absent_units, result.thresholds.wrong_units) == (24, 24, 24)
    # The 20th, 23rd and 24th of 24 pictures' scores 0.01 to 0.24; 99 pictures would be needed for 0.01.
    assert result.thresholds.absent == result.thresholds.wrong == {"0.2": 0.2, "0.1": 0.23, "0.05": 0.24}
    assert PaDTConfig.from_pretrained(tiny).score_thresholds == result.thresholds.to_dict()


def test_a_new_calibration_drops_thresholds_of_the_old_scores(mini, tiny):
    run_thresholds(tiny, mini, answerer=Imaginer(mini), progress=False)
    run_calibrate(tiny, mini, answerer=Stutterer(mini), progress=False)
    assert PaDTConfig.from_pretrained(tiny).score_thresholds is None


def test_too_few_pictures_change_nothing(mini, tiny):
    with pytest.raises(UserError, match="too few to promise"):
        run_thresholds(tiny, mini, limit=3, answerer=Imaginer(mini), progress=False)
    assert PaDTConfig.from_pretrained(tiny).score_thresholds is None


def test_predict_asks_for_thresholds_before_it_loads_the_model(mini, tiny, tmp_path):
    from PIL import Image

    Image.new("RGB", (112, 112), "red").save(tmp_path / "a.png")
    request = detect_request(["circle"])
    with pytest.raises(UserError, match="padt calibrate MODEL DATA --thresholds"):
        run_predict(tiny, tmp_path / "a.png", request, false_alarms=0.1)
    run_thresholds(tiny, mini, answerer=Imaginer(mini), progress=False)
    with pytest.raises(UserError, match="too few for a rate of 0.01"):
        run_predict(tiny, tmp_path / "a.png", request, false_alarms=0.01)
    run_predict(tiny, tmp_path / "a.png", request, false_alarms=0.1)


def test_objects_at_the_threshold_are_left_out_and_counted():
    things = [PredictedObject("cat", score, (0, 0, 9, 9), None, (0,), (0, 1), 0.5, True) for score in (0.2, 0.5, 0.9)]
    prediction = Prediction("", tuple(things), (Frame(28, 28, (1, 1)),))
    kept = prediction.above(0.5)
    assert [thing.score for thing in kept.objects] == [0.9]
    assert kept.warnings == ("left out for a score of at most 0.500: 2",)
    assert prediction.above(0.1) is prediction
