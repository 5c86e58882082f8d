"""Calibrating a model: measured on images that were not fitted, and written whole into the model or a copy of it."""

import json
import shutil
from dataclasses import dataclass

import pytest
import torch

from jobs.common.config_tree import build_config
from jobs.evaluation.calibrate import run_calibrate
from jobs.training.config import TrainConfig
from jobs.training.worker import load_for_training
from padt.errors import UserError
from padt.pretrained.config import PaDTConfig
from tests.jobs.evaluation.oracle import predict_truth
from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.mini_set import write_mini_set

pytest.importorskip("faster_coco_eval")


@dataclass(frozen=True)
class Stutterer:
    """Answers with the truth, and every object a second time, less exactly and surer of itself."""

    url: str

    def load(self):
        from jobs.evaluation.samples import open_eval_set

        truth = open_eval_set(self.url).truth

        def answer(images, samples):
            answers = []
            for image, sample in zip(images, samples, strict=True):
                found = predict_truth(truth[sample.row], sample, image)
                objects = [{**thing, "confidence": 0.5, "image": 0} for thing in found["objects"]]
                again = [{**thing, "score": 0.95, "box": shifted(thing["box"])} for thing in objects]
                answers.append({**found, "objects": objects + again})
            return answers

        return answer


def shifted(box):
    tenth = (box[2] - box[0]) / 10
    return [box[0] + tenth, box[1], box[2] + tenth, box[3]]


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> str:
    return write_mini_set(tmp_path_factory.mktemp("mini") / "set", scenes=24)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny(model, tmp_path) -> str:
    return str(shutil.copytree(model, tmp_path / "model"))


def test_a_copy_gets_the_calibration_and_ranks_better_on_images_it_was_not_fitted_to(mini, tiny, tmp_path):
    before = (tmp_path / "model" / "config.json").read_bytes()
    result = run_calibrate(tiny, mini, tmp_path / "copy", answerer=Stutterer(mini), progress=False)
    assert result.images == 24 and result.objects > 80
    assert result.before["calibration_error"] > 0.4 and result.after["calibration_error"] < 0.1
    assert result.before["bbox_AP"] < 0.9 and result.after["bbox_AP"] == pytest.approx(1.0)
    assert result.calibration.repeated < -1
    assert (tmp_path / "model" / "config.json").read_bytes() == before
    assert PaDTConfig.from_pretrained(tmp_path / "copy").score_calibration == result.calibration.to_dict()
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names
    with pytest.raises(UserError, match="exists already"):
        run_calibrate(tiny, mini, tmp_path / "copy", answerer=Stutterer(mini))


def test_without_an_output_the_model_itself_changes(mini, tiny):
    result = run_calibrate(tiny, mini, answerer=Stutterer(mini), progress=False)
    with open(f"{tiny}/config.json") as handle:
        assert json.load(handle)["score_calibration"] == result.calibration.to_dict()


def test_training_drops_a_calibration_of_the_weights_as_they_were(mini, tiny):
    run_calibrate(tiny, mini, answerer=Stutterer(mini), progress=False)
    config = build_config(TrainConfig, {"model": tiny, "output": "out", "steps": 1, "data": {"sets": [{"url": mini}]}})
    model, _ = load_for_training(config, torch.device("cpu"))
    assert model.config.score_calibration is None


def test_a_model_that_finds_nothing_stays_as_it_is(mini, tiny, tmp_path):
    with pytest.raises(UserError, match="too few"):
        run_calibrate(tiny, mini, tmp_path / "copy", max_new_tokens=1, progress=False)
    assert not (tmp_path / "copy").exists()
