"""Everything is looked at before the first answer: packages, names, ids, heads, masks, the tracking server."""

import pytest

from jobs.evaluation.checks import check_heads
from jobs.evaluation.evaluate import run_evaluate
from padt.errors import UserError
from pipelines.dataset.manifest import Category
from tests.jobs.tiny_model import write_hub_model, write_tiny_model
from tests.pipelines.mini_set import scene_row, write_mini_set, write_set

pytest.importorskip("faster_coco_eval")


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> str:
    return write_mini_set(tmp_path_factory.mktemp("mini") / "set", scenes=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def _no_answer(monkeypatch):
    def load(self):
        raise AssertionError("the model was asked")

    monkeypatch.setattr("jobs.evaluation.answerer.ModelAnswerer.load", load)


@pytest.mark.parametrize(("package", "said"), [("faster_coco_eval", "COCO AP needs"), ("pycocotools", "--no-masks")])
def test_a_missing_scorer(mini, tiny, monkeypatch, package, said):
    monkeypatch.setattr("jobs.evaluation.checks.find_spec", lambda name: None if name == package else True)
    with pytest.raises(UserError, match=said):
        run_evaluate(tiny, mini, progress=False)


def test_two_categories_of_one_name(mini, tiny, monkeypatch):
    from jobs.evaluation import evaluate

    data = evaluate.open_eval_set(mini)
    object.__setattr__(data.manifest, "categories", (Category(1, "circle"), Category(2, " Circle")))
    monkeypatch.setattr(evaluate, "open_eval_set", lambda *arguments: data)
    with pytest.raises(UserError, match="are both named"):
        run_evaluate(tiny, mini, progress=False)


def test_a_set_that_holds_a_row_twice(tiny, tmp_path):
    url = write_set(tmp_path / "set", [scene_row(0), scene_row(1), scene_row(0)])
    with pytest.raises(UserError, match="more than once, for example mini/train/0"):
        run_evaluate(tiny, url, progress=False)


def test_masks_that_the_set_cannot_measure(tiny, tmp_path):
    boxes = write_mini_set(tmp_path / "set", scenes=2, masks=False)
    with pytest.raises(UserError, match="has no masks to measure masks with"):
        run_evaluate(tiny, boxes, masks=True, progress=False)
    # Unless they were asked for, none are made.
    with pytest.raises(AssertionError, match="was asked"):
        run_evaluate(tiny, boxes, progress=False)


def test_models_without_heads(mini, tiny, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="plain Qwen2.5-VL without object decoder"):
        run_evaluate(write_hub_model(tmp_path / "hub"), mini, progress=False)
    from jobs.evaluation import checks

    names = {name: None for name in checks.read_tensors(tiny) if "score_prediction" not in name}
    monkeypatch.setattr(checks, "read_tensors", lambda folder: names)
    with pytest.raises(UserError, match="has no head for scores"):
        run_evaluate(tiny, mini, progress=False)
    monkeypatch.undo()
    check_heads(tmp_path.__class__(tiny))


def test_a_tracking_server_that_is_not_there(mini, tiny, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="does not answer"):
        run_evaluate(tiny, mini, mlflow=True, progress=False)


def test_options_that_cannot_be(mini, tiny):
    for options, said in (({"names_per_prompt": 0}, "names_per_prompt 0"), ({"threads": 0}, "threads 0")):
        with pytest.raises(UserError, match=said):
            run_evaluate(tiny, mini, progress=False, **options)
