"""A model's answers in an evaluation: those of ``predict``, whatever is asked beside them; what is kept of them."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from jobs.evaluation.answerer import ModelAnswerer, merged
from jobs.evaluation.answers import answer_here, windows
from jobs.evaluation.samples import open_eval_set
from padt.checkpoints.loading import load_model
from padt.data.image import open_image
from padt.inference.predict import predict
from padt.inference.refine import MaskRefiner, Refinement
from padt.inference.requests import GenerationSettings, ask
from pipelines.loader.sample_source import RowReader
from tests.conftest import REPOSITORY
from tests.padt.tiny_sam import write_tiny_sam
from tests.pipelines.mini_set import write_mini_set

TOY_BASE = str(REPOSITORY / "pipelines" / "toy" / "base")
SETTINGS = GenerationSettings(max_new_tokens=48)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_eval_set(write_mini_set(tmp_path_factory.mktemp("mini") / "set", scenes=5))


def answers(data, **options):
    asked = ModelAnswerer(TOY_BASE, data.index.class_names, SETTINGS, {"device": "cpu"}, **options)
    (window,) = windows(data.samples)
    ((_, records),) = answer_here({0: window}, data.index, asked)
    return {record["id"]: record["prediction"] for record in records}


def test_each_question_has_the_answer_that_predict_gives_it_alone(data):
    model, reader = load_model(TOY_BASE, device="cpu"), RowReader(data.index)
    few, many = answers(data, batch_size=2), answers(data, batch_size=16)
    beams = ModelAnswerer(TOY_BASE, data.index.class_names, replace(SETTINGS, num_beams=2), {"device": "cpu"})
    assert set(few) == {sample.id for sample in data.samples}
    for sample in data.samples[:12]:
        image = open_image(reader.row(sample.row)["image"]["bytes"])
        request = ask(sample.task, data.index.class_names if sample.task == "detect" else sample.sentence)
        (alone,) = predict(model, image, [request], SETTINGS)
        for prediction in (few[sample.id], many[sample.id]):
            assert prediction["text"] == alone.text and prediction["tokens"] == len(alone.token_ids)
            boxes = [found["box"] for found in prediction["objects"]]
            assert boxes == [pytest.approx(found.box, abs=0.1) for found in alone.objects]
            assert all(found["mask"]["size"] == [alone.height, alone.width] for found in prediction["objects"])
    found = beams.load()([image], [sample])
    assert found[0]["text"] == predict(model, image, [request], replace(SETTINGS, num_beams=2))[0].text


def test_a_calibrated_models_answers_keep_the_scores_of_both_kinds(data, tmp_path):
    shutil.copytree(TOY_BASE, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["score_calibration"] = {"intercept": 0.5, "score_logit": -1.0}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    sample = next(sample for sample in data.samples if sample.task == "refer")
    image = open_image(RowReader(data.index).row(sample.row)["image"]["bytes"])
    found = {}
    for calibrated in (True, False):
        settings = replace(SETTINGS, calibrated=calibrated)
        ask_model = ModelAnswerer(str(tmp_path / "model"), data.index.class_names, settings, {"device": "cpu"}).load()
        (found[calibrated],) = ask_model([image], [sample])
    for with_it, without in zip(found[True]["objects"], found[False]["objects"], strict=True):
        assert with_it["uncalibrated_score"] == without["uncalibrated_score"] == without["score"]
        logit = torch.tensor(without["score"], dtype=torch.float64).logit()
        assert with_it["score"] == pytest.approx(float((0.5 - logit).sigmoid()))
    assert found[True]["objects"]


def test_classes_can_be_asked_for_in_several_prompts(data):
    sample = next(sample for sample in data.samples if sample.task == "detect")
    asked = ModelAnswerer(TOY_BASE, ("a", "b", "c", "d", "e"), SETTINGS, names_per_prompt=2)
    prompts = [request.prompt for request in asked.requests(sample)]
    assert (
        len(prompts) == 3
        and '"a"' not in prompts[1]
        and prompts == [ask("detect", names).prompt for names in (("a", "b"), ("c", "d"), ("e",))]
    )
    one = answers(data, names_per_prompt=1)[sample.id]
    assert one["text"].count("\n") == len(data.index.class_names) - 1


def test_answers_to_several_prompts_are_merged_without_doubles():
    def thing(label, score, *box):
        return {"label": label, "score": score, "box": box, "span": [1, 3]}

    def part(*objects, **values):
        own = {"text": "t", "objects": list(objects), "truncated": False, "warnings": [], "tokens": 5}
        return {**own, **values}

    whole = merged(
        [
            part(thing("cat", 0.5, 0, 0, 10, 10), thing("dog", 0.5, 0, 0, 10, 10)),
            part(thing("Cat", 0.6, 0, 0, 10, 10.2), thing("cat", 0.4, 5, 0, 15, 10), truncated=True, warnings=["w"]),
        ]
    )
    assert [(found["label"], found["score"]) for found in whole["objects"]] == [
        ("dog", 0.5),
        ("Cat", 0.6),
        ("cat", 0.4),
    ]
    assert whole["objects"][1]["span"] == [6, 8] and whole["tokens"] == 10 and whole["truncated"]
    assert whole["warnings"] == ["w", "1 objects were answered twice and are left out"]


def test_masks_are_refined_and_nothing_else_and_each_picture_is_seen_once(data, tmp_path, monkeypatch):
    refinement = Refinement("box+mask", write_tiny_sam(tmp_path / "sam"))
    seen = []
    see = MaskRefiner._see
    monkeypatch.setattr(MaskRefiner, "_see", lambda self, picture: seen.append(picture) or see(self, picture))
    own, refined = answers(data), answers(data, refine=refinement)
    assert len(seen) == len({id(picture) for picture in seen}) == len({sample.row for sample in data.samples})
    masks = {name: [each["mask"] for each in found["objects"]] for name, found in refined.items()}
    assert masks != {name: [each["mask"] for each in found["objects"]] for name, found in own.items()}
    for found in (*own.values(), *refined.values()):
        found["warnings"] = ()
        found["objects"] = [{**each, "mask": each["mask"]["size"]} for each in found["objects"]]
    assert own == refined


def test_what_fails_for_one_question_ends_the_window_at_once(data, monkeypatch):
    asked = []

    def fail(self, rows):
        asked.extend(rows)
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("padt.inference.engine.passes.RowPasses.admit", fail)
    with pytest.raises(RuntimeError, match="device is gone"):
        answers(data, batch_size=2)
    assert len({row.ticket for row in asked}) == 2
