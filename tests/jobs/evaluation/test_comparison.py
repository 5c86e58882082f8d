"""Comparing two evaluations: the differences that were made, in table, JSON and page; what cannot be is named."""

import copy
import json

import pytest

from jobs.cli.main import main
from jobs.evaluation.answers import windows
from jobs.evaluation.comparison.compare import compare_pair, disagreements
from jobs.evaluation.comparison.pair import open_pair
from jobs.evaluation.evaluate import answer
from jobs.evaluation.report.publish import ReportOptions
from jobs.evaluation.samples import open_eval_set
from jobs.evaluation.score import run_score
from jobs.evaluation.store import AnswerStore, EvaluationPlan
from padt.errors import UserError
from tests.jobs.evaluation.oracle import Oracle
from tests.pipelines.mini_set import write_mini_set

pytest.importorskip("faster_coco_eval")


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> str:
    return write_mini_set(tmp_path_factory.mktemp("mini") / "set", scenes=11)


@pytest.fixture(scope="module")
def truth(mini) -> list[dict]:
    data = open_eval_set(mini)
    return answer(data, Oracle(mini), progress=False).records


def evaluation(folder, data_url: str, records, **about) -> str:
    """A folder as `padt evaluate` leaves it."""
    data = open_eval_set(data_url)
    told = {
        "set": "mini",
        "data": data_url,
        "data_fingerprint": data.fingerprint,
        "limit": None,
        "tasks": ["caption", "detect", "refer"],
        "settings": {"masks": True},
        **about,
    }
    store = AnswerStore(str(folder))
    plan = EvaluationPlan(data.fingerprint, "m", ("refer",), told["settings"], None, "cpu", "float32", 1, 9, 1)
    store.begin(plan, told, windows(data.samples), False)
    store.finish(records)
    run_score(str(folder), data_url, report=ReportOptions(page=False, pictures=0))
    return str(folder)


def worse(records, ids):
    """The same answers, with nothing found in some."""
    changed = copy.deepcopy(records)
    for record in changed:
        if record["id"] in ids:
            record["prediction"]["objects"] = []
    return changed


def of_task(records, task):
    return [record["id"] for record in records if record["task"] == task]


def test_what_was_taken_away_is_the_difference(mini, truth, tmp_path):
    sentences, images = of_task(truth, "refer"), of_task(truth, "detect")
    lost, missed = sentences[:4], images[:2]
    first = evaluation(tmp_path / "first", mini, truth)
    second = evaluation(tmp_path / "second", mini, worse(truth, {*lost, *missed}))
    pair = open_pair([first, second])
    assert pair.counts == {"compared": len(truth), "only_first_asked": 0, "only_second_asked": 0, "unknown": 0}
    found = compare_pair(pair, draws=200)
    accuracy = found.differences["precision_at_0.5"]
    assert accuracy.first == 1 and accuracy.difference == pytest.approx(-4 / len(sentences))
    assert accuracy.low <= accuracy.difference <= accuracy.high <= 0
    scores = [json.loads((tmp_path / side / "metrics.json").read_text())["metrics"] for side in ("first", "second")]
    for name, one in found.differences.items():
        assert (one.first, one.second) == pytest.approx(tuple(score[f"eval/mini/{name}"] for score in scores)), name
    for name in ("bbox_AP", "segm_AP50", "gIoU", "cIoU", "caption_CIDEr_D", "caption_grounded"):
        assert name in found.differences
    assert not found.differences["caption_CIDEr_D"].clear
    tally = found.tallies["refer"]
    assert (tally.first, tally.second, tally.ties) == (4, 0, len(sentences) - 4)
    assert (tally.only_first, tally.only_second, tally.p) == (4, 0, 2 * 0.5**4)
    assert (found.tallies["detect"].first, found.tallies["caption"].ties) == (2, 11)
    assert disagreements(found.values["refer"], 3, True) == sorted(lost)[:3]
    assert disagreements(found.values["refer"], 3, False) == []
    # The same draws give the same intervals, and turned round the same with the other sign.
    back = compare_pair(open_pair([second, first]), draws=200).differences["precision_at_0.5"]
    assert (back.low, back.high) == pytest.approx((-accuracy.high, -accuracy.low))


def test_the_command_prints_and_leaves_a_page_that_shows_where_they_differ(mini, truth, tmp_path, capsys):
    lost = of_task(truth, "refer")[:1]
    first = evaluation(tmp_path / "first", mini, truth)
    second = evaluation(tmp_path / "<b>second", mini, worse(truth, lost))
    out = tmp_path / "out"
    assert main(["compare", first, second, "--out", str(out), "--draws", "50", "--pictures", "2"]) == 0
    shown = capsys.readouterr().out
    assert "95% interval" in shown and "McNemar" in shown
    content = json.loads((out / "compare.json").read_text())
    assert content["differences"]["gIoU"]["difference"] < 0 and content["tallies"]["refer"]["only_first"] == 1
    assert (content["first"], content["second"], content["draws"]) == ("first", "<b>second", 50)
    page = (out / "compare.html").read_text()
    sentence = next(record["sentence"] for record in truth if record["id"] == lost[0])
    # Truth and both answers of the one that differs; nothing from elsewhere, and no name is markup.
    assert page.count("<img ") == 3 and sentence in page
    assert "<b>second" not in page and "&lt;b&gt;second" in page and "http://" not in page
    assert main(["compare", first, second, "--out", str(out), "--draws", "50", "--pictures", "2"]) == 0
    assert (out / "compare.html").read_text() == page


def test_evaluations_of_parts_are_compared_on_what_they_share(mini, truth, tmp_path):
    data = open_eval_set(mini, limit=5)
    part = [record for record in truth if record["id"] in {sample.id for sample in data.samples}]
    first = evaluation(tmp_path / "first", mini, truth)
    second = evaluation(tmp_path / "second", mini, part, data_fingerprint=data.fingerprint, limit=5)
    pair = open_pair([first, second])
    assert pair.counts["compared"] == len(part) and pair.counts["only_first_asked"] == len(truth) - len(part)
    found = compare_pair(pair, draws=20)
    assert found.differences["bbox_AP"].first == found.differences["bbox_AP"].second == pytest.approx(1)


def test_an_unreadable_picture_is_an_answer_without_objects(mini, truth, tmp_path):
    records = copy.deepcopy(truth)
    gone = next(record for record in records if record["task"] == "refer")
    gone["prediction"], gone["error"] = None, "broken"
    pair = open_pair([evaluation(tmp_path / "a", mini, truth), evaluation(tmp_path / "b", mini, records)])
    assert compare_pair(pair, draws=5).tallies["refer"].only_first == 1


def test_what_cannot_be_compared_is_named(mini, truth, tmp_path, capsys):
    first = evaluation(tmp_path / "first", mini, truth)
    other = write_mini_set(tmp_path / "other", scenes=3, seed=9)
    records = answer(open_eval_set(other), Oracle(other), progress=False).records
    second = evaluation(tmp_path / "second", other, records)
    with pytest.raises(UserError, match="are about different data"):
        open_pair([first, second])
    with pytest.raises(UserError, match="has changed since it was evaluated, or is another set"):
        open_pair([first, first], other)
    tasks = [record for record in truth if record["task"] == "refer"]
    detect = [record for record in truth if record["task"] == "detect"]
    with pytest.raises(UserError, match="were asked different tasks"):
        open_pair([evaluation(tmp_path / "r", mini, tasks), evaluation(tmp_path / "d", mini, detect)])
    half = len(tasks) // 2
    with pytest.raises(UserError, match="have no question in common"):
        open_pair([evaluation(tmp_path / "x", mini, tasks[:half]), evaluation(tmp_path / "y", mini, tasks[half:])])
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "metrics.json").write_text((tmp_path / "first" / "metrics.json").read_text())
    # Scores alone still stand side by side; whoever asked for a page hears why there is none.
    assert main(["compare", first, str(scores)]) == 0
    assert "holds no answers" in capsys.readouterr().err
    assert main(["compare", first, str(scores), "--out", str(tmp_path / "out")]) != 0
    assert main(["compare", first, second, first, "--out", str(tmp_path / "out")]) != 0
    assert "give two" in capsys.readouterr().err
