"""Zero-shot: a model trained on other classes is asked by names that it knows, and scored apart on the rest."""

import json
import shutil
from dataclasses import replace

import pytest

from jobs.evaluation import evaluate
from jobs.evaluation.answerer import ModelAnswerer
from jobs.evaluation.answers import computed_in
from jobs.evaluation.evaluate import run_evaluate
from jobs.evaluation.samples import open_eval_set
from jobs.evaluation.score import run_score
from jobs.evaluation.scoring import score_records
from jobs.evaluation.vocabulary import score_parts, vocabulary
from padt.errors import UserError
from padt.metrics.detect import score_detect
from padt.pretrained.config import load_config
from padt.pretrained.model_card import ModelFacts, write_card
from tests.conftest import REPOSITORY
from tests.jobs.evaluation.oracle import Oracle
from tests.padt.metrics.test_detect import CATEGORIES, cat, found, image
from tests.pipelines.mini_set import write_mini_set

pytest.importorskip("faster_coco_eval")

TOY_BASE = REPOSITORY / "pipelines" / "toy" / "base"


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> str:
    return write_mini_set(tmp_path_factory.mktemp("mini") / "set", scenes=3)


def trained_on(folder, *classes):
    """A model whose card says what it was trained to find."""
    shutil.copytree(TOY_BASE, folder)
    write_card(folder, ModelFacts(base_model="toy", classes=classes), load_config(folder)[0])
    return folder


def test_classes_are_asked_by_the_names_of_the_training(tmp_path):
    model = trained_on(tmp_path / "model", "Person", "Moniter/TV", "Couch")
    names = ("person", "tv", "sofa", "zebra")
    words = vocabulary(model, names, {"moniter/tv": "tv", "telly": "tv", "couch": "sofa", "man": "person"})
    assert words.asked == {"person": "person", "tv": "Moniter/TV", "sofa": "Couch", "zebra": "zebra"}
    assert words.renamed == {"tv": "Moniter/TV", "sofa": "Couch"} and words.unseen == ("zebra",)
    unseen, asked = words.remarks()
    assert unseen.startswith("1 of 4 classes are none that the model was trained to find (zebra)")
    assert "tv as Moniter/TV, sofa as Couch" in asked
    alone = vocabulary(model, names)
    assert alone.unseen == ("tv", "sofa", "zebra") and not alone.renamed
    # Nothing is claimed of a model whose card does not tell.
    untold = vocabulary(tmp_path / "nowhere", names, {"couch": "sofa"})
    assert untold.unseen is None and not untold.remarks() and not untold.renamed


def test_seen_and_unseen_classes_are_scored_apart():
    images = [image("a", 1, cat(0, 0, 10, 10), replace(cat(20, 20, 60, 60), category_id=90)), image("b", 2)]
    answers = {
        "a": [found("cat", 0.9, 0, 0, 10, 10), found("traffic light", 0.4, 0, 0, 5, 5)],
        "b": [found("traffic light", 0.9, 0, 0, 5, 5)],
    }
    parts = score_parts(images, answers, CATEGORIES, ["Traffic Light"], masks=False)
    assert parts["seen/bbox_AP"] == pytest.approx(1.0) and parts["unseen/bbox_AP"] == 0.0
    assert score_detect(images, answers, CATEGORIES, False)[0].metrics["bbox_AP"] == pytest.approx(0.5)
    assert score_parts(images, answers, CATEGORIES, [], False) == {}
    assert score_parts(images, answers, CATEGORIES, ["cat", "traffic light"], False) == {}


def test_a_model_of_another_label_set_is_measured_and_scored_again_as_it_was_asked(mini, tmp_path, monkeypatch):
    """Trained to find discs and stars, asked about circles and more: answers come back under the set's names."""
    model = trained_on(tmp_path / "model", "disc", "star", "square")
    synonyms = tmp_path / "names.yaml"
    synonyms.write_text("circle: [disc]\n")
    asked = []

    class Renaming(ModelAnswerer):
        """The truth, in the words of the question."""

        def load(self):
            perfect, names = Oracle(mini).load(), open_eval_set(mini).index.class_names
            asked.append(self.class_names)
            told = dict(zip(names, self.class_names, strict=True))

            def answers(images, samples):
                answered = perfect(images, samples)
                for prediction in answered:
                    for thing in prediction["objects"]:
                        thing["label"] = told.get(thing["label"], thing["label"])
                return answered

            return answers

    monkeypatch.setattr(evaluate, "ModelAnswerer", Renaming)
    out = tmp_path / "out"
    options = {"synonyms": synonyms, "load_options": {"device": "cpu"}, "progress": False}
    result = run_evaluate(model, mini, ["detect"], out_dir=out, **options)
    names = open_eval_set(mini).index.class_names
    assert asked == [tuple("disc" if name == "circle" else name for name in names)]
    assert result.metrics["eval/mini/bbox_AP"] == pytest.approx(1.0)
    assert result.metrics["eval/mini/seen/bbox_AP"] == result.metrics["eval/mini/unseen/bbox_AP"] == pytest.approx(1.0)
    assert any("circle as disc" in warning for warning in result.warnings)
    content = json.loads((out / "metrics.json").read_text())
    unseen = set(names) - {"circle", "star", "square"}
    assert set(content["unseen_classes"]) == unseen and content["asked_as"] == {"circle": "disc"}
    # Without the file of synonyms, for the folder knows how it was asked.
    again = run_score(out, mini)
    assert again.metrics == {name: value for name, value in result.metrics.items() if "per_second" not in name}
    with pytest.raises(UserError, match="asked for otherwise"):
        run_evaluate(model, mini, ["detect"], out_dir=out, load_options={"device": "cpu"}, progress=False)


def test_a_plan_names_the_device_and_the_numbers_that_answers_come_in(mini, monkeypatch):
    import torch

    assert computed_in(TOY_BASE, {"device": "cpu"}, 0) == ("cpu", "float32")
    assert computed_in(TOY_BASE, {"device": "cuda:1", "dtype": "bfloat16"}, 0) == ("cuda", "bfloat16")
    monkeypatch.setattr("padt.checkpoints.loading.default_device", lambda: torch.device("cuda"))
    device, dtype = computed_in(TOY_BASE, {}, 0)
    assert device == "cuda" and dtype == str(load_config(TOY_BASE)[0].dtype).removeprefix("torch.")
    assert score_records(open_eval_set(mini, ["detect"]), [], False).metrics["bbox_AP"] == 0.0
