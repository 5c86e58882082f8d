"""No answer is lost: kept window by window, taken up again after a kill, the same bytes whoever answers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from jobs.evaluation.answers import windows
from jobs.evaluation.evaluate import answer, run_evaluate
from jobs.evaluation.report.publish import ReportOptions
from jobs.evaluation.samples import open_eval_set
from jobs.evaluation.score import run_score
from jobs.evaluation.store import PREDICTIONS_FILE, AnswerStore, EvaluationPlan
from padt.errors import UserError
from padt.inference.refine import Refinement
from tests.jobs.evaluation.oracle import Oracle
from tests.jobs.tiny_model import write_tiny_model
from tests.padt.tiny_sam import write_tiny_sam
from tests.pipelines.mini_set import write_mini_set

pytest.importorskip("faster_coco_eval")

NOTHING = ReportOptions(page=False, pictures=0)
PLAN = EvaluationPlan("set", "model", ("refer",), {"max_new_tokens": 8}, None, "cpu", "float32", 1, 9, 3)


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> str:
    """Scenes of three windows."""
    return write_mini_set(tmp_path_factory.mktemp("several") / "set", scenes=69)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@dataclass(frozen=True)
class Weary:
    """Answers a number of windows with the truth, then fails."""

    url: str
    windows: int

    def load(self):
        perfect, left = Oracle(self.url).load(), [self.windows]

        def answers(images, samples):
            if not left[0]:
                raise RuntimeError("weary")
            left[0] -= 1
            return perfect(images, samples)

        return answers


def test_a_second_run_answers_only_what_is_missing_and_leaves_the_same_file(several, tmp_path):
    data = open_eval_set(several)
    cut = windows(data.samples)
    whole = AnswerStore(str(tmp_path / "whole"))
    answer(data, Oracle(several), progress=False, store=whole, known=whole.begin(PLAN, {}, cut, False))
    store = AnswerStore(str(tmp_path / "half"))
    with pytest.raises(RuntimeError, match="weary"):
        answer(data, Weary(several, 2), progress=False, store=store, known=store.begin(PLAN, {}, cut, False))
    assert len(store.records()) == len(cut[0]) + len(cut[1])
    known = store.begin(PLAN, {}, cut, False)
    assert list(known) == [0, 1]
    assert answer(data, Weary(several, 1), progress=False, store=store, known=known).records == whole.records()
    assert store.folder.read(PREDICTIONS_FILE) == whole.folder.read(PREDICTIONS_FILE)
    assert store.folder.names() == [PREDICTIONS_FILE, "plan.json"][::-1]
    # All is there: nobody is asked.
    assert list(store.begin(PLAN, {}, cut, False)) == [0, 1, 2]
    answer(data, Weary(several, 0), progress=False, store=store, known=store.begin(PLAN, {}, cut, False))
    assert store.begin(PLAN, {}, cut, True) == {}


def test_another_plan_under_answers_that_are_there_is_named(several, tmp_path):
    store = AnswerStore(str(tmp_path))
    cut = windows(open_eval_set(several).samples)
    store.begin(PLAN, {}, cut, False)
    for change, said in (
        ({"data": "other"}, "data: 'set' -> 'other'"),
        ({"model": "better"}, "model: 'model' -> 'better'"),
        ({"settings": {"max_new_tokens": 9}}, "settings.max_new_tokens: 8 -> 9"),
        ({"dtype": "bfloat16"}, "dtype: 'float32' -> 'bfloat16'"),
        ({"device": "cuda"}, "device: 'cpu' -> 'cuda'"),
        ({"tasks": ("detect",)}, "tasks"),
    ):
        with pytest.raises(UserError, match=f"{said}.*--overwrite"):
            store.begin(EvaluationPlan(**{**vars(PLAN), **change}), {}, cut, False)
    store.folder.write("plan.json", "{")
    with pytest.raises(UserError, match="damaged.*--overwrite"):
        store.begin(PLAN, {}, cut, False)


def test_a_failing_scorer_costs_no_answer(several, tiny, tmp_path, monkeypatch):
    def fail(*arguments):
        raise UserError("No scorer today.")

    options = {"limit": 3, "max_new_tokens": 4, "out_dir": tmp_path / "out", "progress": False, "report": NOTHING}
    with monkeypatch.context() as patch:
        patch.setattr("jobs.evaluation.evaluate.score_records", fail)
        with pytest.raises(UserError, match=rf"No scorer today\..*padt score {tmp_path / 'out'} --data {several}"):
            run_evaluate(tiny, several, **options)
    again = run_score(tmp_path / "out", several, report=NOTHING)
    assert (tmp_path / "out" / "metrics.json").exists()
    monkeypatch.setattr("jobs.evaluation.answerer.ModelAnswerer.load", fail)
    metrics = run_evaluate(tiny, several, **options).metrics
    assert again.metrics == metrics


def test_a_set_that_changed_under_a_half_done_evaluation_is_named(tiny, tmp_path):
    url = write_mini_set(tmp_path / "set", scenes=2)
    options = {
        "tasks": ["refer"],
        "max_new_tokens": 2,
        "out_dir": tmp_path / "out",
        "progress": False,
        "report": NOTHING,
    }
    run_evaluate(tiny, url, **options)
    shutil.rmtree(url)
    write_mini_set(tmp_path / "set", scenes=2, seed=1)
    with pytest.raises(UserError, match=r"data: .*--overwrite"):
        run_evaluate(tiny, url, **options)


def test_how_masks_were_refined_belongs_to_the_answers(tiny, tmp_path):
    url = write_mini_set(tmp_path / "set", scenes=2)
    sam = write_tiny_sam(tmp_path / "sam")
    options = {
        "tasks": ["refer"],
        "max_new_tokens": 2,
        "out_dir": tmp_path / "out",
        "progress": False,
        "report": NOTHING,
    }
    run_evaluate(tiny, url, refine=Refinement("box", sam), **options)
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())["refine"]
    assert (told["by"], told["prompt"], told["model"]) == ("sam2", "box", sam)
    for other in (None, Refinement("mask", sam)):
        with pytest.raises(UserError, match=r"refine\..*--overwrite"):
            run_evaluate(tiny, url, refine=other, **options)
    moved = shutil.move(sam, tmp_path / "elsewhere")
    run_evaluate(tiny, url, refine=Refinement("box", str(moved)), **options)
    with pytest.raises(UserError, match="no model folder"):
        run_evaluate(tiny, url, refine=Refinement("box", sam), **options)
    with pytest.raises(UserError, match="none to refine: leave --refine out"):
        run_evaluate(tiny, url, masks=False, refine=Refinement("box", str(moved)), **options)


@pytest.mark.slow
def test_any_number_of_workers_leaves_the_same_bytes(ray_cluster, several, tiny, tmp_path):
    left = []
    refine = Refinement("box+mask", write_tiny_sam(tmp_path / "sam"))
    for workers in (0, 1, 2, 5):
        out = tmp_path / str(workers)
        options = {"max_new_tokens": 24, "workers": workers, "refine": refine, "progress": False, "report": NOTHING}
        run_evaluate(tiny, several, out_dir=out, **options)
        left.append((out / PREDICTIONS_FILE).read_bytes())
        metrics = json.loads((out / "metrics.json").read_text())["metrics"]
        metrics.pop("eval/mini/boxes_per_second", None)
        left.append(json.dumps(metrics))
    assert len(set(left)) == 2


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_bytes(several, tiny, tmp_path):
    command = [sys.executable, "-m", "jobs.cli.main", "evaluate", tiny, several, "--max-new-tokens", "200"]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    killed = subprocess.Popen([*command, "--out", str(tmp_path / "out")], env=environment)
    parts = tmp_path / "out" / "answers"
    while not list(parts.glob("*.parquet")):
        assert killed.poll() is None, "it was done before it could be killed"
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert 0 < len(kept) < 3 and not (tmp_path / "out" / "metrics.json").exists()
    # What was answered can be scored as it is, and says what lacks.
    assert run_score(tmp_path / "out", several, tmp_path / "part", report=NOTHING).counts["answers_missing"] > 0
    subprocess.run([*command, "--out", str(tmp_path / "out")], env=environment, check=True)
    subprocess.run([*command, "--out", str(tmp_path / "whole")], env=environment, check=True)
    assert not parts.exists()
    assert (tmp_path / "out" / PREDICTIONS_FILE).read_bytes() == (tmp_path / "whole" / PREDICTIONS_FILE).read_bytes()
